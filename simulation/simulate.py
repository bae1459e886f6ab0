"""A whole simulation, from a data set's name to curves on disk: what `choral simulate` and `choral.simulate` do.

Its folder holds everything. A simulation that was cut off, by Ctrl-C or by kill -9, goes on from its last committed round when
it is asked for again, and ends with the model of one that was not.
"""

import asyncio
import contextlib
import logging
import math
import shutil
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, ValidationError

from client.data import LocalData, load, load_keys, parse_source
from models import Examples, check_spec
from privacy.secagg.combinations import check_masking
from server.checkpoints import checkpoint_path
from server.errors import QuorumError
from server.folder import held_folder
from server.records import RoundRecord, RoundState, RunRecord
from server.rounds import Site
from server.store import Store
from simulation.claim import begun, check, note, sha256_of
from simulation.clock import VirtualLoop
from simulation.cohort import SimulatedCohort
from simulation.engines import EngineName, build, choose
from simulation.errors import SimulationError, UnsuitedEngineError
from simulation.history import simulated_seconds_of, write_history, write_plot
from simulation.ledger import Ledger
from simulation.partition import local_data, partition
from simulation.play import RUN_ID, play
from simulation.resources import Resources, core_count
from simulation.schemes import ByKey, parse_scheme
from wire.errors import ChoralError
from wire.memory import freed_memory_kept, start_kept_from_collector
from wire.spec import RunSpec, read_spec, validate_spec
from wire.validation import explain

log = logging.getLogger(__name__)

OnRound = Callable[[RoundRecord], None]
ADVICE = (
    "In the spec, raise cohort.over_selection, cohort.deadline_seconds or cohort.wait_seconds, or lower cohort.quorum or "
    "simulation.dropout; if contributions were refused as not finite, lower learning_rate. Then take another folder."
)
"""What can be done about a round without its quorum, where clients are only simulated."""

RESULTS = ("model.safetensors", "history.csv", "history.png")


class Setting(Resources):
    """What is simulated, beside the run spec, and with what."""

    data: str = "digits"
    """The data set that is dealt to the clients, as `choral join --data` names one."""
    clients: Annotated[int, Field(ge=1)] | None = None
    """Clients in the federation; None, with `by-key`, for as many as there are keys."""
    partition: str = "iid"
    """How the data is dealt, such as "dirichlet,alpha=0.3"."""
    engine: EngineName = "auto"
    """What trains the clients; `auto` chooses."""
    held_out: float = Field(default=0.2, ge=0, lt=1)
    """Part of each client's data that is held out for evaluation."""
    own_data: str | None = None
    """The coordinator's own data set, for `evaluate.on: coordinator`."""

    @property
    def simulated(self) -> dict[str, Any]:
        """Everything but the resources: who goes on with a simulation may use others."""
        return self.model_dump(mode="json", exclude=set(Resources.model_fields))


@dataclass(frozen=True, slots=True)
class Simulation:
    """A finished simulation.

    Attributes:
        run: The run, as a coordinator would show it.
        rounds: Its committed rounds, oldest first.
        folder: Where `model.safetensors`, `history.csv` and `history.png` lie.
        engine: What trained the clients.
        engine_reason: Why that, in a few words.
    """

    run: RunRecord
    # A notebook would show them all, and asyncio has its result's text made when it gives back the handler of Ctrl-C.
    rounds: tuple[RoundRecord, ...] = field(repr=False)
    folder: Path
    engine: str
    engine_reason: str


