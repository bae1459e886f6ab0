"""Secure aggregation in the serial engine: the same model to the bit as a sum in the clear on the same grid (laws L1 and L2)."""

import logging
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.training import Assignment, Trainer
from server.aggregation import WeightedMean
from server.checkpoints import checkpoint_path
from server.cohort import Order
from server.errors import QuorumError
from server.inbox import Arrival, Binding
from server.masking.masked import MaskedSum
from server.masking.session import SecureSession
from server.model import ModelShop, read_checkpoint
from server.records import RoundRecord, RunState
from server.rounds import Rounds, Site
from simulation.cohort import Outcome
from simulation.play import play
from simulation.resources import Resources
from simulation.serial import SerialCohort
from simulation.simulate import simulate
from tests.client.masked import is_statement
from tests.server.cohorts import DIGITS, blocks, opened
from tests.simulation.federations import made
from wire.spec import RunSpec, validate_spec
from wire.tensors import Vector

CPU = Resources(device="cpu")
COUNT = 5
SETTING: dict[str, Any] = {"data": "digits,blocks=0|1", "clients": COUNT, "device": "cpu"}


def masked(secure: dict[str, Any] | None = None, **changes: Any) -> RunSpec:
    """Return a masked spec for five clients, who are all needed; parts of it changed."""
    rules = {"corrupt_fraction": 0.0, "dropout_fraction": 0.2, "coordinate_bound": 1.0, **(secure or {})}
    document: dict[str, Any] = {
        "name": "masked",
        "seed": 5,
        **DIGITS,
        "rounds": 2,
        "cohort": {"size": COUNT, "deadline_seconds": 60, "wait_seconds": 20, "retries": 0},
        "local": {"batch_size": 16, "optimizer": {"name": "sgd", "learning_rate": 0.2}},
        "privacy": {"secure_aggregation": rules},
    }
    for key, value in changes.items():
        document[key] = document[key] | value if isinstance(document.get(key), dict) else value
    return validate_spec(document)


class InTheClear(SerialCohort):
    """The same engine without secure aggregation, on the same grid."""

    speaks_secagg = False


async def played(
    configured: RunSpec, folder: Path, kind: type[SerialCohort] = SerialCohort
) -> tuple[Vector, list[RoundRecord]]:
    """Play a run over five blocks of digits; return its last model and its rounds."""
    cohort = kind(configured, blocks(*range(COUNT)), CPU)
    async with opened(made(folder)) as store:
        site = Site(store, cohort, folder / "run", authority=cohort.authority)
        run = await play(configured, site)
        rounds = list(await store.rounds(run.run_id))
    return model_in(folder / "run", configured, run.round_number), rounds


def model_in(folder: Path, configured: RunSpec, number: int) -> Vector:
    return read_checkpoint(checkpoint_path(folder, number), ModelShop(configured).initial().layout).vector


# --- The same to the bit ---


def test_simulate_serial_equals_the_sum_in_the_clear_of_processes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configured = masked()
    with caplog.at_level(logging.INFO):
        serial = simulate(configured, tmp_path / "serial", engine="serial", **SETTING)
        assert "sums in the clear" not in caplog.text
        processes = simulate(configured, tmp_path / "processes", engine="processes", workers=1, **SETTING)
    assert (
        "engine processes: sums in the clear, on the grid of secure aggregation; serial plays the protocol"
        in caplog.messages
    )
    assert serial.run.model_sha256 == processes.run.model_sha256
    for masked_round, plain_round in zip(serial.rounds, processes.rounds, strict=True):
        # The coordinator of a masked run knows nobody's weight, examples and metrics, only their sums.
        assert [(part.weight, part.example_count, part.metrics) for part in masked_round.contributions] == [
            (0, 0, {})
        ] * COUNT
        assert masked_round.example_count == plain_round.example_count > 0
        assert masked_round.metrics.keys() == plain_round.metrics.keys()
        for name, value in plain_round.metrics.items():
            assert masked_round.metrics[name] == pytest.approx(value, abs=2**-20)
        assert (masked_round.session_count, plain_round.session_count) == (2, 0)


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
async def test_masked_mean_equals_the_plain_mean_on_the_same_grid(tmp_path: Path, ring_bits: int) -> None:
    configured = masked({"ring_bits": ring_bits, "weight_cap": 90, "coordinate_bound": 0.25}, rounds=1)
    sites, shop = blocks(*range(COUNT)), ModelShop(configured)
    base = shop.initial()
    order = Order("run", 1, 0, configured, base, COUNT)
    assert (order.grid.ring_bits, order.grid.is_clipping) == (ring_bits, True)
    mean = WeightedMean(order.grid, base.layout.size)
    trainer = Trainer(configured.learner, CPU.one_device())
    for client_id, data in sites.items():
        result = trainer.train(Assignment(configured, 1, client_id, base.vector), data, lambda _: None)
        # Both the cap and the bound have something to cut.
        assert (len(data.training) > 90, result.weight) == (True, 90)
        mean.add(result.vector, result.weight)
    expected = shop.next(base, mean.mean(), mean.weight_total, 1)
    found, _ = await played(configured, tmp_path / "masked")
    assert np.array_equal(found, expected.vector)
    assert not np.array_equal(found, base.vector)


