"""What cannot be had together with secure aggregation is said before the run, wherever a run begins."""

import re
from pathlib import Path
from typing import Any

import pytest

from privacy.secagg.combinations import check_masking
from server.rounds import Site
from server.runs import Runs
from simulation.simulate import simulate
from tests.privacy.secagg.refusals import REFUSALS, masked
from tests.server.cohorts import ScriptedCohort, opened
from wire.errors import SpecError
from wire.spec import validate_spec

refused = pytest.mark.parametrize(("document", "sentence"), REFUSALS.values(), ids=REFUSALS)


@refused
def test_check_of_a_run_that_cannot_be_masked_says_why(document: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}"):
        check_masking(validate_spec(document))


@refused
def test_simulate_what_cannot_be_masked_is_refused_before_anything_is_made(
    tmp_path: Path, document: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}"):
        simulate(document, tmp_path / "simulated", clients=5)
    assert list(tmp_path.iterdir()) == []


@refused
async def test_submit_of_what_cannot_be_masked_is_refused_and_stores_nothing(
    tmp_path: Path, document: dict[str, Any], sentence: str
) -> None:
    async with opened(tmp_path) as store:
        runs = Runs(Site(store, ScriptedCohort("abcde"), tmp_path / "runs"), 1)
        with pytest.raises(SpecError, match=f"^{re.escape(sentence)}"):
            await runs.submit(validate_spec(document))
        assert await store.runs() == []


def test_ring_that_is_too_narrow_for_the_clients_is_refused() -> None:
    with pytest.raises(SpecError, match=r"clients must be at most 16384 with ring_bits 16, got 16385\.$"):
        check_masking(validate_spec(masked({"ring_bits": 16, "weight_cap": 1}, cohort={"size": 16_385})))


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(masked(), id="plain"),
        pytest.param(masked({"weight_cap": 64}, weight_by="quality"), id="quality-at-the-cap"),
        pytest.param(masked({"ring_bits": 16, "weight_cap": 13_106}), id="largest-weights"),
        pytest.param(masked({"minimum_cohort": 2}, cohort={"size": 2}), id="two-clients"),
        pytest.param(masked(stop_when={"metric": "loss", "at_most": 0.1}), id="stop-by-a-summed-metric"),
        pytest.param(
            masked(
                {"metrics": []}, stop_when={"metric": "f1", "at_least": 0.9}, evaluate={"on": "coordinator", "every": 1}
            ),
            id="stop-by-the-coordinator's-own-metric",
        ),
    ],
)
def test_check_of_what_can_be_masked_says_nothing(document: dict[str, Any]) -> None:
    check_masking(validate_spec(document))
