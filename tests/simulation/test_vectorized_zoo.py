"""Every learner of the zoo agrees in the vectorized engine with the serial one, or is refused: who is registered is tested."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.data import LocalData, load, parse_source
from models import MODELS
from models.examples import example_of
from server.model import ModelShop
from simulation.engines import choose
from simulation.reasons import reason_against
from simulation.resources import Resources
from simulation.serial import SerialCohort
from simulation.vectorized import VectorizedCohort
from tests.models.test_conformance import VARIANTS
from tests.simulation.federations import SIZES, made, play
from wire.errors import SpecError
from wire.spec import Named, RunSpec, validate_spec

CPU = Resources(device="cpu")
HELD_OUT = 5
MORE = {
    "cnn-two-convolutions-batch-norm": Named(name="cnn", channels=[[4, 8]], batch_norm=True),
    "mlp-regressor-dropout": Named(name="mlp_regressor", hidden=[16, 16], dropout=0.3, activation="gelu"),
    "cnn-dropout": Named(name="cnn", channels=[4, 6], hidden=8, dropout=0.5, feature_dropout=0.2),
}

SGD = {"name": "sgd", "learning_rate": 0.1}
LOCALS: list[dict[str, Any]] = [
    {"epochs": 2, "batch_size": 8, "optimizer": SGD, "proximal_mu": 0.0},
    {"epochs": 2, "batch_size": 8, "optimizer": SGD | {"momentum": 0.9}, "proximal_mu": 0.1},
]


def spec_of(name: str, local: dict[str, Any]) -> tuple[RunSpec, str]:
    """Return a run of five rounds with clients of many sizes, and the source of data that suits the learner."""
    learner = VARIANTS.get(name) or MORE.get(name)
    example = example_of(learner.name if learner else name)
    given = (learner or example.spec.learner).model_dump()
    cohort = {"size": len(SIZES), "deadline_seconds": 60, "retries": 0}
    spec: dict[str, Any] = {"name": "zoo", "seed": 11, "learner": given, "rounds": 5, "cohort": cohort}
    needed = example.spec.local.model_dump(exclude={"schedule"}, exclude_none=True)
    return validate_spec(spec | {"local": needed | local}), example.data


def sites_of(source: str) -> dict[str, LocalData]:
    """Return examples of a source, at equal distances, dealt to clients of `SIZES`."""
    whole, start, parts = load(parse_source(source)), 0, {}
    rows = torch.arange(0, len(whole), len(whole) // (sum(SIZES) + HELD_OUT * len(SIZES)))
    for number, size in enumerate(SIZES):
        middle, end = start + size, start + size + HELD_OUT
        parts[f"site-{number}"] = LocalData("memory", whole.select(rows[start:middle]), whole.select(rows[middle:end]))
        start = end
    return parts


@pytest.mark.usefixtures("bases")
@pytest.mark.parametrize("name", [*MODELS, *VARIANTS, *MORE])
async def test_learner_agrees_with_serial_after_five_rounds_or_is_refused(tmp_path: Path, name: str) -> None:
    configured, source = spec_of(name, {})
    if reason := reason_against(configured, torch.device("cpu")):
        with pytest.raises(SpecError, match=r"^Run spec: the vectorized engine cannot train it: .+ Take processes or"):
            VectorizedCohort(configured, {}, CPU)
        engine, said = choose("auto", configured, CPU)
        assert engine != "vectorized"
        assert said.startswith(reason)
        return
    for local in LOCALS:
        await assert_agrees(spec_of(name, local)[0], sites_of(source), tmp_path / f"mu-{local['proximal_mu']}")


async def assert_agrees(configured: RunSpec, data: dict[str, LocalData], folder: Path) -> None:
    made(folder)
    serial, expected = await play(SerialCohort(configured, data, CPU), configured, folder / "serial")
    vectorized, found = await play(VectorizedCohort(configured, data, CPU), configured, folder / "vectorized")
    moved = float(np.linalg.norm(serial - ModelShop(configured).initial().vector))
    assert moved > 0.01
    assert float(np.linalg.norm(vectorized - serial)) < 1e-4 * moved
    for own, other in zip(found, expected, strict=True):
        assert own.metrics == pytest.approx(other.metrics, rel=1e-4)
