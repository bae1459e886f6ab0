"""Clients on the simulation's clock: the coordinator's own quorum, deadline and over-selection, with moments worked out by hand."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.data import LocalData
from server.errors import QuorumError
from server.records import RoundRecord
from server.selection import ranks_of
from simulation.clock import VirtualLoop
from simulation.cohort import SimulatedCohort
from simulation.history import simulated_seconds_of
from simulation.serial import SerialCohort
from simulation.vectorized import VectorizedCohort
from tests.simulation.federations import federation, play, sites
from wire.spec import RunSpec
from wire.tensors import Vector

SECOND = {"name": "constant", "value": 1.0}
SIZES = (2, 4, 8, 16)
"""Examples of the clients: with a second each, they take 2, 4, 8 and 16 seconds a round."""


def data() -> dict[str, LocalData]:
    return sites(SIZES, held_out=3)


def spec(cohort: Mapping[str, Any], **behaviour: Any) -> RunSpec:
    """Return a federation of these clients whose evaluation takes a second a client: 3 examples at a third of the time."""
    document = federation(rounds=2, size=4).model_dump(mode="json")
    document["cohort"] = {"size": 4, "retries": 0, **cohort}
    return RunSpec.model_validate_json(
        RunSpec.model_validate(document | {"simulation": {"seconds_per_example": SECOND} | behaviour}).model_dump_json()
    )


def played(
    configured: RunSpec,
    folder: Path,
    engine: type[SerialCohort] | type[VectorizedCohort] = SerialCohort,
    clients: Mapping[str, LocalData] | None = None,
) -> tuple[Vector, list[RoundRecord]]:
    """Play on a simulation's clock."""

    async def main() -> tuple[Vector, list[RoundRecord]]:
        cohort: SimulatedCohort = engine(configured, clients or data())
        vector, records = await play(cohort, configured, folder)
        return vector, list(records)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


def who(record: RoundRecord) -> list[str]:
    return [part.client_id for part in record.contributions]


ALL = ["site-0", "site-1", "site-2", "site-3"]


def test_round_of_all_takes_as_long_as_the_slowest(tmp_path: Path) -> None:
    _, records = played(spec({}), tmp_path / "run")
    assert [who(record) for record in records] == [ALL, ALL]
    for record in records:
        assert record.phase_seconds["train"] == pytest.approx(16.0)
        assert record.phase_seconds["evaluate"] == pytest.approx(1.0)
        assert simulated_seconds_of(record) == pytest.approx(17.0)


def test_straggler_misses_the_deadline_and_the_quorum_closes_the_round(tmp_path: Path) -> None:
    _, records = played(spec({"quorum": 2, "deadline_seconds": 10.0}), tmp_path / "run")
    assert [who(record) for record in records] == [ALL[:3], ALL[:3]]
    assert [record.phase_seconds["train"] for record in records] == pytest.approx([10.0, 10.0])


def test_over_selection_closes_the_round_with_the_fastest(tmp_path: Path) -> None:
    _, records = played(spec({"size": 2, "over_selection": 2.0}), tmp_path / "run")
    assert [record.selected for record in records] == [ALL, ALL]
    assert [who(record) for record in records] == [ALL[:2], ALL[:2]]
    assert [record.phase_seconds["train"] for record in records] == pytest.approx([4.0, 4.0])


def test_round_below_its_quorum_fails_at_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(QuorumError, match=r"quorum must be 4 contributions, got 1 of 4 asked, 3 no answer"):
        played(spec({"deadline_seconds": 3.0}), tmp_path / "run")


def test_links_add_the_time_of_both_ways(tmp_path: Path) -> None:
    configured = spec({}, bytes_per_second={"name": "constant", "value": 4 * 1210.0})
    vector, records = played(configured, tmp_path / "run")
    # A second each way for 1,210 parameters.
    assert vector.shape == (1210,)
    assert records[0].phase_seconds["train"] == pytest.approx(18.0)
    assert records[0].phase_seconds["evaluate"] == pytest.approx(2.0)


def test_clients_that_fall_out_are_waited_for_no_longer_than_they_may_return(tmp_path: Path) -> None:
    configured = spec({"quorum": 1, "return_seconds": 5.0, "deadline_seconds": 1000.0}, dropout=0.4)
    _, records = played(configured, tmp_path / "run")
    unanswered = [set(record.selected) - set(who(record)) for record in records]
    assert any(unanswered)
    assert all(len(contributed := who(record)) >= 1 and set(contributed) <= set(ALL) for record in records)
    for record in records:
        slowest = max(SIZES[ALL.index(client_id)] for client_id in who(record))
        # They fall out during their work; the round ends 5 s after the last of them did, or with the last contribution.
        assert slowest <= record.phase_seconds["train"] <= 16.0 + 5.0
    # A client is back in the next round: it is asked again.
    assert all(record.selected == ALL for record in records)


