"""Audit of the records: git's objects, ledgers and tags, the promotion log, checked labels, and what MLflow holds.

A checked label names the label it was shown, and the delivery that asked for it. MLflow's runs, model versions,
artifacts and aliases are compared with the ledgers and the promotion log.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from flows.provenance.audit import AuditScope, Check, count_rounds, make_check
from flows.provenance.ledger_writer import stage_entry
from flows.provenance.snapshot import RoundSnapshot
from flows.runtime.process_env import tracking_uri
from flows.tracking.mlflow_metrics import flatten_metrics, flatten_params
from flows.tracking.mlflow_run import (
    ARTIFACTS,
    CANDIDATE,
    CHAMPION,
    INPUTS,
    LEDGER_SHA256,
    provenance_tags,
    silence_mlflow,
    use_tracking_uri,
    version_by_alias,
)
from flows.workspace import git
from flows.workspace.dvc_cache import MissingDataError, file_md5
from flows.workspace.git import is_ancestor, read_blob, read_tag_object
from flows.workspace.promotion_log import current_champion, first_corrupt_line
from flows.workspace.rounds import ledger_sha256
from tasks.data.paths import Workspace
from tasks.data.schemas import LabeledImage
from tasks.runtime.errors import UserError
from tasks.runtime.formatting import pluralize
from tasks.storage import files

LEDGER_TRAILER = "Ledger-SHA256: "
"""Line of a tag's message, followed by the digest of the ledger: whoever signs the tag signs the ledger."""
_SOURCE_PATHS = (
    "data",
    "rounds",
    "quarantine",
    "deliveries",
    "promotions.jsonl",
    "exports.jsonl",
    "params.yaml",
    "dvc.yaml",
)
_RELATIVE_TOLERANCE = 1e-9
"""Of a metric in MLflow."""
_DERIVED_PATHS = ("dvc.lock", "code_versions.json", "derived")


def record_checks(scope: AuditScope) -> Iterator[Check]:
    """Check everything that git keeps of the records."""
    counted = count_rounds(scope)
    yield make_check("git", "objects are undamaged", "every object", _fsck_findings(scope.workspace))
    if scope.is_complete:
        yield make_check("git", "workspace is what is committed", "every tracked file", _uncommitted_findings(scope))
    yield make_check("ledgers", "each holds the digest of the one before", counted, chain_findings(scope.rounds))
    yield make_check(
        "ledgers",
        "tags hold them",
        counted,
        [finding for snapshot in scope.rounds.values() for finding in _tag_findings(snapshot)],
    )
    yield _signature_check(scope)
    yield _promotion_log_check(scope)


def chain_findings(rounds: Mapping[int, RoundSnapshot]) -> list[str]:
    """Compare each ledger's digest of the previous ledger with that file; find missing ledgers.

    Args:
        rounds: finished rounds by number, from 0 to the newest to check.
    """
    numbers = sorted(rounds)
    found = [
        f"rounds/{git.round_tag(number)}.json: the file is missing"
        for number in range(numbers[-1])
        if number not in rounds
    ]
    for number in numbers:
        snapshot = rounds[number]
        recorded = snapshot.ledger["previous_ledger_sha256"]
        if number == 0 and recorded is not None:
            found.append(
                f"rounds/{snapshot.tag}.json: previous_ledger_sha256 is {recorded}, expected null in the first"
            )
        if number - 1 in rounds:
            actual = ledger_sha256(snapshot.workspace, number - 1)
            if actual != recorded:
                previous = f"rounds/{git.round_tag(number - 1)}.json"
                found.append(f"{previous}: SHA-256 is {actual}, expected {recorded} (ledger of {snapshot.tag})")
        campaign = git.campaign_id(snapshot.workspace.root)
        if snapshot.ledger["campaign"] != campaign:
            found.append(f"rounds/{snapshot.tag}.json: campaign is {snapshot.ledger['campaign']}, expected {campaign}")
    return found


def _fsck_findings(workspace: Workspace) -> list[str]:
    try:
        git.run_git(workspace.root, "fsck", "--full", "--no-dangling", "--no-progress")
    except UserError as error:
        return [f".git: {error.problem}"]
    return []