def simulate(
    spec: RunSpec | Mapping[str, Any] | Path | str,
    folder: Path | str = "simulated",
    on_round: OnRound | None = None,
    **setting: Any,
) -> Simulation:
    """Simulate a federation in this process, or go on with the simulation that `folder` holds. May be called from a notebook.

    Args:
        spec: The run's spec, as it would be submitted, or the path of its file.
        folder: Where state and results go.
        on_round: Called with each round once it is durable, short ones several at a time; also with those of an earlier process.
        setting: Fields of `Setting`: `data`, `clients`, `partition`, `engine`, `held_out` and `own_data`; and of `Resources`: `device`,
            `threads`, `workers`, `block` and `ray_address`.

    Raises:
        SimulationError: The folder holds another simulation, the setting breaks a rule, or the results cannot be written.
        QuorumError: A round could not get enough contributions. As after Ctrl-C, the results of the rounds before it were written.
        SpecError: The spec breaks a rule, or asks for more clients than there are.
        PartitionError: The data cannot be dealt so.
        DataError: The data cannot be read, or does not suit the learner.
    """
    if isinstance(spec, (Path, str)):
        spec = read_spec(Path(spec))
    elif not isinstance(spec, RunSpec):
        spec = validate_spec(dict(spec))
    check_spec(spec)
    check_masking(spec)
    try:
        checked = Setting.model_validate(setting)
    except ValidationError as error:
        raise SimulationError(explain(error, "Simulation")) from error
    threads = torch.get_num_threads()
    try:
        with freed_memory_kept():
            return _run(_Play(spec, checked, Path(folder), on_round or (lambda _: None)).play())
    finally:
        torch.set_num_threads(threads)


def _run(playing: Coroutine[Any, Any, Simulation]) -> Simulation:
    """Run to the end here, or in a thread where there is an event loop already, as in a notebook."""
    if asyncio._get_running_loop() is None:
        return _run_virtually(playing)
    started: Future[Callable[[], object]] = Future()

    async def play() -> Simulation:
        task = asyncio.ensure_future(playing)
        started.set_result(partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel))
        return await task

    with ThreadPoolExecutor(1, thread_name_prefix="simulation") as thread:
        result = thread.submit(_run_virtually, play())
        try:
            return result.result()
        except KeyboardInterrupt:
            started.result()()
            raise


def _run_virtually(playing: Coroutine[Any, Any, Simulation]) -> Simulation:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(playing)