def test_absent_clients_are_waited_for_and_deliver_when_they_are_back(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [
        "client,from_seconds,until_seconds",
        # It is there 30 s after the start, so the first round begins then.
        "site-0,30,1000",
        "site-1,0,1000",
        "site-2,0,1000",
        # It goes in the middle of its 16 s of work, and is back 20 s later.
        "site-3,0,36",
        "site-3,56,1000",
    ]
    trace.write_text("\n".join(rows) + "\n")
    configured = spec({"deadline_seconds": 500.0, "return_seconds": 60.0}, trace=str(trace))
    configured = configured.model_copy(update={"rounds": 1})
    _, (record,) = played(configured, tmp_path / "run")
    assert record.phase_seconds["select"] == pytest.approx(30.0)
    assert who(record) == ALL
    assert record.phase_seconds["train"] == pytest.approx(26.0)


@pytest.mark.parametrize(
    ("cohort", "select_seconds", "chosen"),
    [
        pytest.param({"return_seconds": 5.0}, 15.0, (2, 3), id="one-return-in-all"),
        pytest.param({"return_seconds": 60.0, "wait_seconds": 11.0}, 11.0, (1, 2), id="no-longer-than-the-wait"),
        pytest.param({"return_seconds": 5.0, "over_selection": 1.5}, 10.0, (1, 2), id="over-selection"),
    ],
)
def test_selection_does_not_wait_for_one_absent_client_after_another_where_others_are_present(
    tmp_path: Path, cohort: dict[str, Any], select_seconds: float, chosen: tuple[int, ...]
) -> None:
    by_rank = [ALL[place] for place in np.argsort(ranks_of(ALL, spec({}).seed, 1))]
    # From 10 s on more than two are there, but the best goes at 8 s, and the next ones before the one before is given up.
    periods = ("0,8", "10,12", "10,16", "10,999")
    rows = [f"{client_id},{period}" for client_id, period in zip(by_rank, periods, strict=True)]
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join(["client,from_seconds,until_seconds", *rows]))
    configured = spec({"size": 2, "quorum": 1} | cohort, trace=str(trace)).model_copy(update={"rounds": 1})
    _, (record,) = played(configured, tmp_path / "run")
    assert record.phase_seconds["select"] == pytest.approx(select_seconds)
    assert record.selected == sorted(by_rank[place] for place in chosen)


def test_absent_client_costs_no_more_than_the_time_in_which_it_may_return(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("client,from_seconds,until_seconds\nsite-0,0,999\nsite-1,0,999\nsite-2,0,999\nsite-3,0,6\n")
    configured = spec({"quorum": 2, "return_seconds": 5.0}, trace=str(trace)).model_copy(update={"rounds": 1})
    _, (record,) = played(configured, tmp_path / "run")
    assert who(record) == ALL[:3]
    assert record.phase_seconds["train"] == pytest.approx(11.0)


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_engines_agree_on_who_is_in_and_when(tmp_path: Path, jitter: float) -> None:
    behaviour = {"jitter": jitter, "dropout": 0.2, "presence": {"present_seconds": 60.0, "absent_seconds": 20.0}}
    configured = spec({"size": 2, "quorum": 1, "over_selection": 2.0, "deadline_seconds": 12.0}, **behaviour)
    expected, serial = played(configured, tmp_path / "serial")
    found, vectorized = played(configured, tmp_path / "vectorized", VectorizedCohort)
    assert [who(record) for record in vectorized] == [who(record) for record in serial]
    assert [record.phase_seconds for record in vectorized] == [record.phase_seconds for record in serial]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_engines_agree_on_who_is_refused_and_when(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    # site-3, which has nothing to weigh its contribution by, is away until long after the others are done.
    trace.write_text(
        "client,from_seconds,until_seconds\nsite-0,0,999\nsite-1,0,999\nsite-2,0,999\nsite-3,0,1\nsite-3,90,999\n"
    )
    configured = spec({"quorum": 2, "return_seconds": 5.0}, trace=str(trace))
    configured = configured.model_copy(update={"rounds": 1, "weight_by": "quality"})
    without = data()
    without["site-3"] = LocalData(
        "memory", without["site-3"].training, without["site-3"].held_out.select(torch.arange(0))
    )
    rounds = []
    for engine in (SerialCohort, VectorizedCohort):
        _, (record,) = played(configured, tmp_path / engine.__name__, engine, without)
        rounds.append((who(record), record.refusals, record.phase_seconds))
    assert rounds[0] == rounds[1]
    assert rounds[0][0] == ALL[:3]


def test_without_behaviour_rounds_take_no_simulated_time_and_have_no_deadline(tmp_path: Path) -> None:
    configured = federation(rounds=2, size=4)
    _, records = played(configured, tmp_path / "run")
    assert [simulated_seconds_of(record) for record in records] == [0.0, 0.0]
    assert [who(record) for record in records] == [ALL, ALL]


def test_without_behaviour_over_selection_draws_who_comes_first(tmp_path: Path) -> None:
    configured = federation(rounds=8, size=2)
    cohort = configured.cohort.model_copy(update={"over_selection": 2.0})
    configured = configured.model_copy(update={"cohort": cohort})
    _, records = played(configured, tmp_path / "serial")
    _, again = played(configured, tmp_path / "vectorized", VectorizedCohort)
    assert [who(record) for record in again] == [who(record) for record in records]
    assert {client_id for record in records for client_id in who(record)} == set(ALL)
