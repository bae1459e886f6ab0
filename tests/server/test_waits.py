"""Law L7: during any wait the run's status says what is waited for and how long it may still take, and a run without a quorum pauses."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.coordinator import Coordinator
from server.records import RunRecord, RunState
from tests.hostile import Session, drawn_vector, joined
from tests.loopback import committed_round, everyone, rest, run_in_state, serving, small_spec, until
from wire import federation_pb2 as pb

SIZE = 67


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    async with serving(tmp_path) as coordinator:
        yield coordinator


async def until_status(coordinator: Coordinator, run: RunRecord, beginning: str, most_seconds: float) -> None:
    """Wait until the status is a wait that begins so, and check what it says of the time left."""

    async def matching() -> bool:
        status = str((await rest(coordinator, f"/runs/{run.run_id}"))["status"])
        found = re.fullmatch(re.escape(beginning) + r", (\d+) s left", status)
        return found is not None and most_seconds - 10 <= int(found[1]) <= most_seconds

    await until(matching, f"the status {beginning!r}")


async def contribute(session: Session, task: pb.Task) -> pb.UploadVerdict:
    return await session.contribute(task, drawn_vector(1, SIZE))


async def test_status_tells_of_clients_updates_and_evaluations_in_turn(coordinator: Coordinator) -> None:
    cohort = {"wait_seconds": 40, "deadline_seconds": 50}
    async with joined(coordinator.address) as first:
        run = await coordinator.runs.submit(small_spec(rounds=1, cohort=cohort, evaluate={"every": 1}))
        await until_status(coordinator, run, "round 1: select: waiting for 2 of 3 clients", 40)
        async with joined(coordinator.address) as second:
            await until_status(coordinator, run, "round 1: select: waiting for 1 of 3 clients", 40)
            async with joined(coordinator.address) as third:
                sessions = [first, second, third]
                tasks = [await session.task() for session in sessions]
                for missing in (3, 2, 1):
                    expected = f"round 1: train: waiting for {missing} of 3 updates"
                    await until_status(coordinator, run, expected, 50)
                    await contribute(sessions[missing - 1], tasks[missing - 1])
                tasks = [await session.task() for session in sessions]
                for missing in (3, 2, 1):
                    expected = f"round 1: evaluate: waiting for {missing} of 3 evaluations"
                    await until_status(coordinator, run, expected, 50)
                    result = pb.EvaluateResult(
                        task_id=tasks[missing - 1].task_id, example_count=missing, metrics={"loss": missing}
                    )
                    await sessions[missing - 1].send(pb.JoinRequest(evaluate_result=result))
                await run_in_state(coordinator, run.run_id, RunState.FINISHED)
    record = await coordinator.store.round(run.run_id, 1)
    # Of 1, 2 and 3 examples with losses 1, 2 and 3: 14 over 6 examples.
    assert record.metrics == {"loss": pytest.approx(14 / 6)}


async def test_status_of_a_run_behind_another_says_so(coordinator: Coordinator) -> None:
    first = await coordinator.runs.submit(small_spec())
    await until_status(coordinator, first, "round 1: select: waiting for 3 of 3 clients", 20)
    second = await coordinator.runs.submit(small_spec())
    assert (await rest(coordinator, f"/runs/{second.run_id}"))["status"] == "queued: waiting for a run before it to end"


async def test_run_without_enough_clients_pauses_with_the_reason_and_resumes(coordinator: Coordinator) -> None:
    async with joined(coordinator.address) as first:
        run = await coordinator.runs.submit(small_spec(rounds=1, cohort={"wait_seconds": 0.2}))
        await paused(coordinator, run)
        reason = (
            "Round 1: at least 2 clients must be present within 0.2 s, got 1. "
            "Start more clients that can run 'mlp', then resume the run."
        )
        view = await rest(coordinator, f"/runs/{run.run_id}")
        assert (view["reason"], view["status"]) == (reason, f"paused: {reason}")
        async with joined(coordinator.address) as second:
            await coordinator.runs.resume(run.run_id)
            # Two are a quorum, so the round begins without the third when the wait is over.
            for session in (first, second):
                await contribute(session, await session.task())
            await run_in_state(coordinator, run.run_id, RunState.FINISHED)


async def test_run_that_needs_one_client_pauses_without_any(coordinator: Coordinator) -> None:
    run = await coordinator.runs.submit(small_spec(cohort={"size": 1, "quorum": 1, "wait_seconds": 0.2}))
    paused = await run_in_state(coordinator, run.run_id, RunState.PAUSED)
    assert paused.reason.startswith("Round 1: at least 1 client must be present within 0.2 s, got 0. ")


async def test_run_below_its_quorum_at_the_deadline_pauses_with_the_reason_and_resumes(
    coordinator: Coordinator,
) -> None:
    cohort = {"deadline_seconds": 0.3, "retries": 1}
    async with everyone([joined(coordinator.address) for _ in range(3)]) as sessions:
        run = await coordinator.runs.submit(small_spec(rounds=1, cohort=cohort))
        attempts = [(await sessions[0].task()).attempt, (await sessions[0].task()).attempt]
        assert attempts == [0, 1]
        await paused(coordinator, run)
        reason = "Round 1: quorum must be 2 contributions, got 0 of 3 asked, 3 no answer."
        assert (await rest(coordinator, f"/runs/{run.run_id}"))["reason"].startswith(reason)
        for session in sessions:
            await drain(session)
        await coordinator.runs.resume(run.run_id)
        for session in sessions[:2]:
            assert (await contribute(session, await session.task())).reason == pb.REFUSAL_REASON_UNSPECIFIED
        await run_in_state(coordinator, run.run_id, RunState.FINISHED)
    record = await coordinator.store.round(run.run_id, 1)
    assert len(record.contributions) == 2


async def test_run_that_cannot_reach_its_quorum_any_more_does_not_wait_for_the_deadline(
    coordinator: Coordinator,
) -> None:
    async with everyone([joined(coordinator.address) for _ in range(3)]) as sessions:
        run = await coordinator.runs.submit(small_spec(cohort={"deadline_seconds": 10_000}))
        for session in sessions[:2]:
            task = await session.task()
            verdict = await session.contribute(task, drawn_vector(1, SIZE), weight=0)
            assert verdict.reason == pb.REFUSAL_REASON_WRONG_WEIGHT
        await paused(coordinator, run)
        assert (
            "got 0 of 3 asked, 1 not awaited, 2 wrong weight. The first refusal: weight must be 1 to "
            in (await rest(coordinator, f"/runs/{run.run_id}"))["reason"]
        )


async def test_round_with_a_quorum_closes_at_the_deadline_without_the_rest(coordinator: Coordinator) -> None:
    async with everyone([joined(coordinator.address) for _ in range(3)]) as sessions:
        run = await coordinator.runs.submit(small_spec(cohort={"deadline_seconds": 1.0}))
        tasks = [await session.task() for session in sessions]
        for session, task in zip(sessions[:2], tasks, strict=False):
            assert (await contribute(session, task)).reason == pb.REFUSAL_REASON_UNSPECIFIED
        record = await committed_round(coordinator, run.run_id, 1)
        assert len(record.selected) == 3
        assert [part.client_id for part in record.contributions] == sorted(
            session.client_id for session in sessions[:2]
        )
        cancelled = await sessions[2].receive()
        assert cancelled is not None
        assert cancelled.cancel_task == pb.CancelTask(
            task_id=tasks[2].task_id, reason="its round waits for it no longer"
        )


async def paused(coordinator: Coordinator, run: RunRecord) -> None:
    await run_in_state(coordinator, run.run_id, RunState.PAUSED)


async def drain(session: Session) -> None:
    """Take what was sent up to now: the cancellation of the last attempt is the last of it."""
    while (message := await session.receive()) is not None:
        if message.HasField("cancel_task") and "/1/1/" in message.cancel_task.task_id:
            return
