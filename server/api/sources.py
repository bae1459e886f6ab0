"""What the REST API answers from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from server.monitoring.broadcast import Broadcast
from server.monitoring.metrics import ProcessMetrics
from server.replicas.desk import Desk
from server.store import Store


@dataclass(frozen=True, slots=True)
class Sources:
    """What the REST API answers from.

    Attributes:
        store: What is durable.
        desk: What goes on now, and commands.
        broadcast: Events for those who watch.
        folder: Where the models of all runs lie; None where this process does not have them.
        metrics: What is counted of this process.
    """

    store: Store
    desk: Desk
    broadcast: Broadcast
    folder: Path | None
    metrics: ProcessMetrics

    async def names(self) -> Mapping[str, str]:
        """Return the names of the clients that ever joined, by identity."""
        return {client.client_id: client.name for client in await self.desk.clients()}
