"""The files of examples/extend in a campaign, and what is refused in place of a class of one's own."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from flows.annotation.providers import create_provider
from flows.annotation.providers.base import AnnotationBatch, LabelingProgress, LabelProvider, ProviderError
from flows.annotation.providers.oracle import OracleProvider
from flows.preflight.campaign import check_parameters
from flows.preflight.runner import CheckContext
from tasks.data.paths import Workspace
from tasks.params import load_params, validate_params
from tasks.params.stages import SelectParams
from tasks.runtime.errors import UserError
from tasks.runtime.extensions import load_extension
from tasks.selection.pool_view import PoolView
from tasks.selection.strategies.base import Strategy
from tasks.selection.strategies.registry import create_strategy

EXAMPLES = Path(__file__).parents[2] / "examples" / "extend"
PROVIDER, STRATEGY = "own_provider:JsonLinesProvider", "own_strategy:UncertaintyPerMinute"


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    """Modules and path entries of one test's campaign are not those of the next."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.split(".")[0].startswith("own_"):
            del sys.modules[name]


@pytest.fixture
def campaign(tiny_campaign: Workspace) -> Workspace:
    """A campaign with the two files of the examples, named in its params.yaml."""
    for source in EXAMPLES.glob("own_*.py"):
        shutil.copy(source, tiny_campaign.root)
    content = yaml.safe_load(tiny_campaign.params.read_text())
    content["select"]["strategy"] = STRATEGY
    content["provider"] |= {"kind": PROVIDER, "url": "tool"}
    tiny_campaign.params.write_text(yaml.safe_dump(content))
    return tiny_campaign


@pytest.fixture
def delivery(tmp_path: Path) -> AnnotationBatch:
    """Batch 1 with the images a and b."""
    folder = tmp_path / "deliveries" / "batch-0001"
    folder.mkdir(parents=True)
    (folder / "manifest.jsonl").write_text('{"image_id": "a"}\n{"image_id": "b"}\n')
    return AnnotationBatch(1, "key", folder, ("a", "b"), "2026-01-01T00:00:00+00:00", "prepared", None)


def test_the_strategy_ranks_by_uncertainty_per_minute(campaign: Workspace) -> None:
    candidates = pd.DataFrame(
        {"uncertainty": [0.9, 0.6, 0.2], "expected_minutes": [3.0, 1.0, 1.0]},
        index=pd.Index(["a", "b", "c"], name="image_id"),
    )
    strategy = create_strategy(load_params(campaign.params).select, campaign.root)
    assert (
        strategy.rank(PoolView(candidates), seed=1)
        == strategy.rank(PoolView(candidates[::-1]), seed=2)
        == ["b", "a", "c"]
    )
    reason = strategy.reason(candidates.iloc[1], position=1, num_candidates=3)
    assert reason == "uncertainty per minute 0.60 (rank 1 of 3): uncertainty 0.60, 1.0 minutes"


def test_the_provider_delivers_collects_and_withdraws_again_and_again(
    campaign: Workspace, delivery: AnnotationBatch
) -> None:
    provider = create_provider(campaign, load_params(campaign.params))
    with pytest.raises(ProviderError, match="the folder is missing"):
        provider.check()
    tool = campaign.root / "tool"
    tool.mkdir()
    assert provider.deliver(delivery) == provider.deliver(delivery) == "batch-0001.tasks.jsonl"
    assert len((tool / "batch-0001.tasks.jsonl").read_text().splitlines()) == 2
    assert (provider.collect(delivery), provider.status(delivery)) == ([], LabelingProgress(finished=0, open=2))
    raw = {"image_id": "b", "status": "empty", "boxes": [], "annotator": "x"}
    (tool / "batch-0001.annotations.jsonl").write_text(json.dumps(raw) + "\n")
    assert (provider.collect(delivery), provider.status(delivery)) == ([raw], LabelingProgress(finished=1, open=1))
    provider.withdraw(delivery, ["a"])
    provider.withdraw(delivery, [])
    assert json.loads((tool / "batch-0001.withdrawn.json").read_text()) == ["a"]
    assert provider.collect(replace(delivery, batch=2)) == []
    (tool / "batch-0001.annotations.jsonl").write_text("{")
    with pytest.raises(ProviderError, match="not JSON"):
        provider.collect(delivery)


