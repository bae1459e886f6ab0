"""What clients behind gRPC are told of a run."""

from pathlib import Path

from server.records import RunState
from tests.hostile import drawn_vector, joined
from tests.loopback import everyone, run_in_state, serving, small_spec
from wire.spec import RunSpec


async def test_task_says_everything_of_the_spec_but_how_simulated_clients_behave(tmp_path: Path) -> None:
    spec = small_spec(cohort={"size": 1, "quorum": 1}, simulation={"dropout": 0.5})
    assert spec.simulation is not None
    async with serving(tmp_path) as coordinator, joined(coordinator.address) as session:
        await coordinator.runs.submit(spec)
        told = RunSpec.model_validate_json((await session.task()).spec_json)
    assert told == spec.model_copy(update={"simulation": None})


async def test_client_whose_contribution_closes_the_round_is_not_told_to_stop_its_task(tmp_path: Path) -> None:
    async with serving(tmp_path) as coordinator, everyone([joined(coordinator.address) for _ in range(3)]) as sessions:
        run = await coordinator.runs.submit(small_spec(rounds=3))
        for number in (1, 2, 3):
            for session in sessions:
                # What comes after a contribution is the next round's task, and nothing between the two.
                message = await session.receive()
                assert message is not None
                assert message.WhichOneof("message") == "task"
                assert message.task.round == number
                await session.contribute(message.task, drawn_vector(number, 67))
        await run_in_state(coordinator, run.run_id, RunState.FINISHED)
