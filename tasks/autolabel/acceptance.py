"""Choose from which score on detections of a class are accepted, and which images are accepted whole.

Learn then Test with fixed sequences (docs/method.md#autolabel). What is tested, in which order and from where on is
fixed by the unlabeled pool and the validation images, so that the labels of the sample only decide where to stop.

Shape shorthand: P images of the pool, S of the sample, B detections.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.autolabel.evidence import Bools, Evidence, FoundBoxes, Ints, JudgedBoxes
from tasks.evaluation.risk_control import (
    RiskPlan,
    binomial_p_value,
    binomial_upper_bound,
    fixed_sequence,
    risk_p_value,
    risk_upper_bound,
)
from tasks.params.autolabel import AutolabelParams

_NUM_THRESHOLDS = 100
_ROOM = 0.25


class ClassRule(NamedTuple):
    """What is accepted of one class, and what is known of it."""

    category: str
    threshold: float | None
    """Score from which on its detections are accepted; None: none is."""
    max_per_image: int
    """Images with more detections from the threshold on are left to people."""
    num_sample_images: int
    """Images of the sample with accepted boxes of the class."""
    num_sample_boxes: int
    num_wrong: int
    """Of these boxes."""
    precision_bound: float | None
    """Lower confidence bound on the share of right boxes in the pool; None where none is accepted."""
    reason: str
    """In words."""
    calibration_images_needed: int | None
    """Labeled random images that would be needed, without a single error, where there are too few; else None."""
    can_be_tested: bool


class ImageRule(NamedTuple):
    """Which images are accepted whole: those whose expected number of errors is at most ``max_expected_errors``.

    Such an image gets the detections of each class from an operating score on, which the validation images gave.
    """

    operating_scores: tuple[float, ...]
    """Of each class."""
    max_expected_errors: float | None
    """None: none is."""
    num_sample_images: int
    num_wrong: int
    """Of these images, those with a wrong box or a missing object."""
    wrong_bound: float | None
    """Upper confidence bound on the share of wrong images in the pool."""
    reason: str
    calibration_images_needed: int | None


@dataclass(frozen=True)
class Acceptance:
    """What is accepted of the pool."""

    class_rules: tuple[ClassRule, ...]
    image_rule: ImageRule
    is_box_accepted: Bools  # (B,) by the rule of its class
    is_box_kept: Bools  # (B,) from the operating score of its class on: what an image accepted whole gets
    is_image_accepted: Bools  # (P,) whole


def accept(evidence: Evidence, params: AutolabelParams, classes: Sequence[str]) -> Acceptance:
    """Choose the rules and apply them to the pool.

    Args:
        evidence: of one model.
        params: section ``autolabel``.
        classes: class names in the order of their indices.
    """
    rules = tuple(_class_rule(evidence, params, name, index) for index, name in enumerate(classes))
    testable = np.array([rule.can_be_tested for rule in rules], dtype=bool)
    scores = operating_scores(evidence.validation, len(classes))
    image_rule = _image_rule(evidence, params, testable, scores)
    kept_B = _is_kept(evidence.pool, scores)
    return Acceptance(
        rules,
        image_rule,
        _accepted_boxes(evidence.pool, rules),
        kept_B,
        _accepted_images(evidence.pool, kept_B, testable, image_rule.max_expected_errors),
    )


def _accepted_boxes(pool: FoundBoxes, rules: Sequence[ClassRule]) -> Bools:
    accepted_B = np.zeros(len(pool.scores), dtype=bool)
    for index, rule in enumerate(rules):
        if rule.threshold is not None:
            above_B = (pool.class_ids == index) & (pool.scores >= rule.threshold)
            counts_P = np.bincount(pool.image_of_box[above_B], minlength=len(pool))
            accepted_B |= above_B & (counts_P <= rule.max_per_image)[pool.image_of_box]
    return accepted_B


def operating_scores(validation: JudgedBoxes, num_classes: int) -> NDArray[np.float64]:
    """Return the score of each class from which on errors are fewest on the validation images, (K,).

    A wrong box costs as much as an object that is missing. Without a detection there: 0.5; without a right one: 1.
    """
    result = np.full(num_classes, 0.5)
    for class_id in range(num_classes):
        own = validation.found.class_ids == class_id
        order = np.argsort(-validation.found.scores[own], kind="stable")
        gain = np.cumsum(np.where(validation.is_right[own][order], 1, -1))
        if len(gain):
            result[class_id] = validation.found.scores[own][order][int(gain.argmax())] if gain.max() > 0 else 1.0
    return result


def _is_kept(found: FoundBoxes, scores: NDArray[np.float64]) -> Bools:
    return np.asarray(found.scores >= scores[found.class_ids])


def _accepted_images(found: FoundBoxes, kept_B: Bools, testable: Bools, max_expected_errors: float | None) -> Bools:
    if max_expected_errors is None:
        return np.zeros(len(found), dtype=bool)
    return _has_only(found, kept_B, testable) & (expected_errors(found, kept_B) <= max_expected_errors)


def expected_errors(found: FoundBoxes, kept_B: Bools) -> NDArray[np.float64]:
    """Return the sum of 1 - score over the detections that are kept, and of the scores of all others, (P,)."""
    errors_B = np.where(kept_B, 1.0 - found.scores, found.scores)
    return np.asarray(np.bincount(found.image_of_box, weights=errors_B, minlength=len(found)) + found.residual_mass)


def _has_only(found: FoundBoxes, kept_B: Bools, testable: Bools) -> Bools:
    """Whether all kept detections of each image are of classes of which something could be shown, (P,)."""
    others_B = kept_B & ~testable[found.class_ids]
    return np.asarray(np.bincount(found.image_of_box[others_B], minlength=len(found)) == 0)


class _Counts:
    """Detections of one class from a score on, image by image."""

    def __init__(self, found: FoundBoxes, class_id: int, is_right: Bools | None = None) -> None:
        own = found.class_ids == class_id
        self.scores = found.scores[own]
        self.images = found.image_of_box[own]
        self.is_right = None if is_right is None else is_right[own]
        self._num_images = len(found)

    def from_score(self, threshold: float) -> Ints:
        """Number of detections of each image, (P,)."""
        return np.bincount(self.images[self.scores >= threshold], minlength=self._num_images)

    def wrong_from_score(self, threshold: float) -> Ints:
        """Number of wrong ones of each image, (P,)."""
        assert self.is_right is not None
        return np.bincount(self.images[(self.scores >= threshold) & ~self.is_right], minlength=self._num_images)


class _Step(NamedTuple):
    """One threshold, as the pool alone describes it."""

    threshold: float
    max_per_image: int
    images_frac: float
    """Share of the pool's images with accepted boxes."""
    pool_factor: float
    """The share of wrong boxes is tested as this times the risk: what was chosen may have been all right."""
    plan: RiskPlan
    risk: float
    expected_wrong: float
    """Wrong boxes of an image with accepted boxes, or its probability to be a wrong image, guessed from the validation
    images. It only decides where to begin, and which bet is favored."""
    mean_accepted: float
    """Accepted boxes of an image that has any."""

    def planned(self, num_sample: int) -> float:
        """Return how many images of the sample are expected to have accepted boxes."""
        return num_sample * self.images_frac

    def favored_bet(self, num_sample: int) -> int:
        """Return the bet that the plan favors."""
        expected = self.planned(num_sample)
        most = self.risk * self.mean_accepted / 2  # with more there is no bet worth making
        return self.plan.favored_bet(expected, num_wrong=expected * min(self.expected_wrong, most))


