"""Events over real HTTP: every one once and in order, whoever comes back, and however slowly somebody reads."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from server.access import gate
from server.access.tokens import create_token
from server.coordinator import Coordinator
from server.monitoring import broadcast
from server.records import EventRecord, Role, RunState
from server.store import Store
from tests.hostile import joined
from tests.loopback import everyone, run_in_state, serving, until
from tests.server.cohorts import opened
from tests.server.rest import DOCUMENT, calling, new_token, problem, stored_run
from tests.server.stream import Stream, following
from wire import federation_pb2 as pb


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    async with serving(tmp_path) as coordinator:
        yield coordinator


async def append(store: Store, count: int, run_id: str = "", detail: str = "") -> None:
    for _ in range(count):
        await store.append_event(EventRecord(time=1.0, kind="tested", run_id=run_id, detail=detail))


async def numbers(stream: Stream, count: int) -> list[int]:
    return [int((await stream.event()).event_id) for _ in range(count)]


async def test_list_is_paged_filtered_and_either_way_round(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    for run_id in ("r1", "r2", "r1", "", "r1"):
        await append(coordinator.store, 1, run_id)

    async def listed(**query: str | int) -> list[int]:
        return [event["event_id"] for event in (await api.get("/events", params=query)).json()]

    assert await listed() == [1, 2, 3, 4, 5]
    assert await listed(run_id="r1") == [1, 3, 5]
    assert await listed(after=1, limit=2) == [2, 3]
    assert await listed(order="newest", limit=2) == [5, 4]
    assert await listed(order="newest", run_id="r1", after=1) == [5, 3]
    first = (await api.get("/events")).json()[0]
    assert EventRecord.model_validate(first) == (await coordinator.store.events())[0]
    assert "limit" in problem(await api.get("/events?limit=0"), 422)


async def test_stream_tells_what_happens_in_order_with_numbers(
    coordinator: Coordinator, api: httpx.AsyncClient
) -> None:
    await append(coordinator.store, 3)
    async with following(api) as stream:
        begin = await stream.block()
        assert (begin.kind, begin.event_id) == ("", "3")
        run_id = (await api.post("/runs", json=DOCUMENT)).json()["run_id"]
        kinds = []
        for number in (4, 5):
            event = await stream.event()
            assert (event.event_id, event.data["event_id"], event.data["run_id"]) == (str(number), number, run_id)
            kinds.append(event.kind)
        assert kinds == ["run_submitted", "run_started"]


async def test_stream_again_goes_on_after_the_last_event(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    async with following(api) as stream:
        await append(coordinator.store, 3)
        assert await numbers(stream, 2) == [1, 2]
    await append(coordinator.store, 2)
    async with following(api, last_event_id=2) as stream:
        assert await numbers(stream, 3) == [3, 4, 5]
        await append(coordinator.store, 1)
        assert await numbers(stream, 1) == [6]
    async with following(api, after=4) as stream:
        assert await numbers(stream, 2) == [5, 6]


async def test_stream_from_long_ago_has_no_gap_and_no_double(
    coordinator: Coordinator, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcast, "PAGE_EVENTS", 7)
    runs = ["r1", "r2", ""]
    for run_id in runs:
        if run_id:
            await stored_run(coordinator, run_id, RunState.FINISHED)
    for index in range(40):
        await append(coordinator.store, 1, runs[index % 3])

    async def append_more() -> None:
        for index in range(40, 120):
            await append(coordinator.store, 1, runs[index % 3])

    async with asyncio.timeout(30), following(api, last_event_id=0) as all_of, following(api, 0, run_id="r2") as of_one:
        adding = asyncio.create_task(append_more())
        assert await numbers(all_of, 120) == list(range(1, 121))
        assert await numbers(of_one, 40) == list(range(2, 121, 3))
        await adding


async def test_event_that_happens_while_a_page_is_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as store:
        await append(store, 2)
    async with serving(tmp_path) as coordinator, calling(coordinator) as api, following(api) as live:
        await append(coordinator.store, 1)
        assert await numbers(live, 1) == [3]
        events, is_late = coordinator.store.events, True

        async def late(*args: Any, **options: Any) -> Sequence[EventRecord]:
            nonlocal is_late
            found = await events(*args, **options)
            if is_late and args == ("", 0, broadcast.PAGE_EVENTS):
                is_late = False
                await append(coordinator.store, 1)
                # Who hears of it hears it from the broadcast, which has taken note of it by then.
                assert await numbers(live, 1) == [4]
            return found

        monkeypatch.setattr(coordinator.store, "events", late)
        async with following(api, last_event_id=0) as stream:
            assert await numbers(stream, 4) == [1, 2, 3, 4]
        assert not is_late


async def test_stream_of_events_that_are_not_kept_any_more_reads_the_store(tmp_path: Path) -> None:
    kept, broadcast.KEPT_COUNT = broadcast.KEPT_COUNT, 4
    try:
        async with serving(tmp_path) as coordinator, calling(coordinator) as api, following(api) as live:
            await append(coordinator.store, 30)
            assert await numbers(live, 30) == list(range(1, 31))
            async with following(api, last_event_id=5) as late:
                assert await numbers(late, 25) == list(range(6, 31))
    finally:
        broadcast.KEPT_COUNT = kept


async def test_viewer_that_does_not_read_holds_up_nobody_and_misses_nothing(
    coordinator: Coordinator, api: httpx.AsyncClient
) -> None:
    big = "x" * 1000
    async with following(api, last_event_id=0) as slow, following(api) as quick:
        begun = asyncio.create_task(numbers(quick, 3000))
        await asyncio.gather(*(append(coordinator.store, 1, detail=big) for _ in range(3000)))
        assert await begun == list(range(1, 3001))
        assert (await api.get("/health")).status_code == 200
        assert await numbers(slow, 3000) == list(range(1, 3001))


async def test_number_of_another_store_begins_with_the_present(
    coordinator: Coordinator, api: httpx.AsyncClient
) -> None:
    await append(coordinator.store, 2)
    for headers in ({"Last-Event-ID": "900"}, {"Last-Event-ID": "9" * 40}, {"Last-Event-ID": "no number"}, {}):
        async with api.stream("GET", "/events/stream", headers=headers) as response:
            assert (await Stream(response).block()).event_id == "2"


async def test_stream_of_a_run_that_does_not_exist_is_not_found(api: httpx.AsyncClient) -> None:
    assert problem(await api.get("/events/stream?run_id=nope"), 404).startswith("Run 'nope': must be in the store")
    assert "after" in problem(await api.get("/events/stream?after=-1"), 422)


async def test_one_viewer_too_many_is_told_so(
    coordinator: Coordinator, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcast, "MOST_VIEWERS", 1)
    async with following(api) as stream:
        await stream.block()
        assert problem(await api.get("/events/stream"), 503) == (
            "Events: at most 1 viewers must read them at a time, got one more. Try again later."
        )

    async def has_room() -> bool:
        async with api.stream("GET", "/events/stream") as response:
            return response.status_code == 200

    await until(has_room, "the viewer's place to be free")


async def test_status_is_the_whole_picture_first_and_then_what_changes(
    coordinator: Coordinator, api: httpx.AsyncClient
) -> None:
    async with everyone([joined(coordinator.address, name=name) for name in "ab"]) as sessions:
        run_id = (await api.post("/runs", json=DOCUMENT)).json()["run_id"]
        await run_in_state(coordinator, run_id, RunState.RUNNING)
        async with following(api) as stream:
            picture = await stream.status()
            while not (waiting := picture["runs"].get(run_id, {}).get("waiting")):
                picture = await stream.status()
            assert {key: waiting[key] for key in ("for", "have", "need")} == {"for": "clients", "have": 2, "need": 3}
            assert 30 < waiting["seconds_left"] <= 41
            assert abs(waiting["until_time"] - time.time() - waiting["seconds_left"]) < 10
            shown = (await api.get(f"/runs/{run_id}")).json()
            assert shown["waiting"]["until_time"] == waiting["until_time"]
            async with joined(coordinator.address, name="c"):
                task = await sessions[0].task()
                progress = pb.Progress(task_id=task.task_id, phase=pb.PHASE_TRAINING, fraction=0.256)
                await sessions[0].send(pb.JoinRequest(progress=progress))
                client_id = sessions[0].client_id
                while (doing := (await stream.status())["clients"].get(client_id, {})).get("phase") != "training":
                    pass
                assert doing == {"task_id": task.task_id, "phase": "training", "fraction": 0.26}
                async with following(api, run_id=run_id) as late:
                    whole = await late.status()
                assert whole["clients"][client_id] == doing
                assert whole["runs"].keys() == {run_id}
                await api.post(f"/runs/{run_id}/stop")
                ended: dict[str, str] = {}
                idle = False
                while not (ended and idle):
                    news = await stream.status()
                    ended = (
                        news["runs"].get(run_id, {})
                        if news["runs"].get(run_id, {}).get("state") == "stopped"
                        else ended
                    )
                    idle = idle or news["clients"].get(client_id, {}).get("phase") == ""
                assert ended["status"] == "stopped: Stopped by the operator."


async def test_nothing_but_time_passing_is_no_news(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    run_id = (await api.post("/runs", json=DOCUMENT)).json()["run_id"]
    await run_in_state(coordinator, run_id, RunState.RUNNING)
    async with following(api) as stream:
        while not (await stream.status())["runs"].get(run_id, {}).get("waiting"):
            pass
        before = (await api.get(f"/runs/{run_id}")).json()["waiting"]["seconds_left"]

        async def has_passed() -> bool:
            return bool((await api.get(f"/runs/{run_id}")).json()["waiting"]["seconds_left"] < before - 1.5)

        await until(has_passed, "time to pass")
        await append(coordinator.store, 1)
        blocks = []
        while (block := await stream.block()).kind != "tested":
            blocks.append(block)
        assert [block for block in blocks if block.kind == "status"] == []


async def test_viewers_are_woken_seldom_however_much_happens(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    count, clock = 40, asyncio.get_running_loop().time
    pieces: list[bytes] = []
    async with api.stream("GET", "/events/stream") as response:
        incoming = response.aiter_raw()
        assert b"retry:" in await anext(incoming)
        began = clock()

        async def happen() -> None:
            for _ in range(count):
                await append(coordinator.store, 1)
                await asyncio.sleep(0.02)

        happening = asyncio.create_task(happen())
        while b"".join(pieces).count(b"event: tested") < count:
            pieces.append(await anext(incoming))
        # Each wait between two pieces is at least as long; the first does not wait, and may be two: events and picture.
        assert len(pieces) <= (clock() - began) / broadcast.TELL_SECONDS + 2
        await happening


async def test_quiet_stream_says_that_it_is_still_there(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcast, "HEARTBEAT_SECONDS", 0.05)
    async with api.stream("GET", "/events/stream") as response:
        async with asyncio.timeout(30):
            lines = [line async for line in _first(response, 3)]
    assert lines == [": still here"] * 3


async def _first(response: httpx.Response, count: int) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith(":"):
            yield line
            if not (count := count - 1):
                return


async def test_end_of_the_coordinator_ends_streams_without_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        coordinator = await stack.enter_async_context(serving(tmp_path))
        async with calling(coordinator) as api, following(api) as stream:
            await stream.status()
            await stack.aclose()
            with pytest.raises(EOFError):
                await stream.event()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_stream_ends_when_its_token_does(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LOOK_SECONDS", 0.0)
    secrets = [await new_token(coordinator, Role.VIEWER, name) for name in ("kept", "revoked")]
    token, secret = await create_token(coordinator.store, "lasts a day", Role.VIEWER, days=1)
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(calling(coordinator, one)) for one in (*secrets, secret)]
        kept, revoked, lasts = [await stack.enter_async_context(following(client)) for client in clients]
        await append(coordinator.store, 1)
        for stream in (kept, revoked, lasts):
            await stream.event()
        await coordinator.store.remove_token("revoked")
        await append(coordinator.store, 1, detail="secret")
        with pytest.raises(EOFError):
            await revoked.event()
        for stream in (kept, lasts):
            assert (await stream.event()).data["detail"] == "secret"
        after = SimpleNamespace(time=lambda: token.expires_time, monotonic=time.monotonic)
        monkeypatch.setattr(gate, "time", after)
        await append(coordinator.store, 1)
        with pytest.raises(EOFError):
            await lasts.event()
        await kept.event()


async def test_stream_of_nobody_ends_when_a_token_is_asked_for(
    coordinator: Coordinator, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "LOOK_SECONDS", 0.0)
    async with following(api) as stream:
        await append(coordinator.store, 1)
        await stream.event()
        await new_token(coordinator)
        await append(coordinator.store, 1)
        with pytest.raises(EOFError):
            await stream.event()
