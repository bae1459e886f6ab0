"""Runs that a browser is to show, written into a coordinator's store before it starts, as its rounds would have."""

import math
from pathlib import Path

from server.folder import STORE_FILE
from server.records import ContributionRecord, EventRecord, RoundRecord, RoundState, RunRecord, RunState
from server.store import Store
from server.store.sqlite import SqliteStore
from tests.server.store.samples import make_client, make_run

BEGINNING = 1_767_225_600.0
CLIENT_IDS = tuple(f"{number:064x}" for number in range(4))


async def store_in(folder: Path) -> Store:
    """Open the store of a coordinator that does not run yet, and is to keep its state in a folder that exists."""
    return await SqliteStore.open(folder / STORE_FILE, is_synced=False)


async def add_clients(store: Store) -> None:
    """Add the clients of all runs."""
    for number, client_id in enumerate(CLIENT_IDS):
        await store.put_client(make_client(client_id, f"site-{number}"))


async def add_run(store: Store, number: int, round_count: int) -> str:
    """Add a finished run with its rounds, and return its identity."""
    run = make_run(f"{number:012x}", submitted_time=BEGINNING + number)
    run = run.with_(
        spec=run.spec.model_copy(update={"name": f"run-{number}", "rounds": round_count, "seed": number}), reason=""
    )
    await store.put_run(run.with_(state=RunState.QUEUED), _event("run_submitted", run, 0))
    for round_number in range(1, round_count + 1):
        record = _round(run, round_number, round_count)
        is_last = round_number == round_count
        run = run.with_(
            round_number=round_number,
            metrics=record.metrics,
            model_sha256=record.model_sha256,
            state=RunState.FINISHED if is_last else RunState.RUNNING,
            started_time=BEGINNING,
            ended_time=record.ended_time if is_last else None,
        )
        await store.commit_round(run, record, _event("round_committed", run, round_number))
    return run.run_id


def _round(run: RunRecord, number: int, of: int) -> RoundRecord:
    part = number / of
    accuracies = [0.95 - 0.85 * math.exp(-5 * part) + 0.01 * place for place in range(len(CLIENT_IDS))]
    contributions = [
        ContributionRecord(
            client_id=client_id,
            weight=60,
            example_count=60,
            byte_count=4_200_000,
            train_seconds=2.5,
            metrics={"accuracy": accuracy, "loss": 1 - accuracy},
        )
        for client_id, accuracy in zip(CLIENT_IDS, accuracies, strict=True)
    ]
    mean = sum(accuracies) / len(accuracies)
    return RoundRecord(
        run_id=run.run_id,
        number=number,
        state=RoundState.COMMITTED,
        selected=list(CLIENT_IDS),
        contributions=contributions,
        metrics={"accuracy": mean, "loss": 1 - mean},
        model_sha256=f"{number:064x}",
        started_time=BEGINNING + number - 1,
        ended_time=BEGINNING + number,
        phase_seconds={"select": 0.01, "train": 0.7, "apply": 0.1, "evaluate": 0.15, "commit": 0.04},
    )


def _event(kind: str, run: RunRecord, number: int) -> EventRecord:
    detail = f"round {number}" if number else ""
    return EventRecord(time=BEGINNING + number, kind=kind, run_id=run.run_id, detail=detail)
