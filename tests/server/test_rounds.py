"""When a round closes, who is asked, and what two runs with one cohort do, with a real store."""

import asyncio
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.cohort import Order
from server.errors import QuorumError
from server.records import RoundRecord, RoundState, RunState
from server.store import Store
from server.store.sqlite import SqliteStore
from tests.server.cohorts import (
    SIZE,
    Act,
    Bring,
    Decline,
    Scene,
    ScriptedCohort,
    bring_one,
    end_of,
    script,
    spec,
    when,
)
from wire.federation_pb2 import RefusalReason
from wire.tensors import Vector


async def test_play_quorum_closes_at_the_deadline_without_the_missing(scene: Scene) -> None:
    scene.scripted.train_script = script(a=Bring(1.0, 1), b=None, c=Bring(2.0, 3))
    small = spec(cohort={"size": 3, "quorum": 2, "deadline_seconds": 0.3})
    await scene.play(small)
    record = await scene.store.round("run", 1)
    assert [part.client_id for part in record.contributions] == ["a", "c"]
    assert 0.3 <= record.phase_seconds["train"] < 10
    assert np.array_equal(scene.model(small, 1).vector, scene.model(small, 0).vector + np.float32(1.75))


@pytest.mark.parametrize(
    ("cohort", "evaluated"),
    [
        pytest.param({"size": 3, "quorum": 2, "deadline_seconds": 0.3}, {"a", "c"}, id="waited-for-in-vain"),
        pytest.param({"size": 2, "over_selection": 1.5, "deadline_seconds": 60}, {"a", "b", "c"}, id="not-waited-for"),
    ],
)
async def test_play_asks_a_silent_client_to_evaluate_only_if_the_round_has_not_waited_for_it(
    scene: Scene, cohort: dict[str, Any], evaluated: set[str]
) -> None:
    scene.scripted.train_script = script(a=Bring(1.0), b=None, c=Bring(3.0))
    await scene.play(spec(cohort=cohort, evaluate={"every": 1}))
    assert [set(client_ids) for _, client_ids in scene.scripted.evaluated] == [evaluated]


async def test_play_quorum_closes_early_when_the_missing_have_left(scene: Scene) -> None:
    cohort = scene.scripted

    async def leave(order: Order, client_id: str) -> Act:
        if client_id == "b":
            cohort.leave("b")
            return None
        return Bring(1.0)

    cohort.train_script = leave
    await scene.play(spec(cohort={"size": 3, "quorum": 2, "deadline_seconds": 60, "return_seconds": 0.2}))
    record = await scene.store.round("run", 1)
    assert [part.client_id for part in record.contributions] == ["a", "c"]
    assert 0.2 <= record.phase_seconds["train"] < 20


async def test_play_over_selection_closes_at_size(store: Store, tmp_path: Path) -> None:
    async def only_b_and_d(order: Order, client_id: str) -> Act:
        return Bring(1.0) if client_id in "bd" else None

    scene = Scene(store, ScriptedCohort("abcde", only_b_and_d), tmp_path / "run")
    await scene.play(spec(cohort={"size": 2, "over_selection": 2.4, "deadline_seconds": 60}))
    record = await store.round("run", 1)
    assert record.selected == ["a", "b", "c", "d", "e"]
    assert [part.client_id for part in record.contributions] == ["b", "d"]
    assert record.phase_seconds["train"] < 20


async def test_play_below_quorum_is_retried_then_raises_and_can_be_played_again(scene: Scene) -> None:
    cohort = scene.scripted
    cohort.train_script = script(
        a=Bring(1.0), b=Decline(), c=Decline("it went wrong", RefusalReason.REFUSAL_REASON_CLIENT_ERROR)
    )
    strict = spec(rounds=2, cohort={"size": 3, "quorum": 2, "retries": 2})
    message = (
        r"^Round 1: quorum must be 2 contributions, got 1 of 3 asked, 1 client data, 1 client error\. "
        r"The first refusal: the data is gone\. Mend the clients, then resume the run\.$"
    )
    with pytest.raises(QuorumError, match=message):
        await scene.play(strict)
    assert [order.attempt for order, _ in cohort.trained] == [0, 1, 2]
    run = await scene.store.run("run")
    assert (run.state, run.round_number) == (RunState.RUNNING, 0)
    record = await scene.store.round("run", 1)
    assert (record.state, record.attempt, record.selected) == (RoundState.OPEN, 0, [])

    cohort.train_script = bring_one
    assert (await scene.play(strict)).round_number == 2
    record = await scene.store.round("run", 1)
    assert record.attempt == 0
    assert len(record.contributions) == 3
    assert [(refusal.client_id, refusal.reason) for refusal in record.refusals] == [
        ("b", "client_data"),
        ("c", "client_error"),
    ] * 3


async def test_play_without_answers_says_so(scene: Scene) -> None:
    scene.scripted.train_script = script(a=None, b=None, c=Decline())
    with pytest.raises(QuorumError, match=r"quorum must be 2 .* got 0 of 3 asked, 1 client data, 2 no answer\."):
        await scene.play(spec(cohort={"size": 3, "quorum": 2, "deadline_seconds": 0.2}))


async def test_play_refused_clients_are_asked_last_in_the_next_attempt(store: Store, tmp_path: Path) -> None:
    first: list[str] = []

    async def refuse_first_choice(order: Order, client_id: str) -> Act:
        if order.attempt == 0:
            first.append(client_id)
        return Decline() if client_id in first else Bring(1.0)

    scene = Scene(store, ScriptedCohort("abcde", refuse_first_choice), tmp_path / "run")
    await scene.play(spec(cohort={"size": 2, "retries": 1}))
    (_, before), (_, after) = scene.scripted.trained
    assert set(before).isdisjoint(after)
    record = await store.round("run", 1)
    assert sorted(part.client_id for part in record.contributions) == sorted(after)
    assert {refusal.client_id for refusal in record.refusals} == set(before)


