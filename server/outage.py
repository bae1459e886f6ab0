"""What cannot be done for a while is told twice: when that begins and when it is over, whoever tries it and however often."""

import logging
import time


class Outage:
    """One thing that is tried again and again, perhaps by several tasks of one event loop."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        """Prepare to tell of it.

        Args:
            log: Where.
            what: What cannot be done, such as "the events cannot be followed".
        """
        self._log = log
        self._what = what
        self._begun: float | None = None

    def note(self, error: Exception) -> None:
        """Take note that it could not be done."""
        if self._begun is None:
            self._begun = time.monotonic()
            self._log.warning("%s, trying again: %s", self._what, error)

    def end(self) -> None:
        """Take note that it was done."""
        if self._begun is not None:
            self._log.info("over after %.1f s: %s", time.monotonic() - self._begun, self._what)
            self._begun = None