@pytest.mark.parametrize(
    ("secure", "changes"),
    [
        ({}, {"weight_by": "quality"}),
        ({}, {"cohort": {"over_selection": 1.6, "size": 3}}),
        ({"key_agreement": "x25519_mlkem768"}, {}),
    ],
)
async def test_masked_run_equals_the_same_run_in_the_clear(
    tmp_path: Path, secure: dict[str, Any], changes: dict[str, Any]
) -> None:
    configured = masked({"weight_cap": 10_000, **secure}, **changes)
    found, rounds = await played(configured, tmp_path / "masked")
    expected, plain = await played(configured, tmp_path / "plain", InTheClear)
    assert np.array_equal(found, expected)
    assert [[part.client_id for part in record.contributions] for record in rounds] == [
        [part.client_id for part in record.contributions] for record in plain
    ]


async def test_masked_run_with_a_larger_model_is_added_off_the_event_loop(tmp_path: Path) -> None:
    configured = masked(rounds=1, learner={"name": "mlp", "inputs": [1, 8, 8], "hidden": [1000], "classes": 10})
    found, _ = await played(configured, tmp_path / "masked")
    expected, _ = await played(configured, tmp_path / "plain", InTheClear)
    assert np.array_equal(found, expected)


# --- Clients that fall out ---


class Spoiled(SerialCohort):
    """One client brings a coordinate that is not a number."""

    async def _outcomes(
        self, order: Order, client_ids: Sequence[str], binding: Binding
    ) -> AsyncGenerator[Outcome, None]:
        async for outcome in super()._outcomes(order, client_ids, binding):
            if isinstance(outcome, Arrival) and outcome.client_id == "site-2":
                outcome.vector[7] = np.nan
            yield outcome


class SpoiledInTheClear(Spoiled, InTheClear):
    """The same in the clear."""


async def test_client_with_nan_is_left_out(tmp_path: Path) -> None:
    configured = masked(cohort={"quorum": 4})
    found, rounds = await played(configured, tmp_path / "masked", Spoiled)
    expected, _ = await played(configured, tmp_path / "plain", SpoiledInTheClear)
    assert np.array_equal(found, expected)
    for record in rounds:
        assert "site-2" not in [part.client_id for part in record.contributions]
        [refusal] = record.refusals
        assert (refusal.client_id, refusal.reason) == ("site-2", "client_error")
        assert refusal.detail == "Contribution: every coordinate must be finite, got one that is not."


async def test_quorum_that_is_missing_pauses_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(
        QuorumError, match=r"^Round 1: quorum must be 5 contributions, got 1 of 5 asked, 1 client error, 3 not awaited"
    ):
        await played(masked(), tmp_path / "masked", Spoiled)


def test_dropouts_during_training_cost_nothing(tmp_path: Path) -> None:
    configured = masked(
        {"dropout_fraction": 0.0},
        rounds=4,
        cohort={"size": 4, "over_selection": 1.25, "quorum": 3, "return_seconds": 5},
        simulation={"dropout": 0.3},
    )
    setting = SETTING | {"clients": 8}
    serial = simulate(configured, tmp_path / "serial", engine="serial", **setting)
    plain = simulate(configured, tmp_path / "vectorized", engine="processes", workers=1, **setting)
    assert serial.run.model_sha256 == plain.run.model_sha256
    # Somebody did fall out, and no session was held a second time for it.
    counts = [len(record.contributions) for record in serial.rounds]
    assert any(count < len(record.selected) for count, record in zip(counts, serial.rounds, strict=True))
    assert [(record.attempt, record.session_count) for record in serial.rounds] == [(0, 2)] * 4


# --- Evaluation and recovery ---


async def test_evaluation_is_summed_in_a_session_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[str, int, int]] = []
    prepare = SecureSession.__init__

    def note(self: SecureSession, order: Order, kind: Any, number: int, body_size: int, setting: Any) -> None:
        held.append((kind, number, body_size))
        prepare(self, order, kind, number, body_size, setting)

    monkeypatch.setattr(SecureSession, "__init__", note)
    configured = masked({"audit": True}, evaluate={"every": 2})
    _, rounds = await played(configured, tmp_path / "masked")
    size = ModelShop(configured).initial().layout.size
    assert held == [("train", 0, size), ("train", 0, size), ("evaluate", 1, 0)]
    assert ["accuracy" in record.metrics for record in rounds] == [False, True]
    assert [[audit.kind for audit in record.audits] for record in rounds] == [["train"], ["train", "evaluate"]]
    for audit in (audit for record in rounds for audit in record.audits):
        assert len(audit.uploads) == COUNT
        assert all(is_statement(audit, upload) for upload in audit.uploads)


class Cut(Exception):
    """The process ends here."""


@pytest.mark.parametrize("moment", ["before-opening", "before-evaluation", "before-commit"])
def test_simulation_that_was_cut_off_goes_on_to_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    owner, method = {
        "before-opening": (MaskedSum, "open"),
        "before-evaluation": (Rounds, "_evaluate"),
        "before-commit": (Rounds, "_commit"),
    }[moment]
    configured = masked(rounds=3)
    expected = simulate(configured, tmp_path / "whole", engine="serial", **SETTING)
    calls = 0
    original = getattr(owner, method)

    def cut(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == (3 if moment == "before-opening" else 2):
            raise Cut
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, cut)
        with pytest.raises(Cut):
            simulate(configured, tmp_path / "cut", engine="serial", **SETTING)
    found = simulate(configured, tmp_path / "cut", engine="serial", **SETTING)
    assert found.run.state is RunState.FINISHED
    assert found.run.model_sha256 == expected.run.model_sha256
    assert [record.metrics for record in found.rounds] == [record.metrics for record in expected.rounds]
    assert [record.contributions for record in found.rounds] == [record.contributions for record in expected.rounds]
