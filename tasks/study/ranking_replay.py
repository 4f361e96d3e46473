"""Replay the choice of metric weights on stored pools: draw labels, choose a rule, rank the images without a label.

The pools are those that a study of rankings keeps of each round (``tasks.study.pool_spearman.POOL_IMAGES``), so another
rule can be tried in minutes, without training a detector again. Run: ``python -m tasks.study.ranking_replay PARTS...``
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectron_ext.dwa import DwaSamples, mixture_terms
from detectron_ext.uncertainty_metrics import Floats, grouped_spearman
from detectron_ext.weight_choice import EQUAL
from tasks.data import schemas
from tasks.params import load_params
from tasks.params.stages import DwaParams
from tasks.storage import files
from tasks.study.pool_spearman import POOL_IMAGES
from tasks.weigh import PoolFeatures, decide_weights

NUM_LABELS = (20, 40, 80, 160)
"""Sizes of the random draws, in images."""
NUM_DRAWS = 5
_MIN_RANKED_IMAGES = 30
REPLAY = pa.schema(
    [
        ("seed", pa.int64()),
        ("round", pa.int32()),
        ("num_labels", pa.int32()),
        ("rule", pa.string()),
        ("spearman", pa.float64()),  # with the realized loss, over the images without a label; mean over draws
    ]
)


def replay_folder(parts: Path, dwa: DwaParams, priors: Sequence[str]) -> pa.Table:
    """Replay every pool of a study's parts: ``seed-<seed>/<arm>/round-<number>.parquet``.

    Returns:
        REPLAY.
    """
    rows = []
    for path in sorted(parts.glob("seed-*/*/round-*.parquet")):
        keys = {"seed": int(path.parts[-3].removeprefix("seed-")), "round": int(path.stem.removeprefix("round-"))}
        pool = files.read_table(path, POOL_IMAGES)
        rows += [keys | row for row in replay_pool(pool, dwa, priors, seed=keys["seed"])]
    return pa.Table.from_pylist(rows, schema=REPLAY)


def replay_pool(
    pool: pa.Table,
    dwa: DwaParams,
    priors: Sequence[str],
    *,
    seed: int,
    sizes: Sequence[int] = NUM_LABELS,
    num_draws: int = NUM_DRAWS,
) -> Iterator[dict[str, Any]]:
    """Draw labels at random, apply every rule to the rest, and correlate with the realized loss.

    Rules: equal weights, each metric alone, and with each prior rule ``learned|<prior>``, the learned weights, and
    ``chosen|<prior>``, what the choice of docs/method.md#choice takes. Sizes that leave under 30 images are left out.

    Args:
        pool: POOL_IMAGES.
        dwa: parameters of the choice; ``mode`` and ``prior_rule`` are not read.
        priors: values of ``dwa.prior_rule``.
        seed: of the draws.
        sizes: numbers of labels.
        num_draws: draws of each size.

    Yields:
        ``num_labels``, ``rule`` and ``spearman``; a rule without a correlation in any draw is left out.
    """
    metrics_PM = np.column_stack([pool[name].to_numpy() for name in schemas.METRICS])
    features_PF = pc.list_flatten(pool["features"]).to_numpy().reshape(len(pool), -1).astype(np.float64)
    loss_P, image_ids = pool["loss"].to_numpy(), pool["image_id"].to_pylist()
    for size in (size for size in sizes if size + _MIN_RANKED_IMAGES <= len(pool)):
        found: dict[str, list[float]] = {}
        for draw in range(num_draws):
            is_labeled = np.zeros(len(pool), dtype=bool)
            is_labeled[np.random.default_rng([seed, size, draw]).permutation(len(pool))[:size]] = True
            samples = _samples(image_ids, features_PF, metrics_PM, loss_P, np.flatnonzero(is_labeled))
            rest = np.flatnonzero(~is_labeled)
            ranked = PoolFeatures(features_PF[rest], metrics_PM[rest], np.zeros((len(rest), 3)))
            for rule, score_R in rule_scores(dwa, seed, samples, ranked, priors).items():
                correlation = grouped_spearman([(score_R, loss_P[rest])])
                if correlation is not None:
                    found.setdefault(rule, []).append(correlation)
        for rule, values in found.items():
            yield {"num_labels": size, "rule": rule, "spearman": fmean(values)}


def _samples(
    image_ids: Sequence[str], features_PF: Floats, metrics_PM: Floats, loss_P: Floats, index: NDArray[np.intp]
) -> DwaSamples:
    return DwaSamples(
        [image_ids[i] for i in index],
        np.zeros(len(index), dtype=np.int64),
        features_PF[index],
        metrics_PM[index],
        loss_P[index],
        np.ones(len(index), dtype=bool),
    )


def rule_scores(
    dwa: DwaParams, seed: int, samples: DwaSamples, pool: PoolFeatures, priors: Sequence[str]
) -> dict[str, Floats]:
    """Score the pool by every rule; with too few labels the choice is the prior rule and nothing is learned."""
    names = list(dwa.metrics)
    used_PM = pool.metrics[:][:, [schemas.METRICS.index(name) for name in names]]
    scores: dict[str, Floats] = {EQUAL: used_PM.mean(axis=1)}
    scores |= {name: used_PM[:, index] for index, name in enumerate(names)}
    for prior in priors:
        decision = decide_weights(dwa.model_copy(update={"mode": "learned", "prior_rule": prior}), seed, samples, pool)
        scores[f"chosen|{prior}"] = decision.uncertainty
        if decision.choice is not None:
            terms_PT = mixture_terms(used_PM, signed=dwa.allow_negative_weights)
            weights_PT = decision.choice.ensemble.weights(pool.features)
            scores[f"learned|{prior}"] = (weights_PT * terms_PT).sum(axis=1)
    return scores


def mean_by_size(replay: pa.Table) -> dict[str, dict[int, float]]:
    """Return the mean correlation of each rule by number of labels: over rounds of a seed, then over seeds."""
    found: dict[str, dict[int, float]] = {}
    for rule in sorted(set(replay["rule"].to_pylist())):
        own = replay.filter(pc.equal(replay["rule"], rule))
        by_seed = own.group_by(["num_labels", "seed"]).aggregate([("spearman", "mean")])
        by_size = by_seed.group_by("num_labels").aggregate([("spearman_mean", "mean")]).sort_by("num_labels")
        sizes, values = by_size["num_labels"].to_pylist(), by_size["spearman_mean_mean"].to_pylist()
        found[rule] = dict(zip(sizes, values, strict=True))
    return found


def lead_over_best_metric(replay: pa.Table, rule: str) -> Mapping[str, Any]:
    """Compare a rule with the single metric that is best over all seeds, rounds and sizes.

    Returns:
        ``best`` metric, mean ``lead`` and its ``standard_error`` over seeds (None with one seed).
    """
    by_seed: dict[str, dict[int, float]] = {}
    table = replay.group_by(["rule", "seed"]).aggregate([("spearman", "mean")])
    for row in table.to_pylist():
        by_seed.setdefault(row["rule"], {})[row["seed"]] = row["spearman_mean"]
    metrics = [name for name in schemas.METRICS if name in by_seed]
    best = max(metrics, key=lambda name: fmean(by_seed[name].values()))
    leads = np.array([by_seed[rule][seed] - by_seed[best][seed] for seed in sorted(by_seed[rule])])
    error = float(leads.std(ddof=1) / np.sqrt(len(leads))) if len(leads) > 1 else None
    return {"best": best, "lead": float(leads.mean()), "standard_error": error}


def markdown(replay: pa.Table) -> str:
    """Format the mean correlations as a table, and the leads of the chosen rules as sentences."""
    means = mean_by_size(replay)
    sizes = sorted({size for values in means.values() for size in values})
    lines = ["| rule | " + " | ".join(f"{size} labels" for size in sizes) + " |", "| --- " * (len(sizes) + 1) + "|"]
    for rule, values in sorted(means.items(), key=lambda item: -fmean(item[1].values())):
        name = rule.replace("|", ", prior ")
        cells = [f"{values[size]:.3f}" if size in values else "–" for size in sizes]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    sentences = []
    for rule in sorted(means):
        kind, _, prior = rule.partition("|")
        if prior:
            found = lead_over_best_metric(replay, rule)
            error = found["standard_error"]
            spread = "one seed" if error is None else f"standard error {error:.3f}"
            sentences.append(
                f"- {kind.capitalize()} with prior rule `{prior}`, minus the best metric alone, `{found['best']}`: "
                f"{found['lead']:+.3f} ({spread})."
            )
    return "\n".join([*lines, "", *sentences]) + "\n"


def main() -> None:
    """Print a table for each folder of parts, and write it beside them as ``replay.parquet`` and ``replay.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", type=Path)
    parser.add_argument("--dwa", type=json.loads, default={}, help="Changed parameters of section dwa, as JSON.")
    parser.add_argument("--priors", nargs="+", default=[EQUAL, "entropy"], help="Values of dwa.prior_rule.")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    arguments = parser.parse_args()
    dwa = load_params(arguments.params).dwa.model_copy(update=arguments.dwa)
    for parts in arguments.parts:
        replay = replay_folder(parts, dwa, arguments.priors)
        if not arguments.dwa:  # only the settings of params.yaml are the study's result
            files.write_table(parts.parent / "replay.parquet", replay)
            files.write_bytes(parts.parent / "replay.md", markdown(replay).encode())
        sys.stdout.write(f"## {parts.parent.name}\n\n{markdown(replay)}\n")


if __name__ == "__main__":
    main()
