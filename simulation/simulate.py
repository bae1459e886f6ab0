"""A whole simulation, from a data set's name to curves on disk: what `choral simulate` and `choral.simulate` do.

Its folder holds everything. A simulation that was cut off, by Ctrl-C or by kill -9, goes on from its last committed round when
it is asked for again, and ends with the model of one that was not.
"""

import asyncio
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError

from client.data import LocalData, load, load_keys, parse_source
from models import check_spec
from server.checkpoints import checkpoint_path
from server.folder import held_folder, kept
from server.records import RoundRecord, RoundState, RunRecord
from server.rounds import Site
from server.store import Store
from simulation.clock import VirtualLoop
from simulation.engines import EngineName, build, choose
from simulation.errors import SimulationError
from simulation.history import simulated_seconds_of, write_history, write_plot
from simulation.ledger import Ledger
from simulation.partition import local_data, partition
from simulation.play import RUN_ID, play
from simulation.resources import Resources, core_count
from simulation.schemes import ByKey, parse_scheme
from wire.memory import freed_memory_kept
from wire.spec import RunSpec, read_spec, validate_spec
from wire.validation import explain

log = logging.getLogger(__name__)

OnRound = Callable[[RoundRecord], None]
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
    """

    run: RunRecord
    rounds: tuple[RoundRecord, ...]
    folder: Path
    engine: str


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
        SimulationError: The folder holds another simulation, or the setting breaks a rule.
        SpecError: The spec breaks a rule, or asks for more clients than there are.
        PartitionError: The data cannot be dealt so.
        DataError: The data cannot be read, or does not suit the learner.
    """
    if isinstance(spec, (Path, str)):
        spec = read_spec(Path(spec))
    elif not isinstance(spec, RunSpec):
        spec = validate_spec(dict(spec))
    check_spec(spec)
    try:
        checked = Setting.model_validate(setting)
    except ValidationError as error:
        raise SimulationError(explain(error, "Simulation")) from error
    threads = torch.get_num_threads()
    try:
        with freed_memory_kept():
            return _run(_play(spec, checked, Path(folder), on_round or (lambda _: None)))
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


async def _play(spec: RunSpec, setting: Setting, folder: Path, on_round: OnRound) -> Simulation:
    with held_folder(folder):
        engine, reason = choose(setting.engine, spec, setting)
        if setting.engine == "auto":
            log.info("engine %s: %s", engine, reason)
        # Before anything is computed: OpenMP's threads stay awake between small operations as long as no other ones were made.
        torch.set_num_threads(setting.threads or (core_count() if engine == "vectorized" else 1))
        store = await Ledger.open(folder / "simulation.sqlite", is_synced=False)
        try:
            _claim(folder, spec, setting, has_begun=bool(await store.runs()))
            sites = _sites(spec, setting)
            await asyncio.sleep(0)  # Ctrl-C takes effect where the event loop comes round
            own_data = load(parse_source(setting.own_data)) if setting.own_data else None
            rounds = await _all_rounds(store)
            for record in rounds:
                on_round(record)
            store.tell = lambda record: _take(record, rounds, on_round)
            await _set_clock(store, rounds)
            client_count = len(sites)
            cohort = build(engine, spec, sites, setting)
            await asyncio.sleep(0)
            # Most engines have copied it.
            del sites
            try:
                run = await play(spec, Site(store, cohort, folder / "checkpoints", own_data, store.checkpoints))
            finally:
                cohort.close()
        finally:
            await store.close()
        title = f"{spec.name}: {spec.learner.name}, {client_count} clients, {setting.partition}"
        _write_results(folder, run, rounds, title)
        return Simulation(run, tuple(rounds), folder, engine)


def _write_results(folder: Path, run: RunRecord, rounds: Sequence[RoundRecord], title: str) -> None:
    write_history(folder / "history.csv", rounds)
    write_plot(folder / "history.png", rounds, title)
    shutil.copyfile(checkpoint_path(folder / "checkpoints", run.round_number), folder / "model.safetensors")


def _take(record: RoundRecord, rounds: list[RoundRecord], on_round: OnRound) -> None:
    rounds.append(record)
    on_round(record)


def _claim(folder: Path, spec: RunSpec, setting: Setting, has_begun: bool) -> None:
    """Note what is simulated in a folder, and refuse another simulation than one that has begun there."""
    if not has_begun:
        (folder / "simulation.json").unlink(missing_ok=True)
    wanted = {"spec": json.loads(spec.canonical_json()), "setting": setting.simulated | _traced(spec)}
    found = json.loads(kept(folder / "simulation.json", json.dumps(wanted, indent=2) + "\n"))
    for part, values in wanted.items():
        for key, value in values.items():
            if found[part].get(key) != value:
                raise SimulationError(
                    f"Folder {folder}: {key} must be that of the simulation that it holds, {found[part].get(key)!r}, got {value!r}. "
                    "Choose another folder, or delete this one."
                )


def _traced(spec: RunSpec) -> dict[str, str]:
    """Return the SHA-256 of the spec's trace of clients, if it has one that can be read; who reads it says why it cannot."""
    path = spec.simulation.trace if spec.simulation else None
    if path is None or not Path(path).is_file():
        return {}
    return {"trace_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def _sites(spec: RunSpec, setting: Setting) -> dict[str, LocalData]:
    """Read the data and deal it to the clients; every draw follows from the spec's seed."""
    scheme, source = parse_scheme(setting.partition), parse_source(setting.data)
    examples = load(source)
    keys = load_keys(source) if isinstance(scheme, ByKey) else None
    parts = partition(examples, scheme, setting.clients, spec.seed, keys)
    return local_data(examples, parts, setting.held_out, source.kind)


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
