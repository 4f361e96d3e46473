"""Measure training and inference against their parts, against stock Detectron2, and against commit 040f42d.

Run: ``make bench``. All measurements take turns, repetition by repetition, so that a machine that slows down slows all
of them; quote the ratios, not the seconds. Processor time counts every thread and process, and is the one to quote
from a machine that does other work. Every version trains on batches of its own loader, from the same images, with the
settings of its own stages; making a batch is not timed. ``SimpleTrainer`` and ``inference_on_dataset`` run Detectron2's
own architecture, RPN and ROI heads with the same weights. ``SimpleTrainer`` does not clip gradients, check for
divergence or average a teacher, and ``inference_on_dataset`` gives no posteriors and no embeddings; ours do.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from infra.bench.bench_images import write_images
from tasks.data import schemas
from tasks.storage import files

BASELINE = "040f42d"
_REPOSITORY = Path(__file__).parents[2]
_OURS = "this version"
_RATIOS = (
    # (name, measurement, of, bar): the second time divided by the first is the speed-up, the reverse the share
    ("step / sum of its parts", (_OURS, "step"), (_OURS, "parts"), "at most 1.10"),
    ("supervised step / SimpleTrainer's", (_OURS, "supervised"), (_OURS, "SimpleTrainer"), "at most 1.00"),
    ("inference / inference_on_dataset", (_OURS, "inference"), (_OURS, "inference_on_dataset"), "at most 1.00"),
    (f"step of {BASELINE} / step", (BASELINE, "step"), (_OURS, "step"), "at least 1.60"),
    (f"inference of {BASELINE} / inference", (BASELINE, "inference"), (_OURS, "inference"), "at least 1.50"),
)
Times = dict[tuple[str, str], list[dict[str, float]]]


class Version:
    """A process that times the functions of one version; see ``timed_functions``."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        """Wait until it is ready."""
        self._process = process
        self.functions: list[str] = json.loads(self._read())

    def measure(self, function: str) -> dict[str, float]:
        """Time one call."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{function}\n")
        self._process.stdin.flush()
        times: dict[str, float] = json.loads(self._read())
        return times

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a measured process ended with exit code {self._process.wait()}")
        return line


@contextmanager
def start_version(arguments: list[str], root: Path) -> Iterator[Version]:
    """Start the process of a version with ``root`` as its code; ends it in the end."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "PYTHONWARNINGS": "ignore",
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "20000"),  # as in the stages
    }
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=root,
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Version(process)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """Check the commit out beside this one; removed in the end."""
    git = ["git", "-C", str(_REPOSITORY), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def measure(repeats: int) -> Times:
    """Run every measurement once to warm up and then ``repeats`` times in turn."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        images, here = Path(temporary) / "images", Path(__file__).parent
        (images / "warm_start").mkdir(parents=True)
        write_images(images)
        files.write_json(images / "warm_start" / "class_weights.json", {})
        table = pa.Table.from_pylist([], schemas.PREVIOUS_UNCERTAINTY)
        files.write_table(images / "warm_start" / "uncertainty.parquet", table)
        root = stack.enter_context(checked_out(BASELINE, Path(temporary) / BASELINE))
        old = [str(here / "version_040f42d.py"), str(images), str(root)]
        versions = {
            _OURS: stack.enter_context(start_version(["-m", "infra.bench.this_version", str(images)], _REPOSITORY)),
            BASELINE: stack.enter_context(start_version(old, root)),
        }
        times: Times = defaultdict(list)
        for number in range(1 + repeats):
            for name, version in versions.items():
                for function in version.functions:
                    measured = version.measure(function)
                    if number > 0:
                        times[name, function].append(measured)
        return times


def ratio_rows(times: Times) -> list[list[str]]:
    """Format name, wall-time ratio, processor-time ratio and bar of each comparison; medians over repetitions."""
    rows: list[list[str]] = []
    for name, own, other, bar in _RATIOS:
        texts = []
        for unit in ("wall_s", "cpu_s"):
            ratios = [one[unit] / two[unit] for one, two in zip(times[own], times[other], strict=True)]
            texts.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        rows.append([name, *texts, bar])
    return rows


def main() -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    load_before = os.getloadavg()[0]
    times = measure(repeats)
    seconds = Table("version", "measured", "wall s", "processor s", title="Medians of 4 steps, or of 96 images")
    for (version, function), values in times.items():
        medians = [statistics.median(value[unit] for value in values) for unit in ("wall_s", "cpu_s")]
        seconds.add_row(version, function, *(f"{median:.2f}" for median in medians))
    ratios = Table("ratio", "wall time", "processor time", "bar", title=f"Median (range) of {repeats} repetitions")
    for row in ratio_rows(times):
        ratios.add_row(*row)
    console = Console(soft_wrap=True)
    console.print(seconds, ratios)
    console.print(f"load average {load_before:.1f} before and {os.getloadavg()[0]:.1f} after, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
