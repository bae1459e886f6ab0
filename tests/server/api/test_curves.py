"""Curves over the rounds of a run, from hand-worked numbers; and rounds of earlier releases, which have no summary."""

import math
from typing import Any

import pytest

from server.api import curves
from server.api.curves import Curves
from server.api.history import PIECE_ROUNDS, participations, summaries
from server.records import ContributionRecord, RefusalRecord, RoundRecord, RoundState, RunRecord
from server.store import Store
from server.tallies import spread, summarized, tallied
from tests.server.store.samples import make_run


def a_round(number: int, accuracy: float | None, **changes: Any) -> RoundRecord:
    """Return a committed round whose clients trained with losses of its number and of nine more."""
    parts = [
        ContributionRecord(
            client_id=client_id, weight=1, example_count=1, byte_count=8, train_seconds=0.5, metrics={"loss": loss}
        )
        for client_id, loss in (("ana", float(number)), ("ben", float(number + 9)))
    ]
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    return RoundRecord(
        run_id="run-1",
        number=number,
        state=RoundState.COMMITTED,
        selected=["ana", "ben", "cleo"],
        contributions=parts,
        metrics=metrics | {"train_loss": number + 4.5, "refused_not_finite": 1.0},
        **changes,
    )


async def committed(store: Store, *rounds: RoundRecord) -> RunRecord:
    run = make_run(round_number=max((record.number for record in rounds), default=0))
    await store.put_run(run)
    for record in rounds:
        await store.commit_round(run, record)
    return run


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5.0], [5.0] * 5),
        ([4.0, 0.0], [0.0, 1.0, 2.0, 3.0, 4.0]),
        ([3.0, 1.0, 2.0], [1.0, 1.5, 2.0, 2.5, 3.0]),
        ([-1.7e308, 1.7e308], [-1.7e308, -0.85e308, 0.0, 0.85e308, 1.7e308]),
    ],
)
def test_spread_is_five_numbers(values: list[float], expected: list[float]) -> None:
    found = spread([{"loss": value} for value in values] + [{}])
    assert found["loss"] == pytest.approx(expected, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("short_count", [0, curves.SHORT_COUNT])
async def test_curves_of_buckets_are_means_lows_and_highs(
    store: Store, monkeypatch: pytest.MonkeyPatch, short_count: int
) -> None:
    monkeypatch.setattr(curves, "SHORT_COUNT", short_count)
    rounds = [a_round(number, None if number == 3 else number / 10) for number in range(1, 6)]
    rounds[4] = rounds[4].with_(spread={"accuracy": [0.1, 0.2, 0.3, 0.4, 0.9]})
    found = await Curves(store).of(await committed(store, *rounds), ["accuracy", "train_loss", "nothing"], 3)
    assert found.rounds == [2, 4, 5]
    assert found.series.keys() == {"accuracy", "train_loss"}
    accuracy, loss = found.series["accuracy"], found.series["train_loss"]
    assert accuracy.mean == pytest.approx([0.15, 0.4, 0.5])
    assert (accuracy.low, accuracy.high) == ([None, None, 0.1], [None, None, 0.9])
    assert (loss.mean, loss.low, loss.high) == ([6.0, 8.0, 9.5], [1.0, 3.0, 5.0], [11.0, 13.0, 14.0])


async def test_curves_have_a_point_for_each_round_that_there_is_room_for(store: Store) -> None:
    made = Curves(store)
    run = await committed(store)
    empty = await made.of(run, [], 5)
    assert (empty.rounds, empty.series) == ([], {})
    run = await committed(store, a_round(1, None), a_round(2, math.nan), a_round(3, 0.5))
    found = await made.of(run, [], 5)
    assert found.rounds == [1, 2, 3]
    assert found.series.keys() == {"accuracy", "train_loss"}
    assert found.series["accuracy"].mean == [None, None, 0.5]
    # What was read before is not read again, and what is new follows it.
    run = await committed(store, a_round(4, 0.75))
    assert (await made.of(run, ["accuracy"], 5)).series["accuracy"].mean == [None, None, 0.5, 0.75]
    assert (await made.of(run, ["accuracy"], 1)).series["accuracy"].mean == [0.625]


async def test_rounds_without_a_summary_are_counted_from_themselves(store: Store) -> None:
    rounds = [a_round(number, number / 100) for number in range(1, 2 * PIECE_ROUNDS + 5)]
    old, new = [rounds[0], *rounds[2 : PIECE_ROUNDS + 4]], [rounds[1], *rounds[PIECE_ROUNDS + 4 :]]
    for record in old:
        await store.put_round(record)
    run = await committed(store, *new)
    await store.put_round(a_round(len(rounds) + 1, None).with_(state=RoundState.OPEN))
    assert await store.summarized_numbers("run-1") == {record.number for record in new}

    assert await summaries(store, run, 0, 1000) == [summarized(record) for record in rounds]
    assert await summaries(store, run, 1, 3) == [summarized(record) for record in rounds[1:4]]
    assert await summaries(store, run, len(rounds), 5) == []
    ana, ben, cleo = await participations(store, run)
    count = len(rounds)
    assert (ana.client_id, ana.asked, ana.contributed, ana.bytes) == ("ana", count, count, 8 * count)
    assert (ben.train_seconds, ben.last_round) == (0.5 * count, count)
    assert (cleo.asked, cleo.contributed, cleo.last_round) == (count, 0, count)
    assert (await Curves(store).of(run, [], 1000)).rounds == list(range(1, count + 1))


def test_who_was_refused_in_an_attempt_before_the_last_was_asked_in_that_round() -> None:
    refusals = [
        RefusalRecord(client_id="dora", reason="not_finite", detail="coordinate 3"),
        RefusalRecord(client_id="zoe", reason="not_invited", detail="the client must have been asked, it was not"),
    ]
    record = a_round(4, 0.5).with_(refusals=refusals, attempt=1)
    tallies = tallied(record, {})
    assert (tallies["dora"].asked, tallies["dora"].last_round, tallies["dora"].refused) == (1, 4, {"not_finite": 1})
    assert (tallies["zoe"].asked, tallies["zoe"].last_round, tallies["zoe"].refused) == (0, 0, {"not_invited": 1})
