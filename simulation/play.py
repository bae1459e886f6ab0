"""Plays one run over clients that are all there, with the server's own rounds, aggregation, evaluation and store."""

import time

from server.monitoring.status import Status
from server.records import RunRecord, RunState
from server.rounds import Rounds, Site
from wire.errors import SpecError
from wire.spec import RunSpec

RUN_ID = "simulation"
"""Identity of a run that has a store of its own."""


async def play(spec: RunSpec, site: Site) -> RunRecord:
    """Play a run, or go on with the one that the store holds, and return it finished; its last model lies in the site's folder.

    Raises:
        SpecError: The spec asks for more clients than there are. Nothing was stored.
        ChoralError: As `Rounds.play`.
    """
    _check_cohort(spec, len(site.cohort.members()))
    run = next(iter(await site.store.runs()), None)
    if run is None:
        run = RunRecord(run_id=RUN_ID, spec=spec, state=RunState.RUNNING, submitted_time=time.time())
        await site.store.put_run(run)
    return await Rounds(run, site, Status()).play()


def _check_cohort(spec: RunSpec, site_count: int) -> None:
    """Refuse a cohort that no round could fill: a coordinator waits for clients to come, but here nobody can."""
    for key, count in (("size", spec.cohort.size), ("quorum", spec.cohort.fewest)):
        if count is not None and count > site_count:
            raise SpecError(
                f"Run spec: cohort.{key} must be at most the number of sites, {site_count}, got {count}. "
                f"Give more sites, or lower cohort.{key}."
            )
