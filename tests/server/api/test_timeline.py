"""A round client by client over the REST API: what each did when, in an open round and in one that has closed."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.coordinator import Coordinator
from server.records import RefusalRecord, RoundRecord, RoundState, RunState
from tests.client.masked import NAMES, Federation, masked_spec, played
from tests.client.masked import joined as joined_masked
from tests.hostile import drawn_vector, joined
from tests.loopback import committed_round, everyone, run_in_state, serving, small_spec, until
from tests.server.rest import calling, problem, stored_run
from wire import federation_pb2 as pb

SIZE = 67
MOMENTS = ["asked", "downloaded", "trained", "uploaded", "ended"]


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    async with serving(tmp_path) as coordinator:
        yield coordinator


async def timeline(api: httpx.AsyncClient, run_id: str, number: int) -> dict[str, dict[str, Any]]:
    """Return the rows of a timeline by the clients' names."""
    rows = (await api.get(f"/runs/{run_id}/rounds/{number}/timeline")).raise_for_status().json()
    return {row["name"]: row for row in rows}


def known_moments(row: dict[str, Any]) -> list[str]:
    """Check that moments follow each other, and return which are known."""
    times = [row[moment] for moment in MOMENTS if row[moment] is not None]
    assert times == sorted(times)
    return [moment for moment in MOMENTS if row[moment] is not None]


async def test_timeline_of_an_open_round_grows_and_stays_when_it_is_committed(
    coordinator: Coordinator, api: httpx.AsyncClient
) -> None:
    names = ("swift", "broken", "slow")
    # The first two settle the round; the third is not waited for.
    spec = small_spec(rounds=1, cohort={"size": 3, "quorum": 1, "deadline_seconds": 60, "return_seconds": 0.1})
    async with everyone([joined(coordinator.address, name=name) for name in names]) as (swift, broken, slow):
        run = await coordinator.runs.submit(spec)
        task, _, _ = [await session.task() for session in (swift, broken, slow)]
        asked = await timeline(api, run.run_id, 1)
        assert asked.keys() == set(names)
        assert all(known_moments(row) == ["asked"] and row["outcome"] == "pending" for row in asked.values())

        await slow.send(pb.JoinRequest(progress=pb.Progress(task_id=task.task_id, phase=pb.PHASE_TRAINING)))
        nans = drawn_vector(1, SIZE) * float("nan")
        assert (await broken.contribute(task, nans)).reason == pb.REFUSAL_REASON_NOT_FINITE
        assert (await swift.contribute(task, drawn_vector(2, SIZE))).reason == 0

        async def all_told() -> dict[str, dict[str, Any]] | None:
            rows = await timeline(api, run.run_id, 1)
            return rows if rows["slow"]["downloaded"] and rows["swift"]["ended"] and rows["broken"]["ended"] else None

        open_rows = await until(all_told, "the open round to tell of all three")
        shown = (await api.get(f"/runs/{run.run_id}")).json()
        assert (shown["round_number"], shown["phase"]) == (0, "train")
        assert [open_rows[name]["outcome"] for name in names] == ["accepted", "refused", "pending"]
        assert known_moments(open_rows["slow"]) == ["asked", "downloaded"]
        # It trains without a download: it had the model.
        assert open_rows["slow"]["downloaded"] == open_rows["slow"]["asked"]
        await slow.call.done_writing()

    await committed_round(coordinator, run.run_id, 1)
    finished = await run_in_state(coordinator, run.run_id, RunState.FINISHED)
    assert (await api.get(f"/runs/{finished.run_id}")).json()["phase"] == ""
    rows = await timeline(api, run.run_id, 1)
    assert [rows[name]["outcome"] for name in names] == ["accepted", "refused", "lost"]
    assert known_moments(rows["swift"]) == known_moments(rows["broken"]) == MOMENTS
    assert known_moments(rows["slow"]) == ["asked", "downloaded", "ended"]
    assert rows["broken"]["reason"] == "not_finite"
    assert rows["broken"]["detail"] != "" == rows["swift"]["detail"]
    for name in ("swift", "broken"):
        assert rows[name] == open_rows[name]


