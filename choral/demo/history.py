"""The rounds of a demo, as the REST API tells them, and `history.csv`."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Round:
    """One committed round: a line of `history.csv`.

    Attributes:
        round: Its number, from 1.
        clients: Clients whose contributions went into the mean.
        accuracy: Of the new model on the digits that the clients hold out, 0 to 1; None if no client could tell.
        loss: Likewise.
        train_loss: Mean loss in the last epoch of local training.
        bytes: Received from the clients as contributions.
        seconds: From choosing the clients to the commit.
    """

    round: int
    clients: int
    accuracy: float | None
    loss: float | None
    train_loss: float | None
    bytes: int
    seconds: float

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Read a committed round from its JSON."""
        parts, metrics = record["contributions"], record["metrics"]
        return cls(
            record["number"],
            len(parts),
            metrics.get("accuracy"),
            metrics.get("loss"),
            metrics.get("train_loss"),
            sum(part["byte_count"] for part in parts),
            record["ended_time"] - record["started_time"],
        )


def write_history(path: Path, rounds: Sequence[Round]) -> None:
    """Write the rounds as CSV with a heading; fractions and losses with 6 digits, seconds with 3."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(Round))
        writer.writerows([*map(_shown, astuple(row)[:-1]), f"{row.seconds:.3f}"] for row in rounds)


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6f}"
