"""A campaign after a round, with planted detections: how often a score is right is known, and so is every object."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from tasks.autolabel.evidence import ModelRef
from tasks.data import schemas
from tasks.data.annotations import AnnotatedImage, write_annotated
from tasks.data.paths import Workspace, image_id_from_sha256
from tasks.data.schemas import Box, LabelBatch, LabeledImage
from tasks.params.template import render_params
from tasks.storage import files

REPOSITORY = Path(__file__).parents[3]
CLASSES = ("bolt", "nut")
MODEL = ModelRef(1, 2, "ab" * 32)
WIDTH, HEIGHT, CELL = 200, 100, 50
SETTINGS = ("budget.amount=20", "autolabel.audit_boxes=60", "autolabel.audit_images=30")


class PlantedCampaign:
    """Images of 4 x 2 cells with at most one object each; a detection of score s is right with probability s^power."""

    def __init__(
        self,
        root: Path,
        *,
        seed: int = 0,
        num_pool: int = 300,
        num_calibration: int = 80,
        num_chosen: int = 6,
        power: float = 0.5,
        settings: tuple[str, ...] = (),
        with_pictures: bool = False,
    ) -> None:
        """Draw everything; ``write`` puts it on the disk."""
        self.workspace = Workspace(root)
        self.rng = np.random.default_rng(seed)
        self.num_pool, self.num_calibration, self.num_chosen, self.power = num_pool, num_calibration, num_chosen, power
        self.with_pictures = with_pictures
        self.settings = (*SETTINGS, *settings)
        self.truth: dict[str, AnnotatedImage] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        total = num_pool + num_calibration + 10 + num_chosen + 4 + 40
        self.ids = [self._image(number) for number in range(total)]
        parts = np.split(np.array(self.ids), np.cumsum([num_pool, num_calibration, 10, num_chosen, 4]))
        self.pool, self.calibration, self.seed_batch, self.chosen, self.random, self.val = (p.tolist() for p in parts)

    def _image(self, number: int) -> str:
        image_id = f"{number:016x}"
        uri = f"data/images/{image_id}.png"
        if self.with_pictures:
            pixels = self.rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            temporary = self.workspace.root / "picture.png"
            temporary.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(temporary)
            image_id = image_id_from_sha256(files.sha256_file(temporary))
            uri = f"data/images/{image_id}.png"
            (self.workspace.root / uri).parent.mkdir(parents=True, exist_ok=True)
            temporary.rename(self.workspace.root / uri)
        objects, found = [], []
        for cell in self.rng.permutation(8)[: self.rng.integers(1, 4)]:
            x, y = (int(cell) % 4) * CELL, (int(cell) // 4) * CELL
            box, category = [x + 5.0, y + 5.0, x + 45.0, y + 45.0], int(self.rng.integers(2))
            score = float(self.rng.beta(4, 0.3))
            is_right = self.rng.random() < score**self.power
            if score < 0.2:
                objects.append((box, category))  # missed
                continue
            if is_right:
                objects.append((box, category))
            found.append((box, score, category))
        self.truth[image_id] = AnnotatedImage(
            image_id,
            uri,
            WIDTH,
            HEIGHT,
            tuple(Box(category=CLASSES[c], xyxy_px=(b[0], b[1], b[2], b[3])) for b, c in objects),
            -1,
        )
        self.rows[image_id] = {
            "image_id": image_id,
            "boxes_xyxy": [corner for box, _, _ in found for corner in box],
            "scores": [score for _, score, _ in found],
            "class_ids": [category for _, _, category in found],
            "class_probs": [p for _, s, c in found for p in (*((s, (1 - s) / 2) if c == 0 else ((1 - s) / 2, s)), 0.0)],
            "residual_mass": float(self.rng.exponential(0.02)),
            "embedding": self.rng.normal(size=4).astype(np.float16),
            "stability": [1.0] * len(found),
            "region_class_ids": [],
            "region_features": [],
            "model_digest": MODEL.sha256,
        }
        return image_id

    def write(self) -> Workspace:
        """Write all that ``autolabel`` reads."""
        workspace = self.workspace
        template = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
        files.write_bytes(workspace.params, render_params(template, classes=CLASSES, overrides=self.settings).encode())
        self._write_images()
        self._write_detections()
        self._write_scores()
        self._write_labels()
        return workspace

    def _table(self, ids: list[str]) -> pa.Table:
        rows = [{"image_id": i, "uri": self.truth[i].uri, "width_px": WIDTH, "height_px": HEIGHT} for i in sorted(ids)]
        return pa.Table.from_pylist(rows, schema=schemas.UNLABELED)

    def _write_images(self) -> None:
        workspace = self.workspace
        pool = [
            row | {"size_bytes": 1, "sha256": row["image_id"] * 4, "file_name": f"line 3/{row['image_id']}.png"}
            for row in self._table([i for i in self.ids if i not in self.val]).to_pylist()
        ]
        table = pa.Table.from_pylist(pool, schema=schemas.POOL)
        files.write_table(workspace.derived("prepare") / "pool.parquet", table)
        assembled = workspace.derived("assemble")
        files.write_table(assembled / "unlabeled.parquet", self._table(self.pool))
        files.write_json(assembled / "leased.json", [])
        labeled = [*self.seed_batch, *self.chosen, *self.random]
        for path in (workspace.calibration, assembled / "calibration.parquet"):
            write_annotated(path, [self.truth[i] for i in self.calibration], CLASSES)
        write_annotated(workspace.val, [self.truth[i] for i in self.val], CLASSES)
        write_annotated(assembled / "val.parquet", [self.truth[i] for i in self.val], CLASSES)
        predictions = [
            {name: self.rows[i][name] for name in ("image_id", "boxes_xyxy", "scores", "class_ids")} | {"model": model}
            for i in self.val
            for model in ("teacher", "student")
        ]
        schema = schemas.with_class_names(schemas.PREDICTIONS, CLASSES)
        files.write_table(
            workspace.derived("evaluate") / "predictions.parquet", pa.Table.from_pylist(predictions, schema=schema)
        )
        write_annotated(assembled / "labeled.parquet", [self.truth[i] for i in labeled], CLASSES)
        write_annotated(workspace.oracle, [self.truth[i] for i in self.pool], CLASSES)

    def _write_detections(self) -> None:
        infer = self.workspace.derived("infer")
        labeled = [*self.seed_batch, *self.chosen, *self.random]
        for name, ids in (("shard", [*self.pool, *self.calibration]), ("labeled", labeled)):
            rows = [self.rows[image_id] for image_id in sorted(ids)]
            table = pa.Table.from_pylist(rows, schema=schemas.DETECTIONS)
            files.write_table(infer / f"{name}-000000.parquet", table)

    def _write_scores(self) -> None:
        rows = []
        for image_id in sorted(self.pool):
            row = dict.fromkeys(schemas.SCORES.names, 0.5)
            expected = float(sum(self.rows[image_id]["scores"]))
            row |= {"image_id": image_id, "num_boxes": 2, "num_distinct_classes": 1, "expected_boxes": expected}
            row |= {"has_no_detections": False, "features": [0.0] * 16, "expected_boxes_per_class": [0.5, 0.5]}
            rows.append(row | {"value": float(self.rng.random())})
        scores = pa.Table.from_pylist(rows, schema=schemas.SCORES)
        files.write_table(self.workspace.derived("score") / "scores.parquet", scores)
        files.write_json(self.workspace.derived("score") / "box_errors.json", {"used": True, "reason": "planted"})
        weighed = [
            {"image_id": i, "uncertainty": 0.5} | {f"w_{name}": 1 / 3 for name in schemas.METRICS}
            for i in sorted(self.pool)
        ]
        table = pa.Table.from_pylist(weighed, schema=schemas.UNCERTAINTY)
        files.write_table(self.workspace.derived("weigh") / "uncertainty.parquet", table)

    def _write_labels(self) -> None:
        for number, ids in enumerate((self.seed_batch, [*self.chosen, *self.random])):
            answers = tuple(self._answer(image_id, number) for image_id in ids)
            batch = LabelBatch(batch=number, provider="planted", collected_at="2026-01-01T00:00:00Z", images=answers)
            files.write_json(self.workspace.label_batch(number), batch.model_dump(mode="json"))
            offered = ids if number else []
            rows = [
                self.rows[i]
                | {"confidence": 0.5, "entropy": 0.5, "overlap": 0.5, "picked_by": "x", "num_candidates": 99}
                | {"is_random_pick": i in self.random}
                for i in sorted(offered)
            ]
            schema = schemas.with_class_names(schemas.DETECTIONS_AT_SELECTION, CLASSES)
            path = self.workspace.detections_at_selection_batch(number)
            files.write_table(path, pa.Table.from_pylist(rows, schema=schema))

    def _answer(self, image_id: str, batch: int) -> LabeledImage:
        boxes = self.truth[image_id].boxes
        return LabeledImage(
            image_id=image_id,
            status="labeled" if boxes else "empty",
            boxes=boxes,
            annotator="ada",
            finished_at="2026-01-01T00:00:00Z",
            seconds_spent=30.0,
            offered_batch=batch,
        )