def _uncommitted_findings(scope: AuditScope) -> list[str]:
    """Find tracked files whose bytes differ from the commit; git's index is not trusted, every file is hashed."""
    root = scope.workspace.root
    protected = _SOURCE_PATHS if scope.is_deriving else (*_SOURCE_PATHS, *_DERIVED_PATHS)
    listed = git.run_git(root, "ls-tree", "-r", "-z", "HEAD", "--", *protected).split("\0")
    expected = {path: meta.split()[2] for meta, _, path in (line.partition("\t") for line in listed if line)}
    existing = [path for path in expected if (root / path).is_file()]
    hashed = (
        git.run_git(root, "hash-object", "--no-filters", "--stdin-paths", stdin="\n".join(existing)) if existing else ""
    )
    actual = dict(zip(existing, hashed.split(), strict=True))
    return [
        f"{path}: git object of the file is {actual.get(path, 'missing')}, expected {expected[path]} as committed"
        for path in expected
        if actual.get(path) != expected[path]
    ]


def _tag_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    root, name = snapshot.workspace.root, snapshot.tag
    tag = read_tag_object(root, name)
    if tag is None:
        yield f"tag {name}: there is no annotated tag of that name"
        return
    if tag.name != name:
        yield f"tag {name}: name in the tag object is {tag.name}, expected {name}"
    ledger_bytes = snapshot.workspace.ledger(snapshot.number).read_bytes()
    if read_blob(root, tag.commit, f"rounds/{name}.json") != ledger_bytes:
        yield f"rounds/{name}.json: the file in the workspace differs from the one at tag {name}"
    digest = ledger_sha256(snapshot.workspace, snapshot.number)
    trailers = [line.removeprefix(LEDGER_TRAILER) for line in tag.message.splitlines() if LEDGER_TRAILER in line]
    if not trailers or trailers[0] != digest:
        recorded = trailers[0] if trailers else "missing"
        yield f"tag {name}: {LEDGER_TRAILER.strip(': ')} is {recorded}, expected {digest} of rounds/{name}.json"
    revision = snapshot.ledger["git_revision"]
    if not is_ancestor(root, revision, tag.commit):
        yield f"tag {name}: commit is {tag.commit}, expected a descendant of {revision} (git_revision of its ledger)"


def _signature_check(scope: AuditScope) -> Check:
    signed = []
    for snapshot in scope.rounds.values():
        tag = read_tag_object(scope.workspace.root, snapshot.tag)
        if tag is not None and tag.signed:
            signed.append(snapshot.tag)
    if not signed:
        return Check("ledgers", "signatures of tags", "no tag", skip_reason="no tag is signed")
    found = []
    for name in signed:
        try:
            git.run_git(scope.workspace.root, "verify-tag", name, user_config=True)
        except UserError as error:
            found.append(f"tag {name}: {error.problem}")
    return make_check("ledgers", "signatures of tags", pluralize(len(signed), "signed tag"), found)


def _promotion_log_check(scope: AuditScope) -> Check:
    """Check the digests inside the log, and that the log at every tag is a prefix of today's."""
    workspace = scope.workspace
    path = workspace.promotions
    content = path.read_bytes() if path.is_file() else b""
    found = []
    try:
        line = first_corrupt_line(workspace)
    except UserError as error:
        line, found = None, [f"{path.name}: {error.problem}"]
    if line is not None:
        found.append(f"{path.name}: number or previous_sha256 of line {line} does not match the line before")
    for snapshot in scope.rounds.values():
        if not content.startswith(read_blob(workspace.root, snapshot.revision, path.name) or b""):
            found.append(f"{path.name}: lines that it has at {snapshot.tag} are altered or missing")
    counted = pluralize(content.count(b"\n"), "decision")
    return make_check("promotions", "the log is unaltered", counted, found)


def stage_record_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    """Compare a round's ledger with dvc.lock at its tag.

    Raises:
        MissingDataError: git has no dvc.lock there.
    """
    name, ledger = snapshot.tag, snapshot.ledger
    locked: dict[str, Any] = files.parse_yaml(snapshot.read_blob("dvc.lock"))["stages"]
    fingerprint = files.sha256_json(locked)
    if fingerprint != ledger["derivation_sha256"]:
        yield f"dvc.lock at {name}: fingerprint is {fingerprint}, expected {ledger['derivation_sha256']}"
    for stage, entry in ledger["stages"].items():
        actual = stage_entry(locked.get(stage, {}))
        for key in entry:
            if actual[key] != entry[key]:
                yield f"dvc.lock at {name}: {key} of stage {stage} differ from those of the ledger"


