"""Who is there and what each was asked: an assignment belongs to a client, and outlives its sessions."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.clients.sessions import OUTBOX_SIZE, Assignment, Reply, Session, Sessions
from server.records import ClientRecord
from server.store import Store, open_store
from tests.server.store.redis_server import RedisServer
from wire import federation_pb2 as pb


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(str(tmp_path / "choral.sqlite"))
    yield opened
    await opened.close()


@pytest.fixture
def sessions(store: Store) -> Sessions:
    return Sessions(store)


def record(client_id: str = "ana", first_seen_time: float = 1.0) -> ClientRecord:
    return ClientRecord(
        client_id=client_id,
        name=f"site {client_id}",
        learners=["mlp"],
        is_connected=True,
        first_seen_time=first_seen_time,
        last_seen_time=first_seen_time,
    )


async def opened(sessions: Sessions, client_id: str = "ana") -> Session:
    session = Session(record(client_id))
    await sessions.open(session)
    sessions.start(session)
    return session


def queued(session: Session) -> list[str | None]:
    """Take what waits for the client, by kind."""
    kinds = []
    while not session.outbox.empty():
        kinds.append(session.outbox.get_nowait().WhichOneof("message"))
    return kinds


def assignment(task_id: str, replies: list[tuple[str, Reply]] | None = None) -> Assignment:
    def take(client_id: str, reply: Reply) -> None:
        if replies is not None:
            replies.append((client_id, reply))

    return Assignment.of(pb.Task(task_id=task_id), take)


def present(sessions: Sessions) -> dict[str, bool]:
    return {member.client_id: member.is_present for member in sessions.members()}


async def test_open_and_close_are_stored_and_told(sessions: Sessions, store: Store) -> None:
    session = Session(record())
    await sessions.open(session)
    assert present(sessions) == {"ana": False}
    sessions.start(session)
    assert present(sessions) == {"ana": True}
    assert sessions.by_token(session.token) is session
    assert sessions.by_token(b"guess") is None
    assert sessions.by_client("ana") is session
    (stored,) = await store.clients()
    assert stored.is_connected
    waiting = asyncio.create_task(sessions.changed.wait(20))
    await asyncio.sleep(0)
    await sessions.close(session, "its stream ended")
    async with asyncio.timeout(1):
        await waiting
    assert present(sessions) == {"ana": False}
    assert sessions.by_token(session.token) is None
    (stored,) = await store.clients()
    assert not stored.is_connected
    assert [(event.kind, event.detail) for event in await store.events()] == [
        ("client_joined", "site ana"),
        ("client_left", "its stream ended"),
    ]


async def test_open_again_keeps_the_time_of_the_first_meeting(sessions: Sessions, store: Store) -> None:
    await sessions.close(await opened(sessions), "gone")
    session = Session(record(first_seen_time=99.0))
    await sessions.open(session)
    assert [client.first_seen_time for client in await store.clients()] == [1.0]
    await sessions.close(session, "gone")
    assert [client.first_seen_time for client in await store.clients()] == [1.0]


async def test_open_newer_session_wins_and_the_older_ones_end_changes_nothing(
    sessions: Sessions, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    older = await opened(sessions)
    sessions.assign("ana", assignment("task"))
    with caplog.at_level(logging.WARNING, "server.clients.sessions"):
        newer = await opened(sessions)
    assert "client ana (site ana): a newer session takes the place of the older one" in caplog.text
    farewell = older.outbox.get_nowait()
    assert farewell.goodbye.reason == pb.GOODBYE_REASON_SUPERSEDED
    assert older.outbox.empty()
    assert queued(newer) == ["task"]
    assert sessions.by_token(older.token) is None
    await sessions.close(older, "superseded")
    sessions.start(older)
    assert present(sessions) == {"ana": True}
    assert sessions.by_client("ana") is newer
    assert [client.is_connected for client in await store.clients()] == [True]


async def test_close_with_a_store_that_is_away_is_told_in_one_line(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(redis_server.url)
    try:
        sessions = Sessions(store)
        session = await opened(sessions)
        redis_server.kill()
        await sessions.close(session, "the coordinator shuts down")
        assert present(sessions) == {"ana": False}
    finally:
        await store.close()
    (line,) = caplog.messages
    assert line.startswith("client ana (site ana): that it left could not be stored: Store redis://")


async def test_assign_reaches_a_client_now_or_when_it_comes_back(sessions: Sessions) -> None:
    session = await opened(sessions)
    sessions.assign("ana", assignment("task"))
    sessions.assign("ben", assignment("task"))
    assert queued(session) == ["task"]
    await sessions.close(session, "gone")
    assert queued(await opened(sessions)) == ["task"]
    assert queued(await opened(sessions, "ben")) == ["task"]


async def test_assign_between_open_and_welcome_is_pushed_once_and_after_it(sessions: Sessions) -> None:
    session = Session(record())
    await sessions.open(session)
    sessions.assign("ana", assignment("task"))
    assert queued(session) == []
    sessions.start(session)
    assert queued(session) == ["task"]


async def test_withdraw_tells_the_client_only_with_a_reason_and_only_of_its_task(sessions: Sessions) -> None:
    session = await opened(sessions)
    sessions.assign("ana", assignment("one"))
    sessions.withdraw("ana", "another", "why")
    sessions.withdraw("zoe", "one", "why")
    assert queued(session) == ["task"]
    sessions.withdraw("ana", "one")
    assert queued(session) == []
    sessions.assign("ana", assignment("two"))
    sessions.withdraw("ana", "two", "the round has closed")
    assert queued(session) == ["task", "cancel_task"]
    await sessions.close(session, "gone")
    assert queued(await opened(sessions)) == []


async def test_take_reply_hears_the_asked_client_on_its_task_alone(sessions: Sessions) -> None:
    replies: list[tuple[str, Reply]] = []
    ana, ben = await opened(sessions), await opened(sessions, "ben")
    sessions.assign("ana", assignment("task", replies))
    wanted = pb.EvaluateResult(task_id="task", example_count=3)
    sessions.take_reply(ben, wanted)
    sessions.take_reply(ana, pb.EvaluateResult(task_id="older"))
    sessions.take_reply(ana, pb.TaskFailed())
    sessions.take_reply(ana, wanted)
    sessions.withdraw("ana", "task")
    sessions.take_reply(ana, wanted)
    assert replies == [("ana", wanted)]


async def test_take_progress_keeps_word_of_the_task_of_the_moment(sessions: Sessions) -> None:
    session = await opened(sessions)
    right = pb.Progress(task_id="task", phase=pb.PHASE_TRAINING, fraction=0.5)
    sessions.take_progress(session, right)
    assert session.progress is None
    sessions.assign("ana", assignment("task"))
    sessions.take_progress(session, right)
    sessions.take_progress(session, pb.Progress(task_id="older", phase=pb.PHASE_UPLOADING))
    sessions.take_progress(session, pb.Progress(task_id="task", phase=77))  # type: ignore[arg-type]
    assert session.progress == right
    sessions.withdraw("ana", "task")
    assert session.progress is None


async def test_push_to_a_client_that_does_not_read_ends_its_session(sessions: Sessions) -> None:
    session = await opened(sessions)
    for number in range(OUTBOX_SIZE + 1):
        session.push(pb.JoinResponse(task=pb.Task(task_id=str(number))))
    message = session.outbox.get_nowait()
    assert message.goodbye.reason == pb.GOODBYE_REASON_SILENT
    assert message.goodbye.detail == f"more than {OUTBOX_SIZE} messages wait to be read"
    assert session.outbox.empty()


async def test_expel_ends_the_session_and_declines_what_the_client_was_and_is_asked(
    sessions: Sessions, store: Store
) -> None:
    replies: list[tuple[str, Reply]] = []
    session = await opened(sessions)
    sessions.assign("ana", assignment("one", replies))
    for _ in range(2):
        sessions.expel("ana", "revoked")
    farewell = session.outbox.get_nowait()
    assert farewell.goodbye == pb.Goodbye(reason=pb.GOODBYE_REASON_REVOKED, detail="revoked")
    assert session.outbox.empty()
    assert sessions.by_token(session.token) is None
    sessions.take_reply(session, pb.EvaluateResult(task_id="one"))
    await sessions.close(session, "revoked")
    sessions.assign("ana", assignment("two", replies))
    reason = pb.REFUSAL_REASON_CLIENT_ERROR
    assert replies == [("ana", pb.TaskFailed(task_id=name, reason=reason, detail="revoked")) for name in ("one", "two")]
    assert present(sessions) == {}
    assert sessions.member("ana") is None
    assert [(event.kind, event.detail) for event in await store.events()][-1] == ("client_left", "revoked")


async def test_expel_client_that_is_let_in_again_is_counted_on(sessions: Sessions) -> None:
    sessions.expel("ana", "expired")
    session = await opened(sessions)
    sessions.assign("ana", assignment("task"))
    assert queued(session) == ["task"]
    assert present(sessions) == {"ana": True}


async def test_claim_keeps_clients_for_one_run_until_released(sessions: Sessions) -> None:
    await opened(sessions)
    await opened(sessions, "ben")
    sessions.claim(["ana"], "run")
    assert {member.client_id: member.claimed_by for member in sessions.members()} == {"ana": "run", "ben": ""}
    sessions.release(["ana", "ben"])
    assert {member.claimed_by for member in sessions.members()} == {""}


async def test_restore_expects_those_back_that_were_there(sessions: Sessions, store: Store) -> None:
    await opened(sessions)
    await sessions.close(await opened(sessions, "ben"), "gone")
    restarted = Sessions(store)
    await restarted.restore()
    now = asyncio.get_running_loop().time()
    (member,) = restarted.members()
    assert (member.client_id, member.is_present) == ("ana", False)
    assert now - 5 < member.absent_since <= now
    assert [client.client_id for client in restarted.clients()] == ["ana", "ben"]


async def test_restore_expects_those_back_whom_the_coordinator_has_sent_away(sessions: Sessions, store: Store) -> None:
    session = await opened(sessions)
    sessions.end_all()
    await sessions.close(session, "the coordinator shuts down")
    restarted = Sessions(store)
    await restarted.restore()
    assert [(member.client_id, member.is_present) for member in restarted.members()] == [("ana", False)]


async def test_end_all_says_goodbye_as_the_next_message(sessions: Sessions) -> None:
    open_sessions = [await opened(sessions, client_id) for client_id in ("ana", "ben")]
    sessions.assign("ana", assignment("task"))
    sessions.end_all()
    for session in open_sessions:
        message = session.outbox.get_nowait()
        assert message.goodbye.reason == pb.GOODBYE_REASON_SHUTDOWN
        assert session.outbox.empty()


def test_session_shows_no_secret() -> None:
    session = Session(record())
    assert repr(session.token) not in repr(session)
    assert session.token.hex() not in repr(session)
