"""Inference on two Ray nodes, some of which die: the local engine's bytes in the end, and no finished piece twice."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.data.paths import Workspace
from tasks.data.schemas import INDEX
from tasks.model.engines.ray_cluster import ClusterUnreachableError
from tasks.storage import files
from tests.tasks import test_detection_stages as stages
from tests.tasks.model.engines.campaign import Campaign, needs_ray
from tests.tasks.model.engines.ray_nodes import RayNodes, ray_nodes

pytestmark = [pytest.mark.cluster, needs_ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A head with one CPU: room for two workers."""
    with ray_nodes(tmp_path_factory.mktemp("nodes")) as nodes:
        nodes.start(head=True)
        yield nodes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Campaign, dict[str, str]]:
    """A campaign of 40 images, and the digests of what the local engine makes of them."""
    campaign = Campaign(tmp_path_factory.mktemp("campaign"), num_images=40)
    campaign.run("infer.engine=local")
    return campaign, campaign.outputs()


@pytest.fixture
def campaign(finished: tuple[Campaign, dict[str, str]], head: RayNodes) -> Campaign:
    one, _ = finished
    one.env = {name: head.env[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    for path in one.workspace.derived("infer").iterdir():
        path.unlink()
    return one


def settings(head: RayNodes) -> tuple[str, str]:
    return "infer.engine=ray", f"infer.engine_address='{head.address}'"


def read_until(process: subprocess.Popen[str], words: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError("".join(lines) + (process.stderr.read() if process.stderr else ""))


def test_a_node_that_dies_costs_only_its_pieces(
    campaign: Campaign, head: RayNodes, finished: tuple[Campaign, dict[str, str]]
) -> None:
    second = head.start()
    process = campaign.start(*settings(head))
    lines = read_until(process, "infer piece 2/")
    assert "2 nodes alive with 2 CPUs" in "".join(lines)
    head.kill(second)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stdout + stderr
    assert f"infer piece {campaign.num_pieces}/{campaign.num_pieces}:" in stdout
    assert campaign.outputs() == finished[1]


def test_after_the_driver_is_killed_only_the_rest_is_detected(
    campaign: Campaign, head: RayNodes, finished: tuple[Campaign, dict[str, str]]
) -> None:
    process = campaign.start(*settings(head))
    read_until(process, "infer piece 3/")
    process.kill()
    process.communicate()
    kept = campaign.finished_pieces()
    assert 3 <= len(kept) < campaign.num_pieces
    done = campaign.run(*settings(head))
    number = int(done.stdout.split(" pieces")[0].split()[-1])  # an actor may have finished one more before it ended
    assert number <= campaign.num_pieces - len(kept)
    assert campaign.outputs() == finished[1]


def test_images_are_opened_on_the_nodes(head: RayNodes, tiny_campaign: Workspace) -> None:
    """The stage's files are those of the local engine; an image that is cut off is set aside by both."""
    uri = files.read_table(tiny_campaign.index, INDEX)["uri"][0].as_py()
    path = tiny_campaign.root / uri
    path.write_bytes(path.read_bytes()[:300])
    digests = []
    for chosen in (("infer.engine=local",), settings(head)):
        stages.write_params(tiny_campaign.root, *chosen)
        (tiny_campaign.scratch("seen") / "images.jsonl").unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tasks.prepare"],
            cwd=tiny_campaign.root, env=head.env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        digests.append(files.sha256_tree(tiny_campaign.derived("prepare")))
    assert "prepare piece 1/1:" in done.stdout
    assert digests[0] == digests[1]


def probe(campaign: Campaign, head: RayNodes, token: str) -> subprocess.CompletedProcess[str]:
    stages.write_params(campaign.workspace.root, "infer.shard_size=2", *settings(head))
    return subprocess.run(
        [sys.executable, "-m", "tasks.model.engines.ray_probe"],
        cwd=campaign.workspace.root,
        env={**head.env, "RAY_AUTH_TOKEN": token},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_doctor_sees_nodes_files_and_code_and_a_wrong_token(campaign: Campaign, head: RayNodes) -> None:
    right = probe(campaign, head, head.env["RAY_AUTH_TOKEN"])
    assert right.returncode == 0, right.stderr
    facts = json.loads(right.stdout.splitlines()[-1])
    assert (facts["nodes"], facts["problems"]) == ("1 nodes alive with 1 CPUs and 0 GPUs", [])
    assert facts["workers"] == 2
    wrong = probe(campaign, head, "0" * 64)
    assert wrong.returncode == ClusterUnreachableError.exit_code
    assert "cannot be joined" in wrong.stderr.splitlines()[-1]
    assert list(Path(campaign.workspace.scratch("doctor")).iterdir()) == []