def _class_rule(evidence: Evidence, params: AutolabelParams, name: str, class_id: int) -> ClassRule:
    level, num_sample = 1 - params.confidence_level, len(evidence.sample.found)
    steps = _steps(evidence, params, class_id)
    if not steps:
        return _nothing(name, "the model found none of it in the pool", None)
    if num_sample < params.min_calibration_images:
        problem = f"labeled random images are {num_sample}, fewer than autolabel.min_calibration_images"
        return _nothing(name, problem, _images_needed(steps, level, params))
    sequence = _sequence(steps, num_sample, level)
    if not sequence:
        needed = _images_needed(steps, level, params)
        return _nothing(name, f"{num_sample} labeled random images could show nothing, even without an error", needed)
    counts = _Counts(evidence.sample.found, class_id, evidence.sample.is_right)
    passed = fixed_sequence((_judge_step(step, counts, num_sample)[0] for step in sequence), level)
    step = sequence[max(passed - 1, 0)]
    _, accepted, wrong = _judge_step(step, counts, num_sample)
    figures = (len(accepted), int(accepted.sum()), int(wrong.sum()))
    if not passed:
        right = figures[1] - figures[2]
        reason = f"{right} of {figures[1]} boxes in {figures[0]} images are right from score {step.threshold:.3f} on"
        reason += ": too few to show the wanted precision"
        return ClassRule(name, None, step.max_per_image, *figures, None, reason, None, True)
    bet = step.favored_bet(num_sample)
    bound = risk_upper_bound(wrong, accepted, step.max_per_image, level, bet) / step.pool_factor
    reason = f"accepted from score {step.threshold:.3f} on"
    return ClassRule(
        name, step.threshold, step.max_per_image, *figures, max(1 - bound, params.wanted_precision), reason, None, True
    )


