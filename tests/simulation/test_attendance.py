"""Who is there, kept from look to look: the same as asked anew, at a cost that follows the changes."""

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.cohort import Member
from simulation.attendance import Attendance
from simulation.population import Population
from simulation.presence import Presence
from wire.realism import SimulationSpec

NAMES = [f"client-{number:04}" for number in range(60)]
SPEC = SimulationSpec.model_validate({"presence": {"present_seconds": 40.0, "absent_seconds": 80.0}})


class Counted(Population):
    """A population that counts how often it is asked."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.count = 0

    def presence(self, client_id: str, time: float) -> Presence:
        self.count += 1
        return super().presence(client_id, time)


def asked_anew(population: Population, now: float, fallen_out: dict[str, float]) -> list[Member]:
    members = []
    for name in NAMES:
        presence, fell = population.presence(name, now), fallen_out.get(name, math.inf)
        left = [] if presence.is_present else [presence.since]
        left += [fell] if fell <= now or left else []
        members.append(Member(name, name, not left, min(left, default=0.0)))
    return members


@given(
    steps=st.lists(st.floats(0, 200), min_size=1, max_size=8),
    fallen_out=st.dictionaries(st.sampled_from(NAMES), st.floats(0, 500), max_size=4),
)
def test_members_are_those_that_are_there_at_each_moment(steps: list[float], fallen_out: dict[str, float]) -> None:
    population, now = Population(SPEC, NAMES, 3), 0.0
    attendance = Attendance(population, NAMES)
    for step in steps:
        now += step
        assert attendance.members(now, fallen_out) == asked_anew(population, now, fallen_out)
        assert attendance.members(now, {}) == asked_anew(population, now, {})
        assert attendance.next_turn(now) == min(population.presence(name, now).until for name in NAMES)


def test_members_look_only_at_those_that_have_come_or_gone_since() -> None:
    population = Counted(SPEC, NAMES, 3)
    attendance = Attendance(population, NAMES)
    before, now = attendance.members(0.0, {}), 0.0
    for _ in range(20):
        population.count, now = 0, attendance.next_turn(now)
        after = attendance.members(now, {})
        changed = sum(old != new for old, new in zip(before, after, strict=True))
        assert (changed, population.count) == (1, 2)
        before = after


def test_clients_that_never_leave_are_looked_at_once() -> None:
    population = Counted(SimulationSpec(), NAMES, 3)
    attendance = Attendance(population, NAMES)
    assert attendance.next_turn(0.0) == math.inf
    population.count = 0
    assert all(member.is_present for member in attendance.members(1e9, {}))
    assert population.count == 0