def mlflow_checks(scope: AuditScope) -> Iterator[Check]:
    """Check runs, metrics, parameters, inputs, model versions, artifacts and aliases."""
    uri = tracking_uri(scope.workspace.root)
    database = scope.workspace.root / "mlflow.db"
    if "MLFLOW_TRACKING_URI" not in os.environ and not database.is_file():
        reason = "there is no mlflow.db in the workspace, and MLFLOW_TRACKING_URI is not set"
        yield Check("MLflow", "runs and model versions", "nothing", skip_reason=reason)
        return
    silence_mlflow()
    with use_tracking_uri(uri):
        client = MlflowClient()
        for name, entity, findings in (
            ("metrics, parameters and inputs of runs", "run", lambda snapshot: _run_findings(client, snapshot)),
            ("tags of model versions", "model version", lambda snapshot: _version_findings(client, snapshot)),
            ("stored teachers and artifacts", "artifacts", _artifact_findings),
        ):
            found = [line for snapshot in scope.rounds.values() for line in _guarded(snapshot, entity, findings)]
            yield make_check("MLflow", name, count_rounds(scope), found)
        if scope.is_complete:
            found = _alias_findings(scope, client)
            yield make_check("MLflow", "aliases follow the promotion log", f"{CANDIDATE}, {CHAMPION}", found)


def _guarded(snapshot: RoundSnapshot, entity: str, findings: Callable[[RoundSnapshot], Iterator[str]]) -> Iterator[str]:
    try:
        yield from findings(snapshot)
    except MissingDataError as error:
        yield str(error)
    except MlflowException as error:
        yield f"MLflow {entity} of {snapshot.tag}: the answer is an error ({str(error).splitlines()[0]})"


def _run_findings(client: MlflowClient, snapshot: RoundSnapshot) -> Iterator[str]:
    run_id = snapshot.ledger["mlflow"]["run_id"]
    run = client.get_run(run_id)
    where = f"MLflow run {snapshot.tag}"
    if run.info.status != "FINISHED":
        yield f"{where}: status is {run.info.status}, expected FINISHED"
    yield from _metric_findings(where, snapshot, run.data.metrics)
    for name, value in flatten_params(snapshot.raw_params()).items():
        if not _is_same_value(run.data.params.get(name, ""), value):
            yield f"{where}: parameter {name} is {run.data.params.get(name)!r}, expected {value!r} of params.yaml"
    yield from _mlflow_tag_findings(where, snapshot, run.data.tags)
    yield from _input_findings(where, snapshot, run)


def _metric_findings(where: str, snapshot: RoundSnapshot, actual: Mapping[str, float]) -> Iterator[str]:
    measured = json.loads(snapshot.read_blob("derived/evaluate/metrics.json"))
    expected = flatten_metrics(snapshot.ledger["metrics"], measured, snapshot.ledger["times"]["stage_seconds"])
    for name, value in expected.items():
        if name not in actual:
            yield f"{where}: metric {name} is missing, expected {value!r}"
        elif abs(actual[name] - value) > _RELATIVE_TOLERANCE * max(1.0, abs(value)):
            yield f"{where}: metric {name} is {actual[name]!r}, expected {value!r}"


def _is_same_value(one: str, other: str) -> bool:
    """Compare a parameter in MLflow with one in params.yaml.

    14 and 14.0 are equal: params.yaml has what was typed, MLflow the value as the parameter's type formats it.
    """
    if one == other:
        return True
    try:
        return bool(files.parse_yaml(one) == files.parse_yaml(other))
    except yaml.YAMLError:
        return False


def _mlflow_tag_findings(where: str, snapshot: RoundSnapshot, tags: Mapping[str, str]) -> Iterator[str]:
    expected = {**provenance_tags(snapshot.ledger), LEDGER_SHA256: ledger_sha256(snapshot.workspace, snapshot.number)}
    for name, value in expected.items():
        if tags.get(name) != value:
            yield f"{where}: tag {name} is {tags.get(name)!r}, expected {value!r}"


def _input_findings(where: str, snapshot: RoundSnapshot, run: Run) -> Iterator[str]:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    logged = {item.dataset.name: {tag.key: tag.value for tag in item.tags} for item in inputs}
    for name, stage, path, _ in INPUTS:
        md5 = snapshot.ledger["stages"][stage]["deps"][path]
        actual = logged.get(name, {}).get("dvc_md5")
        if actual != md5:
            yield f"{where}: MD5 of input {name} is {actual}, expected {md5}"