def _nothing(name: str, reason: str, needed: int | None) -> ClassRule:
    return ClassRule(name, None, 0, 0, 0, 0, None, reason, needed, False)


def _steps(evidence: Evidence, params: AutolabelParams, class_id: int) -> list[_Step]:
    """Return the thresholds to test, falling, each with what the pool says of it."""
    pool, chosen = _Counts(evidence.pool, class_id), _Counts(evidence.chosen, class_id)
    validation = _Counts(evidence.validation.found, class_id, evidence.validation.is_right)
    if not len(pool.scores):
        return []
    quantiles = np.quantile(pool.scores, np.linspace(0, 1, _NUM_THRESHOLDS), method="lower")
    risk, steps = 1 - params.wanted_precision, []
    for threshold in np.unique(quantiles)[::-1].tolist():
        counts_P = pool.from_score(threshold)
        largest = _largest_count(counts_P, params.max_crowd_boxes_frac)
        kept_P = counts_P[(counts_P > 0) & (counts_P <= largest)]
        chosen_counts = chosen.from_score(threshold)
        num_chosen = chosen_counts[chosen_counts <= largest].sum() * evidence.chosen_factor
        factor = float(kept_P.sum() / (kept_P.sum() + num_chosen))
        plan = RiskPlan(kept_P, largest, risk * factor)
        frac, mean = len(kept_P) / len(counts_P), float(kept_P.mean())
        wrong = mean * _guessed_share(*_kept(validation, threshold, largest))
        steps.append(_Step(threshold, largest, frac, factor, plan, risk * factor, wrong, mean))
    return steps


def _largest_count(counts_P: Ints, max_crowd_boxes_frac: float) -> int:
    """Return the lowest number above which at most that share of the boxes is in images with more of them."""
    boxes_A = np.bincount(counts_P) * np.arange(counts_P.max() + 1)
    above_A = boxes_A.sum() - np.cumsum(boxes_A)
    return max(int(np.flatnonzero(above_A <= max_crowd_boxes_frac * boxes_A.sum())[0]), 1)


def _sequence(steps: Sequence[_Step], num_sample: int, level: float) -> list[_Step]:
    """Return the thresholds in the order of their tests, falling; empty where nothing can be shown.

    Where images with more boxes come in, the test suddenly needs more images. Thresholds at which less could be shown
    than before, even without an error, are passed over until that is made up for.
    """
    start = _first_step(steps, num_sample, level)
    kept: list[_Step] = []
    lowest = 1.0
    for step in steps[start:] if start is not None else ():
        p_value = step.plan.p_value(step.planned(num_sample), num_wrong=0)
        if p_value <= lowest:
            lowest = p_value
            kept.append(step)
    return kept


def _first_step(steps: Sequence[_Step], num_sample: int, level: float) -> int | None:
    """Return where to begin; None where nothing can be shown, even without an error.

    A threshold that is shown makes all higher ones needless. The first one is the highest that would be shown with room
    to spare by the share of errors on the validation images; else that which would be shown most clearly. How many
    images of the sample will have accepted boxes is not known here either, so a standard deviation fewer are planned
    with. Where this shows nothing, it is the highest threshold that stands one error, or none.
    """
    planned = [step.planned(num_sample) for step in steps]
    fewer = [n - (n * (1 - step.images_frac)) ** 0.5 for n, step in zip(planned, steps, strict=True)]
    p_values = [step.plan.p_value(n, num_wrong=n * step.expected_wrong) for n, step in zip(fewer, steps, strict=True)]
    best = int(np.argmin(p_values))
    if p_values[best] <= level:
        return next((n for n, p_value in enumerate(p_values) if p_value <= level * _ROOM), best)
    for counts, num_wrong in ((fewer, 1), (fewer, 0), (planned, 0)):
        for position, (step, n) in enumerate(zip(steps, counts, strict=True)):
            if step.plan.p_value(n, num_wrong=num_wrong) <= level:
                return position
    return None


def _images_needed(steps: Sequence[_Step], level: float, params: AutolabelParams) -> int | None:
    needed = [
        int(np.ceil(count / step.images_frac))
        for step in steps
        if (count := step.plan.images_needed(level, num_wrong=0)) is not None
    ]
    return max(min(needed), params.min_calibration_images) if needed else None


def _kept(counts: _Counts, threshold: float, max_per_image: int) -> tuple[Ints, Ints]:
    """Return accepted and wrong boxes of each labeled image that has any accepted ones."""
    accepted, wrong = counts.from_score(threshold), counts.wrong_from_score(threshold)
    kept = (accepted > 0) & (accepted <= max_per_image)
    return accepted[kept], wrong[kept]