def test_the_check_before_a_run_loads_the_strategy(campaign: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_parameters(CheckContext(campaign)).state == "pass"
    campaign.params.write_text(campaign.params.read_text().replace(STRATEGY, "own_strategy:Missing"))
    assert check_parameters(CheckContext(campaign)).state == "pass"  # nobody trusts the campaign: none of its code runs
    monkeypatch.setenv("GLEANER_TRUSTED_CAMPAIGN", str(campaign.root.resolve()))  # as `gleaner run` does
    with pytest.raises(UserError) as caught:
        check_parameters(CheckContext(campaign))
    assert "select.strategy" in caught.value.problem


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise RuntimeError('broken')", "can be imported (RuntimeError: broken)"),
        ("def", "can be imported (SyntaxError"),
        ("Other = 1", "the name of a class in own_module"),
        ("Own = 1", "the name of a class in own_module"),
        ("class Own: pass", "a class with the methods rank, reason"),
        ("class Own:\n def rank(self, table): ...\n def reason(self, **kwargs): ...", "method is rank("),
        (
            "class Own:\n def __init__(self, more): ...\n def rank(self, table, *, seed): ...\n"
            " def reason(self, row, **kwargs): ...",
            "can be created (TypeError",
        ),
    ],
)
def test_a_class_that_is_no_strategy(tmp_path: Path, code: str, expected: str) -> None:
    (tmp_path / "own_module.py").write_text(code)
    with pytest.raises(UserError) as caught:
        create_strategy(
            SelectParams(strategy="own_module:Own", objectives={}, portfolio=["uncertainty", "random"], random_frac=0),
            tmp_path,
        )
    assert caught.value.problem.startswith("select.strategy is 'own_module:Own', expected ")
    assert expected in caught.value.problem


def test_a_provider_without_a_name(tmp_path: Path) -> None:
    names = ("check", "deliver", "status", "collect", "withdraw", "refresh")
    methods = "\n".join(f" def {name}(self, *args): ..." for name in names)
    (tmp_path / "own_module.py").write_text(f"class Own:\n{methods}\n")
    with pytest.raises(UserError) as caught:
        load_extension("provider.kind", "own_module:Own", LabelProvider, tmp_path)  # type: ignore[type-abstract]
    assert "the attributes name" in caught.value.problem


def test_a_file_of_the_campaign_never_replaces_a_library(tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("class Own: pass")
    with pytest.raises(UserError, match="the name of a class in colorsys"):
        load_extension("select.strategy", "colorsys:Own", Strategy, tmp_path)  # type: ignore[type-abstract]


@pytest.mark.parametrize("value", ["best", "a:b:c", "../a:B", "a.:B", "a:", ":B", "a b:C", "a:B\n"])
def test_other_names_are_refused_and_nothing_is_imported(campaign: Workspace, value: str) -> None:
    for section, key in (("select", "strategy"), ("provider", "kind")):
        content = yaml.safe_load(campaign.params.read_text())
        content[section][key] = value
        with pytest.raises(UserError) as caught:
            validate_params(content, "params.yaml")
        assert caught.value.problem.startswith(f"{section}.{key} is {value!r}, expected ")
        assert "package.module:ClassName" in caught.value.problem
    assert not any(name.startswith("own_") for name in sys.modules)


def test_the_built_in_kinds_are_as_before(tiny_campaign: Workspace) -> None:
    assert isinstance(create_provider(tiny_campaign, load_params(tiny_campaign.params)), OracleProvider)