def _version_findings(client: MlflowClient, snapshot: RoundSnapshot) -> Iterator[str]:
    mlflow_ref = snapshot.ledger["mlflow"]
    version = client.get_model_version(mlflow_ref["model_name"], str(mlflow_ref["model_version"]))
    yield from _mlflow_tag_findings(f"MLflow model version {mlflow_ref['model_version']}", snapshot, version.tags)


def _artifact_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    run_id = snapshot.ledger["mlflow"]["run_id"]
    where = f"MLflow run {snapshot.tag}"
    with tempfile.TemporaryDirectory() as folder:
        yield from _teacher_artifact_findings(snapshot, Path(folder))
        for path in ARTIFACTS:
            artifact = (Path(Path(path).parent.name) / Path(path).name).as_posix()
            local = download_artifacts(run_id=run_id, artifact_path=artifact, dst_path=folder)
            actual, expected = file_md5(Path(local)), _expected_md5(snapshot, path)
            if expected is not None and actual != expected:
                yield f"{where}: MD5 of artifact {artifact} is {actual}, expected {expected} of {path}"
        artifact = f"ledger/{snapshot.tag}.json"
        local = download_artifacts(run_id=run_id, artifact_path=artifact, dst_path=folder)
        digest = ledger_sha256(snapshot.workspace, snapshot.number)
        actual = files.sha256_file(Path(local))
        if actual != digest:
            yield f"{where}: SHA-256 of artifact {artifact} is {actual}, expected {digest}"


def _teacher_artifact_findings(snapshot: RoundSnapshot, folder: Path) -> Iterator[str]:
    mlflow_ref = snapshot.ledger["mlflow"]
    uri = f"models:/{mlflow_ref['model_name']}/{mlflow_ref['model_version']}"
    local = Path(download_artifacts(artifact_uri=uri, dst_path=str(folder / "model")))
    digests = sorted({files.sha256_file(path) for path in local.rglob("teacher.pth")})
    expected = snapshot.ledger["teacher"]["sha256"]
    if digests != [expected]:
        where = f"MLflow model version {mlflow_ref['model_version']}"
        yield f"{where}: SHA-256 of teacher.pth is {', '.join(digests) or 'missing'}, expected {expected}"


def _expected_md5(snapshot: RoundSnapshot, path: str) -> str | None:
    """MD5 that the source of an artifact had in the round; None where it is missing, which another check reports."""
    try:
        if path == "params.yaml":  # in git, and no stage's output
            return hashlib.md5(snapshot.read_blob(path), usedforsecurity=False).hexdigest()
        return snapshot.md5(path)
    except MissingDataError:
        return None


def _alias_findings(scope: AuditScope, client: MlflowClient) -> list[str]:
    champion = current_champion(scope.workspace)
    mlflow_ref = scope.newest.ledger["mlflow"]
    found = []
    for alias, expected in (
        (CHAMPION, champion.version if champion else None),
        (CANDIDATE, mlflow_ref["model_version"]),
    ):
        current = version_by_alias(client, mlflow_ref["model_name"], alias)
        actual = None if current is None else int(current.version)
        if actual != expected:
            found.append(f"MLflow alias {alias}: version is {actual}, expected {expected}")
    return found


def relabel_checks(scope: AuditScope) -> Iterator[Check]:
    """Check that every checked label can be followed back to the label it superseded or confirmed."""
    newest = scope.newest
    answers = [
        (number, label)
        for number in range(newest.number + 1)
        for batch in [newest.label_batch(number)]
        for label in (*batch.images, *batch.other_annotations)
    ]
    checks = [(number, label) for number, label in answers if label.checks_batch is not None]
    answered = {(number, label.image_id) for number, label in answers}
    found = [finding for number, label in checks for finding in _relabel_findings(newest, number, label, answered)]
    yield make_check("labels", "checks name the label they were shown", pluralize(len(checks), "check"), found)


def _relabel_findings(
    newest: RoundSnapshot, number: int, label: LabeledImage, answered: Set[tuple[int, str]]
) -> Iterator[str]:
    where = f"data/labels/batch-{number:04d}.json: image {label.image_id}: checks_batch is {label.checks_batch}"
    if (
        label.checks_batch is None
        or label.checks_batch >= number
        or (label.checks_batch, label.image_id) not in answered
    ):
        yield f"{where}, expected an earlier batch with its label"
    task = newest.manifest(label.offered_batch).get(label.image_id)
    asked = None if task is None else task.checks_batch
    if asked != label.checks_batch:
        yield f"{where}, expected {asked} as in delivery {label.offered_batch}"