class _Play:
    """One simulation in its folder, from the rounds that it has to its end, in whatever way that comes."""

    def __init__(self, spec: RunSpec, setting: Setting, folder: Path, on_round: OnRound) -> None:
        self._spec = spec
        self._setting = setting
        self._folder = folder
        self._on_round = on_round
        self._engine, self._reason = "", ""
        self._rounds: list[RoundRecord] = []
        self._client_count = 0

    async def play(self) -> Simulation:
        """Play to the end, and write the results; those of what there is after Ctrl-C or an error that is no bug."""
        with held_folder(self._folder):
            self._engine, self._reason = choose(self._setting.engine, self._spec, self._setting)
            self._set_threads()
            try:
                run = await self._play_on()
            except (ChoralError, asyncio.CancelledError) as error:
                if self._rounds:
                    self._leave_results()
                if isinstance(error, QuorumError):
                    raise QuorumError(error.problem, ADVICE) from error
                raise
            self._write_results()
            return Simulation(run, tuple(self._rounds), self._folder, self._engine, self._reason)

    async def _play_on(self) -> RunRecord:
        store = await Ledger.open(self._folder / "simulation.sqlite", is_synced=False)
        try:
            cohort, own_data = await self._staged(store)
            try:
                site = Site(store, cohort, self._folder / "checkpoints", own_data, store.checkpoints, cohort.authority)
                with start_kept_from_collector():
                    return await play(self._spec, site)
            finally:
                cohort.close()
        finally:
            await store.close()

    async def _staged(self, store: Ledger) -> tuple[SimulatedCohort, Examples | None]:
        """Read the data, take up the rounds that there are, and build the engine."""
        sites, own_data = await self._claimed_data(has_begun=bool(await store.runs()))
        rounds = await _all_rounds(store)
        for record in rounds:
            self._take(record)
        store.tell = self._take
        await _set_clock(store, rounds)
        self._client_count = len(sites)
        cohort = self._built(sites)
        if self._setting.engine == "auto":
            log.info("engine %s: %s", self._engine, self._reason)
        if self._spec.secure is not None and not cohort.speaks_secagg:
            log.info(
                "engine %s: sums in the clear, on the grid of secure aggregation; serial plays the protocol",
                self._engine,
            )
        await asyncio.sleep(0)
        return cohort, own_data

    def _built(self, sites: Mapping[str, LocalData]) -> SimulatedCohort:
        """Build the engine, or another one where `auto` chose one that turns out not to train the learner as the serial one would."""
        try:
            return build(self._engine, self._spec, sites, self._setting)
        except UnsuitedEngineError as error:
            if self._setting.engine != "auto":
                raise
            self._engine, self._reason = choose("auto", self._spec, self._setting, error.reason)
            self._set_threads()
            return build(self._engine, self._spec, sites, self._setting)

    def _set_threads(self) -> None:
        # Before anything is computed: OpenMP's threads stay awake between small operations as long as no other ones were made.
        torch.set_num_threads(self._setting.threads or (core_count() if self._engine == "vectorized" else 1))

    async def _claimed_data(self, has_begun: bool) -> tuple[dict[str, LocalData], Examples | None]:
        """Read the data, and note in the folder what is simulated there, or refuse another simulation than the one that has begun."""
        claim = begun(self._spec, self._setting.simulated)
        if has_begun:
            check(self._folder, claim)
        sites, data_sha256 = _sites(self._spec, self._setting)
        await asyncio.sleep(0)  # Ctrl-C takes effect where the event loop comes round
        own_data = load(parse_source(self._setting.own_data)) if self._setting.own_data else None
        own = {"own_data_sha256": sha256_of(own_data.inputs, own_data.targets)} if own_data else {}
        (check if has_begun else note)(self._folder, {**claim, "data": {"data_sha256": data_sha256} | own})
        return sites, own_data

    def _take(self, record: RoundRecord) -> None:
        self._rounds.append(record)
        self._on_round(record)

    def _leave_results(self) -> None:
        """Write the results of the rounds that there are, where something else is to be told: that they cannot be is said beside it."""
        try:
            self._write_results()
        except SimulationError as error:
            log.warning("%s", error)
        else:
            log.info("in %s, after round %d: %s", self._folder, self._rounds[-1].number, ", ".join(RESULTS))

    def _write_results(self) -> None:
        """Write each result whole, or leave the one before it. Raises `SimulationError` when one cannot be written."""
        title = f"{self._spec.name}: {self._spec.learner.name}, {self._client_count} clients, {self._setting.partition}"
        newest = checkpoint_path(self._folder / "checkpoints", self._rounds[-1].number)
        writers: dict[str, Callable[[Path], object]] = {
            "model.safetensors": partial(shutil.copyfile, newest),
            "history.csv": lambda path: write_history(path, self._rounds),
            "history.png": lambda path: write_plot(path, self._rounds, title),
        }
        for name in RESULTS:
            temporary = self._folder / f"{name}.tmp"
            try:
                writers[name](temporary)
                temporary.replace(self._folder / name)
            except OSError as error:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise SimulationError(
                    f"Result {self._folder / name}: must be writable, got: {error.strerror}. The rounds are kept: once it is, the "
                    "same command writes it."
                ) from error


def _sites(spec: RunSpec, setting: Setting) -> tuple[dict[str, LocalData], str]:
    """Read the data and deal it to the clients; every draw follows from the spec's seed. Return it with its SHA-256."""
    scheme, source = parse_scheme(setting.partition), parse_source(setting.data)
    examples = load(source)
    keys = load_keys(source) if isinstance(scheme, ByKey) else None
    parts = partition(examples, scheme, setting.clients, spec.seed, keys)
    dealt = [torch.from_numpy(parts.sizes), torch.from_numpy(np.concatenate(parts.rows))]
    sha256 = sha256_of(examples.inputs, examples.targets, *dealt)
    return local_data(examples, parts, setting.held_out, source.kind), sha256


async def _set_clock(store: Store, rounds: Sequence[RoundRecord]) -> None:
    """Let the clock go on where it stood when the last record was stored."""
    open_rounds = await store.rounds(RUN_ID, len(rounds))
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.jump(math.fsum(simulated_seconds_of(record) for record in [*rounds, *open_rounds]))


async def _all_rounds(store: Store) -> list[RoundRecord]:
    """Return the committed rounds of the simulation, oldest first."""
    rounds: list[RoundRecord] = []
    # At most the last one is open.
    while more := [
        record for record in await store.rounds(RUN_ID, len(rounds)) if record.state is RoundState.COMMITTED
    ]:
        rounds += more
    return rounds
