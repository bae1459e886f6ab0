"""Who may have a session: the clients that the roster lists, for as long as it does."""

import asyncio
import logging

from privacy.enrolment import EnrolmentFile
from server.clients.sessions import Sessions
from server.errors import ConfigurationError

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
"""How long a client may stay that the roster's file, or the calendar, no longer lets in."""


class Doorkeeper:
    """Lets in who is enrolled, and turns out who no longer is."""

    def __init__(self, file: EnrolmentFile, coordinator_key: str, sessions: Sessions) -> None:
        """Turn out at once who must not come back after a restart.

        Args:
            file: The roster.
            coordinator_key: This coordinator's public key, hexadecimal.
            sessions: Where clients are turned out.

        Raises:
            ConfigurationError: The roster names another coordinator.
        """
        self._file = file
        self._coordinator_key = coordinator_key
        self._sessions = sessions
        self._roster = file.latest()
        if problem := self._problem():
            raise ConfigurationError(f"{problem} Let the officer run: choral enroll set-coordinator {coordinator_key}")
        self._turn_out()

    async def problem_with(self, public_key: bytes) -> str:
        """Return why a client must not be let in, in one sentence without a full stop; empty when it may."""
        await self._follow()
        return self._roster.problem_with(public_key)

    async def watch(self) -> None:
        """Turn out who may no longer take part, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            await self._follow()
            self._turn_out()

    async def _follow(self) -> None:
        roster = await asyncio.to_thread(self._file.latest)
        # One that was read later may have come back earlier.
        if roster.epoch <= self._roster.epoch:
            return
        self._roster = roster
        # Its revocations hold all the same; clients that check the coordinator's signature will not believe this one.
        if problem := self._problem():
            log.warning("%s", problem)

    def _turn_out(self) -> None:
        for client in self._sessions.clients():
            if problem := self._roster.problem_with_id(client.client_id):
                self._sessions.expel(client.client_id, problem)

    def _problem(self) -> str:
        """Return what is wrong with the coordinator that the roster names, in a sentence."""
        if (got := self._roster.coordinator_key) == self._coordinator_key:
            return ""
        return (
            f"Roster {self._file.path}: coordinator_key must be this coordinator's, {self._coordinator_key}, "
            f"got {got or 'none'}."
        )
