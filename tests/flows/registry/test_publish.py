"""Publishing into a real MLflow database, killed at every step and called again."""

import shutil
from pathlib import Path
from typing import Any

import mlflow.utils.environment
import pytest
from mlflow import MlflowClient

import flows.registry.promotion
import flows.registry.publish
import flows.tracking.mlflow_run
from flows.registry.publish import publish, push
from flows.runtime.process_env import tracking_uri
from flows.tracking.mlflow_metrics import round_metrics, round_params
from flows.workspace import dvc, git
from flows.workspace.promotion_log import first_corrupt_line, read_decisions
from flows.workspace.rounds import read_ledger
from tasks.data.paths import Workspace
from tasks.params import load_params
from tasks.storage import files
from tests.flows.copies import copy_as_own
from tests.flows.small_campaign import mlflow_client

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def derived_template(
    two_rounds: Workspace, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Workspace:
    """Round 1 derived and not yet published; MLflow's database is new."""
    workspace = copy_as_own(two_rounds, tmp_path_factory.mktemp("derived") / "tiny")
    git.run_git(workspace.root, "reset", "--quiet", "--mixed", "round-0001~2")  # before `Derive round 1`
    git.run_git(workspace.root, "checkout", "--quiet", "HEAD", "--", "promotions.jsonl")
    git.run_git(workspace.root, "tag", "--delete", "round-0001")
    shutil.rmtree(workspace.delivery(2))
    workspace.ledger(1).unlink()
    shutil.rmtree(workspace.root / "mlartifacts")
    (workspace.root / "mlflow.db").unlink()
    shutil.copy(empty_database, workspace.root)
    assert dvc.is_clean(workspace.root)
    return workspace


@pytest.fixture
def derived(derived_template: Workspace, tmp_path: Path) -> Workspace:
    return copy_as_own(derived_template, tmp_path / "tiny")


def collect_state(workspace: Workspace) -> dict[str, Any]:
    """What MLflow knows, without ids and times."""
    client = mlflow_client(workspace)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(ids)
    models = client.search_logged_models(ids)
    return {
        "runs": [(run.info.run_name, run.info.status, run.data.tags["gleaner.round"]) for run in runs],
        "metrics": [run.data.metrics for run in runs],
        "histories": [
            [len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics] for run in runs
        ],
        "inputs": [sorted(item.dataset.name for item in run.inputs.dataset_inputs) for run in runs],
        "versions": [
            (str(version.version), version.tags["gleaner.round"]) for version in client.search_model_versions()
        ],
        "models": len(models),
    }


def test_a_round_is_logged_whole(derived: Workspace) -> None:
    published = publish(derived, load_params(derived.params), 1)
    assert published.message.startswith(
        "Round 1 is finished: 8 labels, 8 boxes, teacher mAP 60.0. Version 1 is champion"
    )
    client = mlflow_client(derived)
    ledger = read_ledger(derived, 1)
    run = client.get_run(ledger["mlflow"]["run_id"])
    metrics = run.data.metrics
    assert run.info.status == "FINISHED"
    assert (metrics["teacher/mAP"], metrics["labels"], metrics["boxes"]) == (60.0, 8.0, 8.0)
    assert (metrics["teacher/AP/bright"], metrics["student/AP/bright"]) == (60.0, 50.0)
    assert "teacher/AP/dark" not in metrics  # unknown is not zero
    assert {f"weight_quantiles/entropy/{q}" for q in ("q10", "q50", "q90")} <= set(metrics)
    assert {"seconds/train", "class_weights/positive/bright", "spearman_equal", "mean_weights/overlap"} <= set(metrics)
    (point,) = client.get_metric_history(run.info.run_id, "teacher/mAP")
    assert point.step == 1
    assert run.data.params["train.iterations"] == str(load_params(derived.params).train.iterations)
    assert run.data.params["classes"] == "['bright', 'dark']"
    paths = {
        path.path for folder in client.list_artifacts(run.info.run_id) for path in _children_of(client, run, folder)
    }
    assert {
        "report/report.html",
        "weigh/dwa.json",
        "select/selection.parquet",
        "evaluate/metrics.json",
        "ledger/round-0001.json",
    } <= paths


def test_mlflow_does_not_look_at_every_installed_file(derived: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took 3 s of a core; this fails where MLflow has renamed what is left out."""
    looks: list[object] = []
    monkeypatch.setattr(mlflow.utils.environment, "warn_dependency_requirement_mismatches", looks.append)
    publish(derived, load_params(derived.params), 1)
    assert looks == []
    mlflow.utils.environment.warn_dependency_requirement_mismatches(["numpy"])
    assert looks == [["numpy"]]


def _children_of(client: MlflowClient, run: Any, entry: Any) -> list[Any]:
    return client.list_artifacts(run.info.run_id, entry.path) if entry.is_dir else [entry]


def test_inputs_lead_back_to_dvc_and_git(derived: Workspace) -> None:
    publish(derived, load_params(derived.params), 1)
    ledger = read_ledger(derived, 1)
    run = mlflow_client(derived).get_run(ledger["mlflow"]["run_id"])
    tags = {item.dataset.name: {tag.key: tag.value for tag in item.tags} for item in run.inputs.dataset_inputs}
    assert set(tags) == {"pool", "labels", "validation", "calibration"}
    assert tags["labels"]["dvc_md5"] == ledger["stages"]["assemble"]["deps"]["data/labels"]
    revision = tags["labels"]["git_revision"]
    assert revision == ledger["git_revision"] == run.data.tags["gleaner.git_revision"]
    assert "dvc.lock" in git.run_git(derived.root, "show", "--name-only", "--format=", revision)


def test_ledger_run_and_version_refer_to_each_other(derived: Workspace) -> None:
    publish(derived, load_params(derived.params), 1)
    ledger, client = read_ledger(derived, 1), mlflow_client(derived)
    version = client.get_model_version(ledger["mlflow"]["model_name"], str(ledger["mlflow"]["model_version"]))
    run = client.get_run(ledger["mlflow"]["run_id"])
    expected = {
        "gleaner.ledger_sha256": files.sha256_file(derived.ledger(1)),
        "gleaner.git_revision": ledger["git_revision"],
        "gleaner.tag": "round-0001",
        "gleaner.parent_round": "round-0000",
        "gleaner.teacher_sha256": files.sha256_file(derived.derived("train") / "teacher.pth"),
        "gleaner.labels_md5": ledger["stages"]["assemble"]["deps"]["data/labels"],
    }
    for tags in (run.data.tags, version.tags):
        assert {name: tags.get(name) for name in expected} == expected
    words = run.data.tags["mlflow.note.content"]
    assert words.startswith("round-0001: 8 labels, teacher mAP 60.0. ")
    assert "| Labels | 8 images, the calibration set included, and 8 boxes |" in words
    assert git.run_git(derived.root, "tag", "--list", "--format=%(contents)", "round-0001").endswith(
        f"Ledger-SHA256: {expected['gleaner.ledger_sha256']}"
    )


def test_a_ledger_says_what_the_round_was_made_of(derived: Workspace) -> None:
    publish(derived, load_params(derived.params), 1)
    ledger = read_ledger(derived, 1)
    assert [(batch["batch"], batch["annotators"]) for batch in ledger["labels"]] == [
        (0, {"imported": 3}), (1, {"oracle": 3})
    ]  # fmt: skip
    assert ledger["labels"][1]["sha256"] == ledger["labels_sha256"]
    assert ledger["detections_at_selection_sha256"]["1"] == files.sha256_file(derived.detections_at_selection_batch(1))
    teacher_before = files.sha256_file(derived.warm_start / "teacher.pth")
    assert ledger["selection_model"] == {"round": 0, "model_version": 1, "sha256": teacher_before}
    assert ledger["teacher"]["started_from_sha256"] == teacher_before  # train.init_from is previous_round
    lock = Path(__file__).parents[3] / "requirements.lock"
    assert ledger["environment"]["requirements_lock_sha256"] == files.sha256_file(lock)
    assert ledger["environment"]["gleaner"]["dirty"] in (True, False)


def test_the_teacher_is_a_version_with_both_aliases(derived: Workspace) -> None:
    publish(derived, load_params(derived.params), 1)
    ledger = read_ledger(derived, 1)["mlflow"]
    client = mlflow_client(derived)
    for alias in ("candidate", "champion"):
        assert int(client.get_model_version_by_alias(ledger["model_name"], alias).version) == ledger["model_version"]
    (first, second) = read_decisions(derived)
    assert (first.reason, second.action) == ("there is no champion yet", "promote")
    assert second.gate is not None
    assert second.gate["candidate_map"] - second.gate["champion_map"] == 30.0


STEPS = [
    (flows.tracking.mlflow_run, "_log_round"),
    (flows.tracking.mlflow_run, "_log_inputs"),
    (flows.tracking.mlflow_run, "register_teacher"),
    (flows.tracking.mlflow_run, "_log_model"),
    (flows.registry.publish, "write_ledger"),
    (flows.tracking.mlflow_run.RoundRun, "record_ledger"),
    (flows.registry.promotion, "append_decision"),
    (flows.registry.publish, "sync_alias"),
    (git, "set_tag"),
]


class Killed(BaseException):
    """As SIGKILL, as far as one process can be killed and go on."""


@pytest.mark.parametrize(
    ("when", "place"),
    [*(("before", step) for step in STEPS), ("after", STEPS[3]), ("after", STEPS[6]), ("after", STEPS[-1])],
    ids=lambda value: value if isinstance(value, str) else value[1],
)
def test_publishing_killed_anywhere_ends_the_same(
    derived: Workspace, when: str, place: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params(derived.params)
    original = getattr(*place)

    def die(*arguments: Any, **named: Any) -> None:
        if when == "after":
            original(*arguments, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*place, die)
        with pytest.raises(Killed):
            publish(derived, params, 1)
    for _ in range(2):
        publish(derived, params, 1)
    found = collect_state(derived)
    assert found["runs"] == [("round-0001", "FINISHED", "1")]
    assert found["versions"] == [("1", "1")]
    assert found["models"] == 1
    assert [made.model.round for made in read_decisions(derived)] == [0, 1]
    assert first_corrupt_line(derived) is None
    name = read_ledger(derived, 1)["mlflow"]["model_name"]
    assert str(mlflow_client(derived).get_model_version_by_alias(name, "champion").version) == "1"
    assert set(found["histories"][0]) == {1}
    assert found["inputs"] == [["calibration", "labels", "pool", "validation"]]
    assert git.run_git(derived.root, "tag").splitlines() == ["round-0000", "round-0001"]
    assert git.run_git(derived.root, "status", "--porcelain") == ""
    subjects = git.run_git(derived.root, "log", "--format=%s").splitlines()
    assert sum(subject.startswith(("Derive round 1", "Round 1")) for subject in subjects) == 2


def test_a_finished_round_is_left_alone(after_two_rounds: Workspace) -> None:
    before = git.head_commit(after_two_rounds.root), collect_state(after_two_rounds)
    publish(after_two_rounds, load_params(after_two_rounds.params), 1)
    assert (git.head_commit(after_two_rounds.root), collect_state(after_two_rounds)) == before


def test_a_run_cut_off_and_derived_anew_is_closed(derived: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(derived.params)
    with monkeypatch.context() as patch:
        patch.setattr(flows.registry.publish, "write_ledger", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            publish(derived, params, 1)
    derived.params.write_text(derived.params.read_text().replace("thumbnails: 12", "thumbnails: 3"))
    dvc.run_dvc(derived.root, "repro", "--single-item", "report")
    publish(derived, load_params(derived.params), 1)
    client = mlflow_client(derived)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    statuses = {run.info.run_id: run.info.status for run in runs}
    kept = read_ledger(derived, 1)["mlflow"]["run_id"]
    assert statuses.pop(kept) == "FINISHED"
    assert list(statuses.values()) == ["KILLED"]
    (closed,) = [run for run in runs if run.info.run_id != kept]
    assert closed.data.tags["gleaner.superseded_by"] == client.get_run(kept).data.tags["gleaner.round_key"]


def test_a_server_the_user_names_is_used_and_stays_named(
    derived: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    (derived.root / "mlflow.db").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    publish(derived, load_params(derived.params), 1)
    assert not (derived.root / "mlflow.db").exists()
    assert len(MlflowClient(uri).search_model_versions()) == 1
    assert tracking_uri(Path("/somewhere")) == uri


def test_data_goes_to_the_default_remote_and_comes_back(after_two_rounds: Workspace, tmp_path: Path) -> None:
    root = after_two_rounds.root
    assert not push(after_two_rounds)
    dvc.run_dvc(root, "remote", "add", "--quiet", "--local", "--default", "store", str(tmp_path / "store"))
    assert push(after_two_rounds)
    shutil.rmtree(root / ".dvc" / "cache")
    shutil.rmtree(root / "derived" / "train")
    for tag, content in (("round-0000", b"teacher of 5 labels"), ("round-0001", b"teacher of 8 labels")):
        git.run_git(root, "checkout", "--quiet", "--force", tag)
        dvc.run_dvc(root, "pull", "--quiet", "--remote", "store", "--force")
        assert (root / "derived" / "train" / "teacher.pth").read_bytes() == content


def test_class_names_mlflow_refuses_stay_apart(two_rounds: Workspace, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    per_class = {"a(b": 1.0, "a)b": 2.0, "größe": None, "../x": 3.0, ".": 4.0, "y/": 5.0, "": 6.0, "z" * 99: 7.0}
    protocols = {"voc12": {"mAP": 8.0, "per_class": {"a(b": None}}, "confusion": {"matrix": [[1, 2], [3, 4]]}}
    measured = {"teacher": {"per_class": per_class}, "student": {"per_class": {}}}
    measured |= {"protocols": {"teacher": protocols, "student": {}}}
    files.write_json(workspace.derived("evaluate") / "metrics.json", measured)
    figures = {"round": 3, "labels": 5, "teacher": {"mAP": 1.5, "per_class": per_class}, "dwa_reason": "words"}
    assert round_metrics(workspace, 3, figures) == {
        "labels": 5.0,
        "teacher/mAP": 1.5,
        "teacher/AP/a_b": 1.0,
        "teacher/AP/a_b 2": 2.0,
        "teacher/AP/.._x": 3.0,
        "teacher/AP/_.": 4.0,
        "teacher/AP/y_": 5.0,
        "teacher/AP/_": 6.0,
        f"teacher/AP/{'z' * 80}": 7.0,
        "teacher/voc12/mAP": 8.0,
    }


def test_params_are_logged_flat(two_rounds: Workspace) -> None:
    logged = round_params(load_params(two_rounds.params))
    assert logged["ssl.ema_decay"] == str(load_params(two_rounds.params).ssl.ema_decay)
