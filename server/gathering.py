"""Getting the clients of a round together: those that an earlier attempt chose, or new ones, once enough are present."""

import asyncio
from collections.abc import Collection, Sequence

from server.cohort import Cohort
from server.errors import QuorumError
from server.monitoring.status import Status
from server.selection import Choice, choose
from wire.spec import RunSpec


async def are_free(client_ids: Sequence[str], cohort: Cohort, seconds: float, status: Status) -> bool:
    """Wait until no other run has any of these clients; tell whether that came about."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + seconds

    def free_count() -> int:
        taken = {member.client_id for member in cohort.members() if member.claimed_by}
        return len(set(client_ids) - taken)

    with status.waiting("clients", free_count, len(client_ids), seconds):
        while free_count() < len(client_ids) and (now := loop.time()) < give_up:
            await cohort.changed.wait(give_up - now)
    return free_count() == len(client_ids)


async def select(
    spec: RunSpec, round_number: int, refused: Collection[str], cohort: Cohort, status: Status
) -> Sequence[str]:
    """Wait until enough clients are present, and choose among them.

    Who has just dropped off keeps its place; but among many some always have, so that once there are enough others, nobody is waited
    for longer than one client may take to come back.

    Raises:
        QuorumError: There are not even enough for a quorum.
    """
    loop, rules = asyncio.get_running_loop(), spec.cohort
    back_by = give_up = loop.time() + rules.wait_seconds

    def choice_now() -> Choice:
        members, now = cohort.members(), loop.time()
        if now >= back_by:
            members = [member for member in members if member.is_present]
        return choose(members, spec, round_number, now, set(refused))

    choice = choice_now()
    with status.waiting("clients", lambda: len(choice_now().present), choice.want, rules.wait_seconds):
        while not choice.is_ready and (now := loop.time()) < give_up:
            if choice.has_others:
                back_by = min(back_by, now + rules.return_seconds)
            until = min(choice.back_by, back_by if now < back_by else give_up)
            await cohort.changed.wait(max(0.0, until - now))
            choice = choice_now()
    if not choice.is_ready and len(choice.present) < rules.fewest:
        fewest = "1 client" if rules.fewest == 1 else f"{rules.fewest} clients"
        raise QuorumError(
            f"Round {round_number}: at least {fewest} must be present within {rules.wait_seconds:g} s, "
            f"got {len(choice.present)}.",
            f"Start more clients that can run {spec.learner.name!r}, then resume the run.",
        )
    return choice.present
