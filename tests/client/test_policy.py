import logging
from pathlib import Path

import pytest

from client.errors import PolicyError
from client.policy import Policy, read_policy
from server.coordinator import Coordinator
from server.records import RunState
from tests.client.scripted import ScriptedCoordinator
from tests.client.sites import digits_spec, make_agent, played, running, until_joined
from tests.loopback import until
from wire import federation_pb2 as pb

CNN = {"name": "cnn", "channels": [2], "hidden": 4}


def write(folder: Path, text: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# --- The file ---


def test_read_policy_all_keys_are_read(tmp_path: Path) -> None:
    policy = read_policy(write(tmp_path, "allowed_learners: [cnn, mlp]  # reviewed\nminimum_cohort: 5\n"))
    assert policy == Policy(allowed_learners=["cnn", "mlp"], minimum_cohort=5)


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}\n"])
def test_read_policy_without_keys_allows_everything(tmp_path: Path, text: str) -> None:
    policy = read_policy(write(tmp_path, text))
    assert policy == Policy()
    policy.check(digits_spec(), cohort_size=1)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        pytest.param("minimum_cohrt: 5", "minimum_cohrt is not a key that exists here.", id="unknown-key"),
        pytest.param("minimum_cohort: 0", "minimum_cohort .*must be greater than or equal to 1, got 0.", id="below"),
        pytest.param("minimum_cohort: 5.5", "minimum_cohort .*must be a valid integer, got 5.5.", id="fraction"),
        pytest.param("minimum_cohort: '5'", "minimum_cohort .*must be a valid integer, got '5'.", id="text"),
        pytest.param("minimum_cohort: true", "minimum_cohort .*must be a valid integer, got True.", id="boolean"),
        pytest.param("minimum_cohort:", "minimum_cohort .*must be a valid integer, got None.", id="none"),
        pytest.param("allowed_learners: cnn", "allowed_learners .*must be a valid list, got 'cnn'.", id="no-list"),
        pytest.param("allowed_learners: [1]", "allowed_learners.0 .*must be a valid string, got 1.", id="no-name"),
        pytest.param("[cnn]", "must be a valid dictionary .*got \\['cnn'\\].", id="no-mapping"),
        pytest.param("cnn", "must be a valid dictionary .*got 'cnn'.", id="text-alone"),
        pytest.param("a: [", "must be YAML or JSON: .*line", id="no-yaml"),
        pytest.param("minimum_cohort: 1\nminimum_cohort: 5", "must be YAML or JSON: .*duplicate key", id="twice"),
        pytest.param("minimum_cohort: 2020-13-45", "must be YAML or JSON: month must be in 1..12", id="no-date"),
    ],
)
def test_read_policy_broken_file_is_refused_with_key_rule_and_value(tmp_path: Path, text: str, rule: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(PolicyError, match=rf"^Policy {path}: {rule}"):
        read_policy(path)


def test_read_policy_two_problems_are_both_named(tmp_path: Path) -> None:
    path = write(tmp_path, "minimum_cohort: 0\nlearners: []\n")
    with pytest.raises(PolicyError, match=r"minimum_cohort .*got 0\.\nPolicy .*: learners is not a key"):
        read_policy(path)


def test_read_policy_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    with pytest.raises(PolicyError, match=rf"^Policy {path}: must be a readable UTF-8 file, got: .*No such file"):
        read_policy(path)


def test_read_policy_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyError, match=rf"^Policy {path}: must be a readable UTF-8 file, got: "):
        read_policy(path)


# --- The rules ---


def test_check_learner_that_is_not_allowed_is_refused() -> None:
    policy = Policy(allowed_learners=["cnn", "lstm"])
    assert [name for name in ("mlp", "cnn", "lstm") if policy.allows(name)] == ["cnn", "lstm"]
    rule = r"^This site's policy: learner must be one of allowed_learners \(cnn, lstm\), got mlp.$"
    with pytest.raises(PolicyError, match=rule):
        policy.check(digits_spec(), cohort_size=10)


