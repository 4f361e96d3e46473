"""Say how long a night will take on this machine, from a few measured steps of the campaign's own detector."""

from typing import Any

from flows.preflight.services import run_probe
from tasks.data.paths import Workspace

_LIMIT_S = 1200.0
_STAGES = ("prepare", "train", "evaluate", "infer")


def estimate_night(workspace: Workspace) -> dict[str, Any]:
    """Measure in a process of its own; ``tasks.model.night_estimate`` says what it returns.

    Raises:
        UserError: weights or images are missing or broken, or it took too long.
    """
    return run_probe("tasks.model.night_estimate", [], cwd=workspace.root, limit_s=_LIMIT_S)


def describe_night(estimate: dict[str, Any]) -> list[str]:
    """Return the lines that ``gleaner doctor`` prints: minutes by stage, and what they were measured from."""
    minutes, counts, measured = estimate["minutes"], estimate["counts"], estimate["measured"]
    work = {
        "prepare": f"{counts['pool_images']:,} images at {_seconds(measured['decoded_image_s'])}",
        "train": (
            f"{counts['supervised_steps']:,} supervised steps at {_seconds(measured['supervised_step_s'])}, "
            f"{counts['semi_supervised_steps']:,} with unlabeled images at "
            f"{_seconds(measured['semi_supervised_step_s'])}, {counts['scored_images']:,} images scored between"
        ),
        "evaluate": f"{counts['validation_images']:,} images, two models, at {_seconds(measured['inference_image_s'])}",
        "infer": f"{counts['pool_images']:,} images at {_seconds(measured['inference_image_s'])}",
    }
    lines = [f"{stage:>9}  {_minutes(minutes[stage]):>10}  {work[stage]}" for stage in _STAGES]
    total = f"{'together':>9}  {_minutes(estimate['total_minutes']):>10}"
    origin = f"measured on {estimate['device']}: {measured['steps']} steps, {measured['inferred_images']} images"
    return [*lines, f"{total}  {origin}; the other stages compute on tables and are not measured"]


def _minutes(minutes: float) -> str:
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.1f} min"


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"
