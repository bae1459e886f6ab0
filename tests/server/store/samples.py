"""Records with a value in every field, and processes to write them from."""

import subprocess
import sys
from pathlib import Path

from server.records import (
    ClientRecord,
    ContributionRecord,
    EventRecord,
    RefusalRecord,
    Role,
    RoundRecord,
    RoundState,
    RunRecord,
    RunState,
    TokenRecord,
)
from wire.spec import CohortSpec, Named, RunSpec

REPOSITORY = Path(__file__).parents[3]


def make_run(run_id: str = "run-1", *, round_number: int = 0, submitted_time: float = 1.5) -> RunRecord:
    spec = RunSpec(
        name="digits-cnn",
        seed=(1 << 63) - 1,
        learner=Named.model_validate({"name": "cnn", "channels": [16, 32], "rate": 0.1, "nested": {"é": None}}),
        rounds=20,
        cohort=CohortSpec(size=10, quorum=8),
    )
    return RunRecord(
        run_id=run_id,
        spec=spec,
        state=RunState.RUNNING,
        submitted_time=submitted_time,
        reason='said "no"\n\u2013 twice',
        round_number=round_number,
        started_time=1.6,
    )


def make_round(number: int, run_id: str = "run-1", state: RoundState = RoundState.OPEN) -> RoundRecord:
    contribution = ContributionRecord(
        client_id="ana",
        weight=(1 << 29),
        example_count=60,
        byte_count=1 << 40,
        train_seconds=0.1 + 0.2,
        metrics={"loss": float("inf")},
    )
    return RoundRecord(
        run_id=run_id,
        number=number,
        state=state,
        attempt=2,
        selected=["ana", "ben"],
        contributions=[contribution],
        refusals=[RefusalRecord(client_id="ben", reason="not_finite", detail="coordinate 3")],
        metrics={"accuracy": 1 / 3, "train_loss": float("-inf")},
        model_sha256="ab" * 32,
        started_time=1720000000.123456,
        phase_seconds={"train": 1.25},
    )


def make_event(kind: str, run_id: str = "run-1") -> EventRecord:
    return EventRecord(time=2.5, kind=kind, run_id=run_id, client_id="ana", detail="é")


def make_client(client_id: str, name: str = "north") -> ClientRecord:
    return ClientRecord(
        client_id=client_id,
        name=name,
        device="cpu",
        learners=["cnn", "mlp"],
        data_kind="images",
        example_count=600,
        held_out_count=60,
        release="0.1.0",
        first_seen_time=1.25,
        last_seen_time=2.25,
    )


def make_token(name: str, sha256: str = "ab" * 32) -> TokenRecord:
    return TokenRecord(name=name, role=Role.VIEWER, sha256=sha256, created_time=1.25, expires_time=1e12 + 0.5)


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