def test_check_empty_list_allows_no_learner() -> None:
    with pytest.raises(PolicyError, match=r"allowed_learners \(none\), got mlp.$"):
        Policy(allowed_learners=[]).check(digits_spec(), cohort_size=10)


def test_check_cohort_below_the_minimum_is_refused() -> None:
    policy = Policy(minimum_cohort=5)
    policy.check(digits_spec(), cohort_size=5)
    with pytest.raises(PolicyError, match=r"must ask at least minimum_cohort \(5\) clients, got 4.$"):
        policy.check(digits_spec(), cohort_size=4)


# --- In a federation ---


async def test_learner_that_is_not_allowed_never_selects_the_client(coordinator: Coordinator, tmp_path: Path) -> None:
    strict = make_agent(tmp_path / "strict", coordinator.address, policy=Policy(allowed_learners=["cnn"]))
    free = make_agent(tmp_path / "free", coordinator.address)
    async with running(strict), running(free):
        await until_joined(coordinator, strict, free)
        learners = {client.client_id: client.learners for client in coordinator.sessions.clients()}
        assert learners[strict.client_id] == ["cnn"]
        assert set(learners[free.client_id]) >= {"mlp", "cnn", "lstm"}
        # A fraction of all who are there: both would be asked if both could be.
        rounds = await played(coordinator, digits_spec(rounds=4, cohort={"size": None, "fraction": 1.0}))
        assert [record.selected for record in rounds] == [[free.client_id]] * 4
        [allowed] = await played(coordinator, digits_spec(learner=CNN, cohort={"size": 2}))
        assert sorted(allowed.selected) == sorted([strict.client_id, free.client_id])


async def test_learner_that_no_client_may_run_pauses_the_run(coordinator: Coordinator, tmp_path: Path) -> None:
    agent = make_agent(tmp_path / "strict", coordinator.address, policy=Policy(allowed_learners=["cnn"]))
    async with running(agent):
        await until_joined(coordinator, agent)
        run = await coordinator.runs.submit(digits_spec(cohort={"wait_seconds": 0.1}))

        async def reason() -> str:
            found = await coordinator.store.run(run.run_id)
            return found.reason if found.state is RunState.PAUSED else ""

        assert "Start more clients that can run 'mlp'" in await until(reason, "the run to pause")


async def test_minimum_cohort_above_the_cohort_refuses_the_task_on_both_sides(
    coordinator: Coordinator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sentence = "This site's policy: a round must ask at least minimum_cohort (5) clients, got 2."
    strict = make_agent(tmp_path / "strict", coordinator.address, policy=Policy(minimum_cohort=5))
    free = make_agent(tmp_path / "free", coordinator.address)
    with caplog.at_level(logging.INFO, "client"):
        async with running(strict), running(free):
            await until_joined(coordinator, strict, free)
            [record] = await played(coordinator, digits_spec(cohort={"size": 2, "quorum": 1}))
    [refusal] = record.refusals
    assert (refusal.client_id, refusal.reason, refusal.detail) == (strict.client_id, "client_policy", sentence)
    assert [part.client_id for part in record.contributions] == [free.client_id]
    assert f"refused. {sentence}" in caplog.text


async def test_coordinator_that_asks_all_the_same_is_refused_before_a_download(
    script: ScriptedCoordinator, tmp_path: Path
) -> None:
    async with running(make_agent(tmp_path, script.address, policy=Policy(allowed_learners=["cnn"]))):
        session = await script.session()
        assert list(session.hello.capabilities.learners) == ["cnn"]
        await session.push(script.task())
        failed = await session.reply("task_failed")
    assert failed.task_id == "run/1/0/train"
    assert failed.reason == pb.REFUSAL_REASON_CLIENT_POLICY
    assert failed.detail == "This site's policy: learner must be one of allowed_learners (cnn), got mlp."
    assert script.downloads == []