async def test_timeline_tells_a_download_from_training_without_a_word_of_the_client(
    coordinator: Coordinator, api: httpx.AsyncClient
) -> None:
    spec = small_spec(rounds=1, cohort={"size": 2, "deadline_seconds": 60})
    async with everyone([joined(coordinator.address, name=name) for name in ("fetches", "has")]) as (fetches, has):
        run = await coordinator.runs.submit(spec)
        task, _ = [await session.task() for session in (fetches, has)]
        request = pb.DownloadRequest(session_token=fetches.token, sha256=task.base.sha256)
        assert sum([len(part.data) async for part in fetches.calls.download(request)]) == task.base.total_bytes
        await until_downloaded(api, run.run_id, "fetches")
        assert (await timeline(api, run.run_id, 1))["has"]["downloaded"] is None
        for number, session in enumerate((fetches, has)):
            await session.contribute(task, drawn_vector(number, SIZE))
        await run_in_state(coordinator, run.run_id, RunState.FINISHED)
    rows = await timeline(api, run.run_id, 1)
    assert rows["has"]["downloaded"] == rows["has"]["asked"] < rows["has"]["trained"]
    assert rows["fetches"]["asked"] < rows["fetches"]["downloaded"] < rows["fetches"]["trained"]


async def until_downloaded(api: httpx.AsyncClient, run_id: str, name: str) -> None:
    async def is_there() -> bool:
        return (await timeline(api, run_id, 1))[name]["downloaded"] is not None

    await until(is_there, "the download to be noted")


