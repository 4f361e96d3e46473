import pytest

from tasks.study.training_result import point_bootstrap, point_map

TRAININGS = [
    {"teacher": {"map": 30.0, "bootstrap_map": [28.0, 33.0]}, "student": {"map": 34.0, "bootstrap_map": [35.0, 31.0]}},
    {"teacher": {"map": 40.0, "bootstrap_map": [40.0, 44.0]}, "student": {"map": 20.0, "bootstrap_map": [20.0, 22.0]}},
]


def test_a_point_is_the_mean_over_trainings_of_the_better_model() -> None:
    assert point_map(TRAININGS, "best") == pytest.approx((34 + 40) / 2)
    assert point_map(TRAININGS, "teacher") == pytest.approx((30 + 40) / 2)
    assert point_map(TRAININGS, "student") == pytest.approx((34 + 20) / 2)


def test_resamples_of_the_images_go_through_the_same_rule() -> None:
    assert point_bootstrap(TRAININGS, "best") == pytest.approx([(35 + 40) / 2, (33 + 44) / 2])
    assert point_bootstrap(TRAININGS[:1], "teacher") == [28.0, 33.0]
