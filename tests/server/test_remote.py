"""What clients behind gRPC are told of a run."""

from pathlib import Path

from tests.hostile import joined
from tests.loopback import serving, small_spec
from wire.spec import RunSpec


async def test_task_says_everything_of_the_spec_but_how_simulated_clients_behave(tmp_path: Path) -> None:
    spec = small_spec(cohort={"size": 1, "quorum": 1}, simulation={"dropout": 0.5})
    assert spec.simulation is not None
    async with serving(tmp_path) as coordinator, joined(coordinator.address) as session:
        await coordinator.runs.submit(spec)
        told = RunSpec.model_validate_json((await session.task()).spec_json)
    assert told == spec.model_copy(update={"simulation": None})