async def test_timeline_has_what_a_client_would_not_do(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    spec = small_spec(rounds=1, cohort={"size": 2, "quorum": 1})
    async with everyone([joined(coordinator.address, name=name) for name in ("able", "unable")]) as (able, unable):
        run = await coordinator.runs.submit(spec)
        task, _ = [await session.task() for session in (able, unable)]
        failed = pb.TaskFailed(task_id=task.task_id, reason=pb.REFUSAL_REASON_CLIENT_DATA, detail="no such column")
        await unable.send(pb.JoinRequest(task_failed=failed))

        async def declined() -> dict[str, Any] | None:
            row = (await timeline(api, run.run_id, 1))["unable"]
            return row if row["outcome"] == "refused" else None

        row = await until(declined, "the refusal to be shown")
        assert (row["reason"], row["detail"]) == ("client_data", "no such column")
        await able.contribute(task, drawn_vector(1, SIZE))
        await run_in_state(coordinator, run.run_id, RunState.FINISHED)
    row = (await timeline(api, run.run_id, 1))["unable"]
    assert (row["outcome"], row["reason"], row["detail"]) == ("refused", "client_data", "no such column")
    assert known_moments(row) == ["asked", "ended"]


async def test_client_that_does_not_evaluate_is_told_with_its_reason_before_and_after_the_commit(
    coordinator: Coordinator, api: httpx.AsyncClient
) -> None:
    spec = small_spec(rounds=1, cohort={"size": 3, "return_seconds": 0.1}, evaluate={"every": 1})
    names = ("able", "unable", "silent")
    async with everyone([joined(coordinator.address, name=name) for name in names]) as (able, unable, silent):
        run = await coordinator.runs.submit(spec)
        for number, session in enumerate((able, unable, silent)):
            await session.contribute(await session.task(), drawn_vector(number, SIZE))
        task, _, _ = [await session.task() for session in (able, unable, silent)]
        failed = pb.TaskFailed(task_id=task.task_id, reason=pb.REFUSAL_REASON_CLIENT_DATA, detail="no such column")
        await unable.send(pb.JoinRequest(task_failed=failed))

        async def told() -> dict[str, dict[str, Any]] | None:
            rows = await timeline(api, run.run_id, 1)
            return rows if rows["unable"]["evaluation_reason"] else None

        open_rows = await until(told, "the failure to be shown")
        assert open_rows["unable"]["evaluation_detail"] == "no such column"
        assert {row["outcome"] for row in open_rows.values()} == {"accepted"}
        result = pb.EvaluateResult(task_id=task.task_id, example_count=2, metrics={"loss": 1.0})
        await able.send(pb.JoinRequest(evaluate_result=result))
        # Of one that has left nothing more is expected.
        await silent.call.done_writing()
        await run_in_state(coordinator, run.run_id, RunState.FINISHED)
    rows = await timeline(api, run.run_id, 1)
    assert {name: (row["outcome"], row["evaluation_reason"]) for name, row in rows.items()} == {
        "able": ("accepted", ""),
        "unable": ("accepted", "client_data"),
        "silent": ("accepted", "no_answer"),
    }
    (record,) = (await api.get(f"/runs/{run.run_id}/rounds")).json()
    failures = {failure["client_id"]: failure for failure in record["evaluation_failures"]}
    assert failures.keys() == {unable.client_id, silent.client_id}
    assert record["metrics"]["loss"] == 1.0
    (lately,) = (await api.get(f"/clients/{unable.client_id}")).json()["refusals"]
    place = {"run_id": run.run_id, "round_number": 1, "kind": "evaluate"}
    assert lately == place | {"client_id": unable.client_id, "reason": "client_data", "detail": "no such column"}


async def test_timeline_of_a_round_of_an_earlier_release_has_outcomes_alone(
    coordinator: Coordinator, api: httpx.AsyncClient
) -> None:
    run = await stored_run(coordinator, "r1", RunState.PAUSED, round_number=1)
    record = RoundRecord(run_id="r1", number=1, state=RoundState.COMMITTED, selected=["ana"])
    await coordinator.store.commit_round(run, record)
    await coordinator.store.put_round(record.with_(number=2, state=RoundState.OPEN))
    (row,) = (await api.get("/runs/r1/rounds/1/timeline")).json()
    nothing = {
        "name": "",
        "reason": "",
        "detail": "",
        "evaluation_reason": "",
        "evaluation_detail": "",
        **dict.fromkeys(MOMENTS),
    }
    assert row == nothing | {"client_id": "ana", "outcome": "lost"}
    # Nobody plays the open round: it is as it was left.
    (row,) = (await api.get("/runs/r1/rounds/2/timeline")).json()
    assert row == nothing | {"client_id": "ana", "outcome": "pending"}
    # Nobody is asked any more: whom it refused is told.
    refusal = RefusalRecord(client_id="ben", reason="client_policy", detail="not here")
    await coordinator.store.put_round(record.with_(number=2, state=RoundState.OPEN, selected=[], refusals=[refusal]))
    (row,) = (await api.get("/runs/r1/rounds/2/timeline")).json()
    refused = {"client_id": "ben", "outcome": "refused", "reason": "client_policy", "detail": "not here"}
    assert row == nothing | refused
    sentence = problem(await api.get("/runs/r1/rounds/3/timeline"), 404)
    assert sentence == "Round 3 of run 'r1': must be in the store, got no such round."


async def test_timeline_of_a_masked_round_tells_what_the_coordinator_sees(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    async with federation.serving() as coordinator, calling(coordinator) as api:
        agents = [federation.agent(name, coordinator.address) for name in NAMES]
        async with joined_masked(coordinator, agents):
            run_id, _ = await played(coordinator, masked_spec())
        rows = await timeline(api, run_id, 1)
    assert rows.keys() == set(NAMES)
    for row in rows.values():
        assert (row["outcome"], row["reason"]) == ("accepted", "")
        assert known_moments(row) == MOMENTS
