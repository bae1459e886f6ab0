"""A client that comes back soon, and kills itself with SIGKILL at a chosen moment of its second round, or never.

MOMENT, then the command line's arguments.
"""

import os
import signal
import sys
from typing import Any

from choral.cli import main
from client import agent, training
from client.connection import Connection
from client.worker import Worker

MOMENT = sys.argv[1]

# A coordinator that went is back in a few seconds; the usual pauses, of up to 8 s, would be longer than all the rest.
agent.LONGEST_WAIT_SECONDS = 0.5


def die() -> None:
    """End as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


match MOMENT:
    case "never":
        pass
    case "while-drawing":

        async def die_at_once(self: Worker, task: Any, spec: Any) -> None:
            """Die in place of drawing a first model."""
            die()

        Worker._draw = die_at_once  # type: ignore[method-assign]
    case "while-training":
        train = training.Trainer.train

        def train_then_die(self: Any, assignment: training.Assignment, data: Any, report: Any) -> Any:
            """Die in the middle of the second round's training."""

            def report_then_die(fraction: float) -> None:
                if assignment.round_number == 2 and fraction > 0.5:
                    die()
                report(fraction)

            return train(self, assignment, data, report_then_die)

        training.Trainer.train = train_then_die  # type: ignore[method-assign]
    case "while-uploading":
        upload = Connection.upload

        async def upload_then_die(self: Connection, header: Any, data: memoryview, report: Any) -> Any:
            """Die after the first slice of the second round's upload."""

            def report_then_die(fraction: float) -> None:
                if header.round == 2:
                    die()
                report(fraction)

            return await upload(self, header, data, report_then_die)

        Connection.upload = upload_then_die  # type: ignore[method-assign]
    case "after-sharing":
        hear = Worker.hear

        def hear_then_die(self: Worker, message: Any) -> None:
            """Die when all have shared in the second round, in place of uploading."""
            if message.HasField("delivery") and self._task.round == 2 and self._task.HasField("train"):
                die()
            hear(self, message)

        Worker.hear = hear_then_die  # type: ignore[method-assign]
    case _:
        raise SystemExit(f"unknown moment {MOMENT}")

sys.argv = ["choral", *sys.argv[2:]]
main()
