"""A coordinator that kills itself with SIGKILL at a chosen moment of a chosen round: MOMENT ROUND, then the command line's arguments."""

import asyncio
import os
import signal
import sys
from typing import Any

from choral.cli import main
from privacy.secagg.coordinator import CoordinatorSession
from server.checkpoints import Checkpoints
from server.clients.service import FederationService
from server.rounds import Rounds
from server.store.sqlite import SqliteStore
from wire import slices

MOMENT, ROUND = sys.argv[1], int(sys.argv[2])


def die() -> None:
    """End as kill -9 does: nothing is flushed, closed or said."""
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: type, name: str, is_due: Any) -> None:
    """Die before a method runs, when the arguments say that it is due."""
    original = getattr(owner, name)

    async def replacement(self: Any, *arguments: Any) -> Any:
        if is_due(self, *arguments):
            die()
        return await original(self, *arguments)

    setattr(owner, name, replacement)


def before_stage(name: str, kind: str) -> None:
    """Die before a stage of secure aggregation in which clients do what `kind` says."""
    original = getattr(CoordinatorSession, name)

    def replacement(self: CoordinatorSession, *arguments: Any) -> Any:
        purpose = self.parameters.purpose
        if purpose.round_number == ROUND and purpose.task.endswith(kind):
            die()
        return original(self, *arguments)

    setattr(CoordinatorSession, name, replacement)


match MOMENT:
    case "before-first-model":
        write = Checkpoints.write

        def die_or_write(self: Checkpoints, run: Any, round_number: int, model: Any) -> None:
            """Die with the first model in memory, where a client has drawn one."""
            if round_number == 0:
                die()
            write(self, run, round_number, model)

        Checkpoints.write = die_or_write  # type: ignore[method-assign]
    case "before-selection":
        before(Rounds, "_gather", lambda _, record, *rest: record.number == ROUND)
    case "while-training":
        download, counts = FederationService.Download, {"calls": 0}

        async def download_then_die(self: FederationService, request: Any, context: Any) -> None:
            """Serve the download; when every client has had its model, die while they train."""
            await download(self, request, context)
            counts["calls"] += 1
            if counts["calls"] == 3 * ROUND:
                asyncio.get_running_loop().call_later(0.1, die)

        FederationService.Download = download_then_die  # type: ignore[method-assign]
    case "mid-upload":
        write_slice, uploads = slices.Assembly.write, {"first slices": 0}

        def write_then_die(self: slices.Assembly, offset: int, data: bytes | memoryview) -> None:
            """Take the slice; die after the first slice of a round's second upload."""
            write_slice(self, offset, data)
            uploads["first slices"] += offset == 0
            if uploads["first slices"] == 3 * (ROUND - 1) + 2:
                die()

        slices.Assembly.write = write_then_die  # type: ignore[method-assign]
    case "after-last-upload":
        before(Rounds, "_finish_round", lambda _, record, *rest: record.number == ROUND)
    case "before-commit":
        before(SqliteStore, "commit_round", lambda _, run, record, *rest: record.number == ROUND)
    case "after-commit":
        commit_round = SqliteStore.commit_round

        async def commit_then_die(self: SqliteStore, run: Any, record: Any, *events: Any) -> None:
            """Commit, then die before anybody is told."""
            await commit_round(self, run, record, *events)
            if record.number == ROUND:
                die()

        SqliteStore.commit_round = commit_then_die  # type: ignore[method-assign]
    case "before-roster":
        before_stage("freeze", "train")
    case "before-deliveries":
        before_stage("deliver", "train")
    case "before-survivors":
        before_stage("close_sum", "train")
    case "before-opening":
        before_stage("bundles", "train")
    case "while-opening":
        # All clients have given what opens the sum.
        before_stage("open", "train")
    case "while-evaluating":
        before_stage("freeze", "evaluate")
    case "while-opening-evaluation":
        before_stage("open", "evaluate")
    case _:
        raise SystemExit(f"unknown moment {MOMENT}")

sys.argv = ["choral", *sys.argv[3:]]
main()
