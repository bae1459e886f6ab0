"""What Prometheus may read of a coordinator or an API replica. Each has a registry of its own.

No label can grow without bound: there are no runs or clients among them, and no paths but those that the API has.
"""

import asyncio
from collections.abc import Sequence
from typing import cast, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from server.cohort import Kind
from server.errors import StoreError, reason_name
from server.monitoring.observer import Observer
from server.records import RefusalRecord, RoundRecord, RunState
from server.replicas.desk import Desk
from server.store import Store
from wire.federation_pb2 import RefusalReason

PHASE_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
LAG_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
ROUTE_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
NO_ROUTE = "none"
"""Route of a request that none took: it was turned away before, or names a path that there is not."""
SCRAPE_SECONDS = 2.0
"""How long metrics wait for each answer of a store: Prometheus waits ten seconds for all of them."""


class ProcessMetrics(Observer):
    """Counts what every process that serves the REST API has: answers, lag, memory."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "choral_http_requests",
            "Answers of the HTTP server, by the template of the route and the status code.",
            ["method", "route", "code"],
            registry=registry,
        )
        self._lag = Histogram(
            "choral_event_loop_lag_seconds",
            "How late the event loop came to a timer that fires 100 times a second.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )

    def note_lag(self, seconds: float) -> None:
        """Count one beat."""
        self._lag.observe(seconds)

    def note_answer(self, method: str, route: str, code: int) -> None:
        """Count an answer of the HTTP server. `route` is a template below the prefix of the API, such as "/runs/{run_id}"."""
        self._requests.labels(method if method in ROUTE_METHODS else "other", route, str(code)).inc()

    async def look(self, store: Store, desk: Desk) -> None:
        """Take what is true now, before it is shown: of a process, nothing more than what it was told."""

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


class Metrics(ProcessMetrics):
    """Counts what a coordinator is told, too, and shows what goes on when it is read."""

    def __init__(self) -> None:
        super().__init__()
        registry = self.registry
        self._rounds = Counter("choral_rounds", "Rounds that were committed.", registry=registry)
        self._phases = Histogram(
            "choral_round_phase_seconds",
            "Time that a committed round spent in a phase.",
            ["phase"],
            buckets=PHASE_BUCKETS,
            registry=registry,
        )
        self._contributions = Counter(
            "choral_contributions", "Contributions in the sums of committed rounds.", registry=registry
        )
        self._refusals = Counter(
            "choral_refusals", "Contributions that were refused, by reason.", ["reason"], registry=registry
        )
        self._lost_sessions = Counter(
            "choral_masked_session_aborts",
            "Sessions of secure aggregation that ended without an opened sum, by what they were for.",
            ["kind"],
            registry=registry,
        )
        self._sent = Counter("choral_sent_bytes", "Bytes of models that went to clients.", registry=registry)
        self._received = Counter(
            "choral_received_bytes", "Bytes of contributions that came from clients.", registry=registry
        )
        self._clients = Gauge("choral_clients", "Clients that ever joined, by state.", ["state"], registry=registry)
        self._runs = Gauge("choral_runs", "Runs in the store, by state.", ["state"], registry=registry)
        self._is_store_up = Gauge("choral_store_up", "Whether the store answers: 1 or 0.", registry=registry)
        # So that a dashboard shows a zero, and not nothing, of what has not happened yet.
        for reason in RefusalReason.values()[1:]:
            self._refusals.labels(reason_name(cast(RefusalReason, reason)))
        for kind in get_args(Kind):
            self._lost_sessions.labels(kind)

    def note_round(self, record: RoundRecord) -> None:
        """Count a committed round, its contributions and its time."""
        self._rounds.inc()
        self._contributions.inc(len(record.contributions))
        for phase, seconds in record.phase_seconds.items():
            self._phases.labels(phase).observe(seconds)

    def note_refusals(self, refusals: Sequence[RefusalRecord]) -> None:
        """Count refusals."""
        for refusal in refusals:
            self._refusals.labels(refusal.reason).inc()

    def note_lost_session(self, kind: Kind) -> None:
        """Count a session of secure aggregation."""
        self._lost_sessions.labels(kind).inc()

    def note_sent(self, byte_count: int) -> None:
        """Count bytes of a model."""
        self._sent.inc(byte_count)

    def note_received(self, byte_count: int) -> None:
        """Count bytes of a contribution."""
        self._received.inc(byte_count)

    async def look(self, store: Store, desk: Desk) -> None:
        """Take what is true now; of runs, nothing when the store does not answer."""
        try:
            async with asyncio.timeout(SCRAPE_SECONDS):
                runs = await store.runs()
        except (StoreError, TimeoutError):
            self._is_store_up.set(0)
            self._runs.clear()
        else:
            self._is_store_up.set(1)
            for run_state in RunState:
                self._runs.labels(run_state.value).set(sum(run.state is run_state for run in runs))
        now, known_count = await desk.now(), len(await desk.clients())
        present = now.health.client_count if now.health else 0
        busy = min(len(now.clients), present)
        for state, count in (("idle", present - busy), ("busy", busy), ("gone", known_count - present)):
            self._clients.labels(state).set(count)
