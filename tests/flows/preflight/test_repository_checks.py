import pytest

from flows.preflight import campaign
from flows.preflight.runner import CheckContext
from flows.workspace import git
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files


def test_a_new_campaign_is_in_order(small_campaign: Workspace) -> None:
    for check in (campaign.check_branch, campaign.check_uncommitted, campaign.check_rounds):
        assert check(CheckContext(small_campaign)).state == "pass"


def test_an_old_commit_is_checked_out(small_campaign: Workspace) -> None:
    git.run_git(small_campaign.root, "checkout", "--quiet", "--detach")
    with pytest.raises(UserError, match="expected a branch"):
        campaign.check_branch(CheckContext(small_campaign))


def test_a_merge_nobody_finished(small_campaign: Workspace) -> None:
    root = small_campaign.root
    for key, value in (("user.name", "Ann"), ("user.email", "ann@example.org")):
        git.run_git(root, "config", key, value)
    for branch, text in (("other", "a"), ("main", "b")):
        git.run_git(root, "switch", "--quiet", *(["--create"] if branch == "other" else []), branch)
        (root / ".dvcignore").write_text(text)
        git.run_git(root, "commit", "--quiet", "--all", "--message", branch)
    with pytest.raises(UserError, match="conflict"):
        git.run_git(root, "merge", "other")
    finding = campaign.check_branch(CheckContext(small_campaign))
    assert (finding.state, finding.message) == ("fail", "a merge is not finished")
    git.run_git(root, *finding.fix.rsplit("git ", 1)[1].split())
    assert campaign.check_branch(CheckContext(small_campaign)).state == "pass"


def test_uncommitted_sources_are_named(small_campaign: Workspace) -> None:
    small_campaign.label_batch(0).write_text("{}")
    (small_campaign.labels / "batch-0001.json").write_text("{}")
    finding = campaign.check_uncommitted(CheckContext(small_campaign))
    assert finding.state == "warn"
    assert "data/labels/batch-0000.json" in finding.message
    assert "data/labels/batch-0001.json" in finding.message


@pytest.mark.integration
def test_rounds_in_order(after_two_rounds: Workspace) -> None:
    git.run_git(after_two_rounds.root, "tag", "round-about")  # somebody's own
    assert campaign.check_rounds(CheckContext(after_two_rounds)).message.startswith("2 rounds")


@pytest.mark.integration
def test_a_ledger_without_its_tag(after_two_rounds: Workspace) -> None:
    git.run_git(after_two_rounds.root, "tag", "--delete", "round-0000")
    finding = campaign.check_rounds(CheckContext(after_two_rounds))
    assert (finding.state, finding.message) == ("fail", "the ledger of round-0000 has no tag")


@pytest.mark.integration
def test_the_newest_round_may_be_on_its_way(after_two_rounds: Workspace) -> None:
    git.run_git(after_two_rounds.root, "tag", "--delete", "round-0001")
    assert campaign.check_rounds(CheckContext(after_two_rounds)).state == "warn"


@pytest.mark.integration
def test_a_tag_without_its_ledger_and_the_way_back(after_two_rounds: Workspace) -> None:
    after_two_rounds.ledger(0).unlink()
    finding = campaign.check_rounds(CheckContext(after_two_rounds))
    assert (finding.state, finding.message) == ("fail", "round-0000 has no ledger")
    git.run_git(after_two_rounds.root, *finding.fix.rsplit("git ", 1)[1].split())
    assert campaign.check_rounds(CheckContext(after_two_rounds)).state == "pass"


@pytest.mark.integration
def test_a_ledger_somebody_altered(after_two_rounds: Workspace) -> None:
    path = after_two_rounds.ledger(1)
    content = files.read_json(path)
    content["metrics"]["teacher"]["mAP"] = 99.0
    files.write_json(path, content)
    finding = campaign.check_rounds(CheckContext(after_two_rounds))
    assert (finding.state, finding.message) == ("fail", "round-0001 is not as it was published")
