"""Replays on planted evidence: figures are those of the images that were drawn, and the draw is the seed's."""

import numpy as np

from tasks.params import load_params
from tasks.study.autolabel_replay import markdown, read_judged, replay
from tests.tasks.autolabel.campaign import PlantedCampaign
from tests.tasks.autolabel.planted import PARAMS, planted


def planted_params(tmp_path):  # type: ignore[no-untyped-def]
    campaign = PlantedCampaign(tmp_path / "campaign", num_pool=40, num_calibration=5)
    return campaign, load_params(campaign.write().params)


def test_the_oracle_judges_what_the_model_found(tmp_path) -> None:  # type: ignore[no-untyped-def]
    campaign, params = planted_params(tmp_path)
    judged = read_judged(campaign.workspace, params)
    known = [*campaign.pool, *campaign.calibration]
    assert set(judged.found.image_ids) == set(known)
    right = 0
    for image_id in known:
        row, truth = campaign.rows[image_id], campaign.truth[image_id]
        corners = [row["boxes_xyxy"][4 * n : 4 * n + 4] for n in range(len(row["scores"]))]
        right += sum(list(box.xyxy_px) in corners for box in truth.boxes)
    assert judged.is_right.sum() == right


def test_seeds_differ_in_their_draws_and_repeat_them(tmp_path) -> None:  # type: ignore[no-untyped-def]
    _, params = planted_params(tmp_path)
    params = params.model_copy(update={"classes": ["x"], "autolabel": PARAMS})
    judged = planted(np.random.default_rng(0), 900)
    first, second = (
        list(
            replay(
                judged, planted(np.random.default_rng(1), 60), params, num_calibration=300, num_trained=60, seeds=[1, 2]
            )
        )
        for _ in range(2)
    )
    assert first == second
    assert first[0].accepted_boxes != first[1].accepted_boxes
    for one in first:
        assert one.boxes.num_all == min(100, one.accepted_boxes)
        assert one.true_precision is not None
        assert one.true_precision > 0.85
        assert one.people_images_frac == 360 / (360 + one.whole_images)
    text = markdown(first, PARAMS)
    assert "accepted in 2 of 2 seeds" in text


def test_nothing_accepted_is_said(tmp_path) -> None:  # type: ignore[no-untyped-def]
    _, params = planted_params(tmp_path)
    params = params.model_copy(update={"classes": ["x"], "autolabel": PARAMS})
    judged = planted(np.random.default_rng(0), 200)
    [one] = replay(judged, planted(np.random.default_rng(1), 60), params, num_calibration=10, num_trained=60, seeds=[1])
    assert (one.accepted_boxes, one.true_precision, one.boxes.num_all) == (0, None, 0)
    assert "accepted in 0 of 1 seeds" in markdown([one], PARAMS)
