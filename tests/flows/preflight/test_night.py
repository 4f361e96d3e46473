"""The lines in which the doctor says how long a night will take."""

from flows.preflight.services import describe_night

ESTIMATE = {
    "device": "the CPU",
    "gpus": 0,
    "measured": {
        "training_startup_s": 5.0, "supervised_step_s": 0.25, "semi_supervised_step_s": 1.5, "steps": 8,
        "inference_image_s": 0.05, "inferred_images": 24, "decoded_image_s": 0.002,
    },
    "counts": {
        "pool_images": 12000, "labeled_images": 50, "validation_images": 300, "supervised_steps": 200,
        "semi_supervised_steps": 4000, "scored_images": 500,
    },
    "minutes": {"prepare": 0.4, "train": 100.92, "evaluate": 0.5, "infer": 10.0},
    "total_minutes": 111.82,
}  # fmt: skip


def test_every_stage_says_its_minutes_and_where_they_come_from() -> None:
    assert describe_night(ESTIMATE) == [
        "  prepare     0.4 min  12,000 images at 2.0 ms",
        "    train       1.7 h  200 supervised steps at 0.25 s, 4,000 with unlabeled images at 1.50 s, "
        "500 images scored between",
        " evaluate     0.5 min  300 images, two models, at 50.0 ms",
        "    infer    10.0 min  12,000 images at 50.0 ms",
        " together       1.9 h  measured on the CPU: 8 steps, 24 images; "
        "the other stages compute on tables and are not measured",
    ]
