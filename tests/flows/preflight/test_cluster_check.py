"""What the doctor says of a cluster, by what the probe has found."""

from types import SimpleNamespace
from typing import Any

import pytest

from flows.preflight import services
from flows.preflight.runner import CheckSkipped
from tasks.runtime.errors import UserError

FACTS = {"version": "2.60.0", "nodes": "2 nodes alive with 4 CPUs and 0 GPUs", "workers": 4, "problems": []}


def check(monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any] | UserError, workers: int | str = "auto") -> Any:
    def run_probe(*_args: Any, **_settings: Any) -> dict[str, Any]:
        if isinstance(facts, UserError):
            raise facts
        return facts

    monkeypatch.setattr(services, "run_probe", run_probe)
    infer = SimpleNamespace(engine="ray", engine_workers=workers)
    context: Any = SimpleNamespace(params=SimpleNamespace(infer=infer), workspace=SimpleNamespace(root="."))
    return services.check_cluster(context)


@pytest.mark.parametrize(
    ("facts", "workers", "state", "words"),
    [
        (FACTS, "auto", "pass", "room for 4 workers, all nodes see the campaign"),
        (FACTS, 4, "pass", "Ray 2.60.0, 2 nodes alive"),
        (FACTS, 6, "warn", "room for 4 of 6 workers"),
        (FACTS | {"workers": 0}, "auto", "fail", "no node has room for a worker"),
        (
            FACTS | {"problems": ["node a does not see it", "node b"]},
            "auto",
            "fail",
            "node a does not see it and 1 more",
        ),
        (UserError("probe", "the cluster's token is missing"), "auto", "fail", "the cluster's token is missing"),
    ],
)
def test_findings(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any] | UserError, workers: int | str, state: str, words: str
) -> None:
    finding = check(monkeypatch, facts, workers)
    assert finding.state == state
    assert words in finding.message
    assert bool(finding.fix) == (state != "pass")


def test_without_a_cluster_nothing_is_tried() -> None:
    context: Any = SimpleNamespace(params=SimpleNamespace(infer=SimpleNamespace(engine="local")))
    assert services.check_cluster(context).state == "pass"


def test_broken_parameters_are_another_checks_business() -> None:
    class Broken:
        @property
        def params(self) -> None:
            raise UserError("params.yaml", "seed is -7")

    context: Any = Broken()
    with pytest.raises(CheckSkipped):
        services.check_cluster(context)
