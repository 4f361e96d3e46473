"""What people are named in MLflow's descriptions: bounded, since databases limit a column, and without markup."""

from flows.tracking.mlflow_run import _annotators_text


def test_many_annotators_fit_into_the_column_of_any_database() -> None:
    annotators = {f"annotator-number-{number:04d}@a-company.example": number for number in range(1, 5001)}
    text = _annotators_text(annotators)
    assert len(text) < 2500
    assert text.startswith("annotator-number-5000@a-company.example (5000), ".replace("_", "\\_"))
    assert int(text.rpartition("and ")[2].split()[0]) + text.count("@") == 5000


def test_names_are_no_markup() -> None:
    text = _annotators_text({"![p](http://outside/x.png)": 2, "a|b": 1, "<img src=x>": 1, "\x1b]0;t\x07": 1})
    assert "![" not in text
    assert "](" not in text
    assert "<" not in text
    assert "\x1b" not in text
    assert "a\\|b (1)" in text
    assert _annotators_text({"jo@example.org": 3, "Ann Lee": 1}) == "jo@example.org (3), Ann Lee (1)"