def _guessed_share(num_all: NDArray[Any], num_wrong: NDArray[Any]) -> float:
    """Return the share of wrong ones, drawn to a half by one that is half wrong: few images guess carefully."""
    return float((num_wrong.sum() + 0.5) / (num_all.sum() + 1))


def _judge_step(step: _Step, counts: _Counts, num_sample: int) -> tuple[float, Ints, Ints]:
    """Return the p-value of a threshold, and accepted and wrong boxes of the images of the sample that have any."""
    accepted, wrong = _kept(counts, step.threshold, step.max_per_image)
    bet = step.favored_bet(num_sample)
    return risk_p_value(wrong, accepted, step.max_per_image, step.risk, bet), accepted, wrong


def _errors_of_eligible(
    found: FoundBoxes, scores: NDArray[np.float64], testable: Bools
) -> tuple[NDArray[np.float64], Bools]:
    """Return the expected errors of the images that may be accepted whole, and which these are, (P,)."""
    kept_B = _is_kept(found, scores)
    eligible = _has_only(found, kept_B, testable)
    return expected_errors(found, kept_B)[eligible], eligible


def _judged_eligible(
    judged: JudgedBoxes, scores: NDArray[np.float64], testable: Bools
) -> tuple[NDArray[np.float64], Bools]:
    """Return the expected errors of the labeled images that may be accepted whole, and whether each is right."""
    errors, eligible = _errors_of_eligible(judged.found, scores, testable)
    return errors, judged.is_image_right(_is_kept(judged.found, scores))[eligible]


def _image_rule(evidence: Evidence, params: AutolabelParams, testable: Bools, scores: NDArray[np.float64]) -> ImageRule:
    """Order images by expected errors, and accept whole what is shown to be right often enough."""
    names = tuple(round(float(score), 6) for score in scores)
    if not testable.any():
        return ImageRule(names, None, 0, 0, None, "of no class enough is known", None)
    level, num_sample = 1 - params.confidence_level, len(evidence.sample.found)
    pool_errors, chosen_errors = (
        _errors_of_eligible(found, scores, testable)[0] for found in (evidence.pool, evidence.chosen)
    )
    (sample_errors, is_right), (validation_errors, is_validation_right) = (
        _judged_eligible(judged, scores, testable) for judged in (evidence.sample, evidence.validation)
    )
    if not len(pool_errors):
        return ImageRule(names, None, 0, 0, None, "each image holds a class of which too little is known", None)
    limits = np.unique(np.quantile(pool_errors, np.linspace(0, 1, _NUM_THRESHOLDS), method="lower")).tolist()
    steps = []
    for limit in limits:
        in_pool, in_chosen = ((errors <= limit).sum() for errors in (pool_errors, chosen_errors))
        factor = float(in_pool / (in_pool + in_chosen * evidence.chosen_factor))
        plan = RiskPlan(np.ones(int(in_pool), dtype=np.int64), 1, params.max_wrong_images_frac * factor)
        frac = in_pool / max(len(evidence.pool), 1)
        kept = validation_errors <= limit
        wrong = _guessed_share(kept, ~is_validation_right[kept])
        steps.append(_Step(limit, 1, float(frac), factor, plan, params.max_wrong_images_frac * factor, wrong, 1.0))
    sequence = [] if num_sample < params.min_calibration_images else _sequence(steps, num_sample, level)
    if not sequence:
        needed = _images_needed(steps, level, params)
        return ImageRule(names, None, 0, 0, None, f"{num_sample} labeled random images could show nothing", needed)

    def figures(step: _Step) -> tuple[int, int]:
        kept = sample_errors <= step.threshold
        return int((~is_right[kept]).sum()), int(kept.sum())

    passed = fixed_sequence((binomial_p_value(*figures(step), step.risk) for step in sequence), level)
    step = sequence[max(passed - 1, 0)]
    num_wrong, num_images = figures(step)
    if not passed:
        reason = f"{num_images - num_wrong} of the {num_images} surest images are right: too few"
        return ImageRule(names, None, num_images, num_wrong, None, reason, None)
    bound = min(binomial_upper_bound(num_wrong, num_images, level) / step.pool_factor, params.max_wrong_images_frac)
    reason = f"accepted up to {step.threshold:.3f} expected errors"
    return ImageRule(names, step.threshold, num_images, num_wrong, bound, reason, None)


def rule_document(rule: ClassRule | ImageRule) -> dict[str, Any]:
    """Return a rule as JSON."""
    return rule._asdict()