async def test_play_counts_refusals_by_reason_in_the_metrics(scene: Scene) -> None:
    def with_nan() -> Vector:
        vector = np.ones(SIZE, dtype=np.float32)
        vector[2] = math.nan
        return vector

    async def answer(order: Order, client_id: str) -> Act:
        if order.round_number == 2:
            return Bring(1.0)
        return {"a": Bring(1.0), "b": Bring(with_nan()), "c": Bring(1e30)}[client_id]

    scene.scripted.train_script = answer
    quorate = spec(rounds=2, cohort={"size": 3, "quorum": 1})
    await scene.play(quorate)
    first, second = await scene.store.rounds("run")
    assert first.metrics == {"refused_not_finite": 1.0, "refused_out_of_range": 1.0}
    assert [(refusal.client_id, refusal.reason) for refusal in first.refusals] == [
        ("b", "not_finite"),
        ("c", "out_of_range"),
    ]
    assert second.metrics == {}
    # Two means of ones: what was refused is in neither.
    assert np.array_equal(
        scene.model(quorate, 2).vector, scene.model(quorate, 0).vector + np.float32(1) + np.float32(1)
    )


async def test_play_waits_for_clients_and_says_how_many_are_missing(store: Store, tmp_path: Path) -> None:
    scene = Scene(store, ScriptedCohort("a", script(a=None, b=Bring(1.0), c=Bring(1.0))), tmp_path / "run")
    cohort = scene.scripted
    task = asyncio.create_task(scene.play(spec(cohort={"size": 3, "wait_seconds": 41, "deadline_seconds": 90})))

    async def said(sentence: str) -> None:
        await when(lambda: scene.status.sentence() == sentence, f"the status to be {sentence!r}")

    await said("round 1: select: waiting for 2 of 3 clients, 41 s left")
    cohort.come("b")
    await said("round 1: select: waiting for 1 of 3 clients, 41 s left")
    cohort.come("c")
    await said("round 1: train: waiting for 1 of 3 updates, 90 s left")
    await end_of(task)


async def test_play_waits_no_longer_than_it_may_and_goes_on_with_a_quorum(scene: Scene) -> None:
    scene.cohort = ScriptedCohort("ab")
    await scene.play(spec(cohort={"size": 3, "quorum": 2, "wait_seconds": 0.2}))
    record = await scene.store.round("run", 1)
    assert record.selected == ["a", "b"]
    assert 0.2 <= record.phase_seconds["select"] < 10


async def test_play_without_enough_clients_raises_and_asks_nobody(scene: Scene) -> None:
    scene.cohort = ScriptedCohort("a")
    message = (
        r"^Round 1: at least 2 clients must be present within 0\.1 s, got 1\. Start more clients that can run 'mlp', "
        r"then resume the run\.$"
    )
    with pytest.raises(QuorumError, match=message):
        await scene.play(spec(cohort={"size": 3, "quorum": 2, "wait_seconds": 0.1}))
    assert scene.scripted.trained == []
    (record,) = await scene.store.rounds("run")
    # The time that was waited is not lost when the run is resumed.
    assert (record.state, record.selected) == (RoundState.OPEN, [])
    assert record.phase_seconds["select"] >= 0.1


class SlowStore(SqliteStore):
    """A store that lets everything else move before it stores a round."""

    async def put_round(self, record: RoundRecord, *events: Any) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        await super().put_round(record, *events)


async def test_play_two_runs_at_once_never_choose_one_client(tmp_path: Path) -> None:
    cohort = ScriptedCohort("abcdef")
    store = await SlowStore.open(tmp_path / "choral.sqlite")
    try:
        scenes = [Scene(store, cohort, tmp_path / name, run_id=name) for name in ("one", "two")]
        # The cohort fails when a client is claimed twice.
        runs = await asyncio.gather(*(scene.play(spec(rounds=5, seed=1)) for scene in scenes))
    finally:
        await store.close()
    assert [run.round_number for run in runs] == [5, 5]


async def test_play_open_round_waits_for_clients_that_work_for_another_run(scene: Scene) -> None:
    scene.cohort = cohort = ScriptedCohort("abcd", script(a=None, b=None, c=None, d=None))
    task = asyncio.create_task(scene.play(spec()))
    await when(lambda: bool(cohort.trained), "the clients to be asked")
    await end_of(task)
    ((_, client_ids),) = cohort.trained

    cohort.train_script = bring_one
    with cohort.claim([client_ids[1]], "another"):
        task = asyncio.create_task(scene.play(spec()))
        waiting = "round 1: select: waiting for 1 of 3 clients, 20 s left"
        await when(lambda: scene.status.sentence() == waiting, "the run to wait")
        assert len(cohort.trained) == 1
    async with asyncio.timeout(20):
        await task
    assert [asked for _, asked in cohort.trained] == [client_ids] * 2


async def test_play_open_round_chooses_anew_when_its_clients_stay_with_another_run(scene: Scene) -> None:
    scene.cohort = cohort = ScriptedCohort("abcd", script(a=None, b=None, c=None, d=None))
    task = asyncio.create_task(scene.play(spec()))
    await when(lambda: bool(cohort.trained), "the clients to be asked")
    await end_of(task)
    ((_, client_ids),) = cohort.trained

    cohort.train_script = bring_one
    impatient = spec(cohort={"size": 3, "wait_seconds": 0.1})
    await scene.store.put_run((await scene.store.run("run")).with_(spec=impatient))
    with cohort.claim([client_ids[1]], "another"):
        await scene.play(impatient)
    assert set(cohort.trained[1][1]) == set("abcd") - {client_ids[1]}
