"""The session of `benchmarks/flower_secagg.py`: Flower's SecAgg+ workflow and client mod, with a grid that calls the clients one by one.

It runs where Flower is installed and Choral need not be.
"""

# Where this file is checked Flower may be missing, and its classes with it.
# mypy: disable-error-code="misc"

import importlib
import statistics
import sys
from collections.abc import Iterable
from time import process_time
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
from flwr.compat.common import recorddict_compat
from flwr.server.client_manager import SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.secagg_result import Case, SessionResult, Stopwatch

RUN_ID = 1
NODE_UNAVAILABLE = 5
STAGES = ("setup", "share keys", "masked vector", "unmask")
EXAMPLE_COUNT = 1000
"""The largest weight at Flower's defaults."""

TOLERANCE = 1e-4
"""Of the mean, whose grid has steps of 4e-6."""

MOD: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
MAKE_MASK, QUANTISE = MOD.pseudo_rand_gen, MOD.quantize


class InProcessGrid(Grid):
    """A grid whose clients live in this process and are called one after the other.

    Attributes:
        clients: CPU seconds of clients by stage; of those that do not make all their masks only the other stages.
        coordinator: CPU seconds of the coordinator from the end of one stage's calls to the next.
        sent_bytes: Of each client that makes all its masks.
        received_bytes: Likewise, beside the model.
    """

    def __init__(self, case: Case, full_count: int, update: Parameters) -> None:
        self._nodes = range(1, case.client_count + 1)
        self._gone = self._nodes[: case.gone_count]
        self._full = self._nodes[case.gone_count :][:full_count]
        self._update = update
        self._contexts = {node: Context(RUN_ID, node, {}, RecordDict(), {}) for node in self._nodes}
        self._stages = iter(STAGES)
        self._stage, self._left_seconds = "", 0.0
        self._beside = Stopwatch()
        self.clients: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self.coordinator: dict[str, float] = {}
        self.sent_bytes = dict.fromkeys(self._full, 0)
        self.received_bytes = dict.fromkeys(self._full, 0)
        # The update is quantised beside, as Choral's is.
        MOD.quantize = lambda *arguments: self._beside.time("quantise", QUANTISE, *arguments)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Call every client."""
        messages = list(messages)
        self.note_coordinator()
        self._stage = next(self._stages)
        replies = [self._reply(message) for message in messages]
        self._left_seconds = process_time()
        return replies

    def note_coordinator(self) -> None:
        """Note what the coordinator has done since the end of the last stage; what comes before the first does not count."""
        if self._stage:
            self.coordinator[self._stage] = process_time() - self._left_seconds

    def _reply(self, message: Message) -> Message:
        node, is_masking = message.metadata.dst_node_id, self._stage == "masked vector"
        if is_masking and node in self._gone:
            return Message(Error(code=NODE_UNAVAILABLE, reason="gone"), reply_to=message)
        # As over a network, each client has a copy of its own.
        configs = ConfigRecord(dict(message.content.config_records[RECORD_KEY_CONFIGS]))
        message.content = RecordDict({**message.content, RECORD_KEY_CONFIGS: configs})
        is_full = node in self._full
        MOD.pseudo_rand_gen = MAKE_MASK if is_full else _zeros
        received_bytes = configs.count_bytes()
        started, beside = process_time(), sum(self._beside.totals.values())
        reply: Message = secaggplus_mod(message, self._contexts[node], self._fit)
        seconds = process_time() - started - (sum(self._beside.totals.values()) - beside)
        if is_full or not is_masking:
            self.clients[self._stage].append(seconds)
        if is_full:
            self.received_bytes[node] += received_bytes
            self.sent_bytes[node] += reply.content.config_records[RECORD_KEY_CONFIGS].count_bytes()
        return reply

    def _fit(self, message: Message, context: Context) -> Message:
        """Train nothing and answer with the update."""
        return self._beside.time("fit", self._trained, message)

    def _trained(self, message: Message) -> Message:
        result = FitRes(Status(Code.OK, ""), self._update, EXAMPLE_COUNT, {})
        return Message(recorddict_compat.fitres_to_recorddict(result, True), reply_to=message)

    def get_node_ids(self) -> Iterable[int]:
        """Return the clients."""
        return self._nodes

    @property
    def run(self) -> Any:
        """There is none."""
        raise NotImplementedError

    def set_run(self, run: Any) -> None:
        """There is none."""
        raise NotImplementedError

    def create_message(self, *arguments: Any, **names: Any) -> Message:
        """The workflow makes its messages itself."""
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """The workflow waits for answers."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The workflow waits for answers."""
        raise NotImplementedError


class Opened(FedAvg):
    """Keeps what the workflow opened in place of averaging it once more."""

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """Note the mean."""
        self.mean = parameters_to_ndarrays(results[0][1].parameters)
        return None, {}


def run(case: Case, threshold: int, full_count: int) -> SessionResult:
    """Play one session; see `benchmarks.flower_secagg.measure`.

    Raises:
        RuntimeError: The session ended early, or all clients made their masks and the mean is not that of their updates.
    """
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, 0, 0
    update = np.random.default_rng(0).normal(0, 0.01, case.parameter_count).astype(np.float32)
    parameters = ndarrays_to_parameters([update])
    grid = InProcessGrid(case, full_count, parameters)
    manager, strategy = (
        SimpleClientManager(),
        Opened(min_fit_clients=case.client_count, min_available_clients=case.client_count),
    )
    for node in grid.get_node_ids():
        manager.register(GridClientProxy(node, grid, RUN_ID))
    context = LegacyContext(Context(RUN_ID, 0, {}, RecordDict(), {}), strategy=strategy, client_manager=manager)
    context.state.config_records["config"] = ConfigRecord({"current_round": 1})
    context.state.array_records["parameters"] = recorddict_compat.parameters_to_arrayrecord(parameters, True)
    SecAggPlusWorkflow(1.0, threshold)(grid, context)
    grid.note_coordinator()
    if set(grid.coordinator) != set(STAGES):
        raise RuntimeError(f"Flower: a session must have {len(STAGES)} stages, got {list(grid.coordinator)}.")
    if case.gone_count + full_count >= case.client_count and np.abs(strategy.mean[0] - update).max() > TOLERANCE:
        raise RuntimeError("Flower: the mean must be that of the updates, got another.")
    return SessionResult(
        {stage: statistics.median(seconds) for stage, seconds in grid.clients.items()},
        grid.coordinator,
        round(statistics.median(grid.sent_bytes.values())),
        round(statistics.median(grid.received_bytes.values())),
    )


def _zeros(seed: bytes, num_range: int, dimensions: list[tuple[int, ...]]) -> list[Any]:
    """Stand in for the masks of a client whose time for them does not count: the coordinator's work is the same."""
    return [np.zeros(dimension, dtype=np.int64) for dimension in dimensions]


def main() -> None:
    """Play the session that the command line gives: clients, parameters, gone, threshold, full."""
    clients, parameters, gone, threshold, full = map(int, sys.argv[1:])
    print(run(Case(clients, parameters, gone), threshold, full).json, flush=True)
