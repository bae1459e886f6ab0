"""A run whose disk is full in its third round, then is not any more: FOLDER, LIMIT of a file in bytes, hidden UNITS of the model.

Prints, as JSON: the status of the paused run, its last round, its files, and the model's hash at its end and at that of an undisturbed run.
"""

import asyncio
import json
import resource
import sys
from pathlib import Path

import numpy as np

from server.cohort import Order
from server.records import RunState
from tests.loopback import until
from tests.server.cohorts import Act, Bring, ScriptedCohort, opened, spec
from tests.server.playing import playing, state_of

FOLDER, LIMIT, UNITS = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])


def limit_files(byte_count: int) -> None:
    """Let no file of this process grow beyond so many bytes: to whoever writes, that is a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (byte_count, resource.RLIM_INFINITY))


async def bring(order: Order, client_id: str) -> Act:
    """Bring what was drawn for this round and client."""
    generator = np.random.default_rng([order.round_number, ord(client_id)])
    return Bring(generator.normal(size=order.model.layout.size).astype(np.float32))


async def bring_on_full_disk(order: Order, client_id: str) -> Act:
    """The same, with the disk full from round 3 on."""
    if order.round_number == 3:
        limit_files(LIMIT)
    return await bring(order, client_id)


async def main() -> None:
    """Play the run until it pauses, mend the disk, and play it to its end."""
    configured = spec(rounds=4, learner={"hidden": [UNITS]})
    cohort = ScriptedCohort("abc", bring_on_full_disk)
    async with opened(FOLDER) as store, playing(store, cohort, FOLDER) as runs:
        run_id = (await runs.submit(configured)).run_id

        async def paused() -> tuple[str, int] | None:
            run = await store.run(run_id)
            status = runs.now().run(run).status
            return (status, run.round_number) if status.startswith("paused: ") else None

        status, round_number = await until(paused, "the run to pause")
        cohort.train_script = bring
        limit_files(resource.RLIM_INFINITY)
        files = sorted(path.name for path in runs.folder(run_id).iterdir())
        await runs.resume(run_id)
        finished = await state_of(store, run_id, RunState.FINISHED)
        twin = await state_of(store, (await runs.submit(configured)).run_id, RunState.FINISHED)
        outcome = [status, round_number, files, finished.model_sha256, twin.model_sha256]
    sys.stdout.write(json.dumps(outcome))


if __name__ == "__main__":
    asyncio.run(main())
