"""The serial engine: the cohort in one process, one client after another. The reference for every other engine (law L2).

Rounds, aggregation, evaluation and store are the server's own; training is the client's own.
"""

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from client.data import LocalData
from client.training import Result
from models import Evaluation, Examples
from models.learner import Report
from privacy.secagg.coordinator import CoordinatorSession
from server.cohort import Exchange, Kind, Order
from server.inbox import Binding
from server.records import RunRecord
from server.rounds import Site
from server.store import Store
from simulation.cohort import Outcome, Refused, SimulatedCohort, outcome_of
from simulation.masking import Office, SimulatedExchange
from simulation.plan import blocks_of
from simulation.play import play
from simulation.resources import Resources
from simulation.work import Work
from simulation.worker import Worker
from wire.spec import RunSpec

AHEAD_BYTES = 16 << 20
"""Contributions that may wait to be added."""


class SerialCohort(SimulatedCohort):
    """Clients that are trained one after another, and that play secure aggregation in full where the run asks for it."""

    speaks_secagg = True

    def __init__(self, spec: RunSpec, sites: Mapping[str, LocalData], resources: Resources | None = None) -> None:
        """Build the cohort.

        Args:
            spec: The run that it will work for.
            sites: Each client's data, by identity.
            resources: Where to train.

        Raises:
            DataError: Some client's data does not suit the learner.
            SimulationError: The spec's trace of clients cannot be used.
        """
        super().__init__(spec, sites)
        self._office = Office()
        self.authority = self._office.authority
        self._worker = Worker(spec, sites, (resources or Resources()).one_device())

    def identity_of(self, client_id: str) -> str:
        """Return the identity that follows from a simulated client's key."""
        return self._office.identity_of(client_id)

    @contextlib.contextmanager
    def session(
        self, order: Order, kind: Kind, session: CoordinatorSession, client_ids: Sequence[str]
    ) -> Iterator[Exchange]:
        """Hold a session of secure aggregation with simulated clients."""
        exchange = SimulatedExchange(self, self._office, order, kind, session)
        try:
            yield exchange
        finally:
            exchange.close()

    async def _outcomes(
        self, order: Order, client_ids: Sequence[str], binding: Binding
    ) -> AsyncGenerator[Outcome, None]:
        work = Work()
        for part in _parts(order, client_ids):
            for client_id, found in await work.do(partial(self._train, order, part, work.check)):
                yield outcome_of(client_id, binding, found)

    async def _evaluations(
        self, order: Order, client_ids: Sequence[str]
    ) -> AsyncGenerator[tuple[str, Evaluation | Refused], None]:
        work = Work()
        for part in _parts(order, client_ids):
            for result in await work.do(partial(self._evaluate, order, part, work.check)):
                yield result

    def _train(self, order: Order, client_ids: Sequence[str], report: Report) -> list[tuple[str, Result | Refused]]:
        number, vector = order.round_number, order.model.vector
        return [(client_id, self._worker.train(client_id, number, vector, report)) for client_id in client_ids]

    def _evaluate(
        self, order: Order, client_ids: Sequence[str], check: Callable[[], None]
    ) -> list[tuple[str, Evaluation | Refused]]:
        found: list[tuple[str, Evaluation | Refused]] = []
        for client_id in client_ids:
            check()
            found.append((client_id, self._worker.evaluate(client_id, order.model.vector)))
        return found


def _parts(order: Order, client_ids: Sequence[str]) -> list[list[str]]:
    """Cut clients into parts whose contributions wait until all of a part are there."""
    return blocks_of(client_ids, max(1, AHEAD_BYTES // order.model.vector.nbytes))


async def run_serially(
    spec: RunSpec, sites: Mapping[str, LocalData], store: Store, folder: Path, own_data: Examples | None = None
) -> RunRecord:
    """Run a federation with this engine and return the finished run.

    Args:
        spec: The run's spec, as it would be submitted.
        sites: Each client's data, by identity: with the identities of real clients, the models are theirs to the bit.
        store: Where rounds are recorded.
        folder: Where checkpoints go.
        own_data: Examples for `evaluate.on: coordinator`.

    Raises:
        DataError: Some site's data does not suit the learner.
        ChoralError: As `play`.
    """
    cohort = SerialCohort(spec, sites)
    try:
        return await play(spec, Site(store, cohort, folder, own_data, authority=cohort.authority))
    finally:
        cohort.close()
