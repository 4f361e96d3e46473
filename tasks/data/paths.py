"""Define every path of a campaign workspace."""

from dataclasses import dataclass
from pathlib import Path

STAGES = (
    "prepare",
    "assemble",
    "train",
    "evaluate",
    "infer",
    "score",
    "weigh",
    "select",
    "handoff",
    "report",
)


@dataclass(frozen=True)
class Workspace:
    """Paths below one campaign's root folder.

    ``data/`` is source: append-only, never written by a stage. ``derived/<stage>/`` is what the stage of
    that name writes and can always be computed again. ``.gleaner/`` is scratch that only speeds things up.
    """

    root: Path

    def derived(self, stage: str) -> Path:
        """Output folder of one stage."""
        return self.root / "derived" / stage

    def scratch(self, stage: str) -> Path:
        """Resumable work in progress of one stage: outside DVC, safe to delete."""
        return self.root / ".gleaner" / stage

    def timing(self, stage: str) -> Path:
        """Seconds the stage's last run took; kept outside its outputs so that those stay reproducible."""
        return self.root / ".gleaner" / "timings" / f"{stage}.json"

    def label_batch(self, batch: int) -> Path:
        """Labels of one batch, as a person gave them; batch 0 is the seed set."""
        return self.labels / f"batch-{batch:04d}.json"

    def detections_at_selection_batch(self, batch: int) -> Path:
        """The teacher's detections on the images of a batch, frozen when the batch was offered."""
        return self.detections_at_selection / f"batch-{batch:04d}.parquet"

    def delivery(self, batch: int) -> Path:
        """Batch as offered to the annotators, with what is needed when it returns."""
        return self.root / "deliveries" / f"batch-{batch:04d}"

    def ledger(self, round_number: int) -> Path:
        """The record of one finished round."""
        return self.root / "rounds" / f"round-{round_number:04d}.json"

    @property
    def promotions(self) -> Path:
        """Who became champion, when and why: one JSON object a line, append-only."""
        return self.root / "promotions.jsonl"

    @property
    def exports(self) -> Path:
        """What was exported, from which model, one JSON object a line, append-only."""
        return self.root / "exports.jsonl"

    @property
    def params(self) -> Path:
        """Parameters of the round."""
        return self.root / "params.yaml"

    @property
    def dvc_yaml(self) -> Path:
        """Graph of the stages of a round."""
        return self.root / "dvc.yaml"

    @property
    def code_versions(self) -> Path:
        """Digest of the installed source of each stage, so that DVC sees an upgrade of Gleaner."""
        return self.root / "code_versions.json"

    @property
    def images(self) -> Path:
        """Local pool and validation images, named ``<image_id>.<extension>``."""
        return self.root / "data" / "images"

    @property
    def index(self) -> Path:
        """The pool index: schemas.INDEX."""
        return self.root / "data" / "index.parquet"

    @property
    def val(self) -> Path:
        """The fixed validation set: schemas.ANNOTATED."""
        return self.root / "data" / "val.parquet"

    @property
    def val_names(self) -> Path:
        """The users' own names of the validation images: schemas.FILE_NAMES."""
        return self.root / "data" / "val_names.parquet"

    @property
    def calibration(self) -> Path:
        """Labeled images that are never trained on, for the DWA network: schemas.ANNOTATED."""
        return self.root / "data" / "calibration.parquet"

    @property
    def labels(self) -> Path:
        """Label batches, append-only."""
        return self.root / "data" / "labels"

    @property
    def detections_at_selection(self) -> Path:
        """Detections frozen when a batch was offered, one file per batch: schemas.DETECTIONS_AT_SELECTION."""
        return self.root / "data" / "detections_at_selection"

    @property
    def warm_start(self) -> Path:
        """Inputs from the previous round: outputs of its stages report, weigh and train."""
        return self.root / "data" / "warm_start"

    @property
    def import_report(self) -> Path:
        """What ``gleaner init`` imported and what it set aside."""
        return self.root / "data" / "import_report.json"

    @property
    def quarantine(self) -> Path:
        """Returned labels that were refused on collection, one JSON file per refusal."""
        return self.root / "quarantine"

    @property
    def oracle(self) -> Path:
        """Annotations only the simulated annotator may read: schemas.ANNOTATED."""
        return self.root / "oracle" / "annotations.parquet"

    @property
    def lock(self) -> Path:
        """Lock file of the one process that may write here."""
        return self.root / ".gleaner" / "lock"

    @property
    def crashed_runs(self) -> Path:
        """Rounds that were killed with open runs in MLflow or Prefect, one file each."""
        return self.root / ".gleaner" / "crashed_runs"


def image_id_from_sha256(sha256: str) -> str:
    """Return the id of an image: the first 16 hex digits of the SHA-256 of its bytes."""
    return sha256[:16]


def resolve_uri(root: Path, uri: str) -> Path:
    """Return the local path of a relative image uri; refuse one that leaves the workspace.

    Raises:
        ValueError: the uri is absolute or climbs out of ``root``.
    """
    path = (root / uri).resolve()
    if Path(uri).is_absolute() or not path.is_relative_to(root.resolve()):
        raise ValueError(f"image uri is {uri!r}, expected a path inside the workspace")
    return path
