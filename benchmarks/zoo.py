"""What each learner of the zoo learns: alone, federated and pooled, on data that nobody trained on.

Usage: python -m benchmarks.zoo [NAME ...] [--json models/specs/results.json]

Each learner's example (models/specs/NAME.yaml) is run three ways, with the same epochs over the same examples: each client on its own, the
federation, and one client that has everything. Where the data has natural keys, such as form blocks or roles, a client has one key, and the
last fifth of the keys is kept for the test; else a fifth of the examples, or of a series the end.
"""

import argparse
import asyncio
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from client.data import LocalData, load, load_keys, parse_source
from client.data.split import split
from models import MODELS, Examples, build_learner
from models.examples import FOLDER, LearnerExample, example_of
from server.checkpoints import checkpoint_path
from server.model import ModelShop, read_checkpoint
from server.store import open_store
from simulation.partition import partition
from simulation.schemes import ByKey, parse_scheme
from simulation.serial import run_serially
from wire.spec import CohortSpec, EvaluateSpec, RunSpec

TEST_PART = 0.2
"""Part of the keys, or of the examples, that is kept for the test; at least one."""


@dataclass(frozen=True, slots=True)
class Federation:
    """Clients, and the examples that none of them has."""

    clients: Mapping[str, Examples]
    test: Examples


def main() -> None:
    """Measure the learners that are named, or all, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="learners; default: all that have an example")
    parser.add_argument("--json", type=Path, default=FOLDER / "results.json", help="where results are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    for name in arguments.names or MODELS:
        begin = time.perf_counter()
        results[name] = measured(example_of(name)) | {"seconds": round(time.perf_counter() - begin, 1)}
        arguments.json.write_text(json.dumps(dict(sorted(results.items())), indent=2) + "\n")
        print(name, json.dumps(results[name]))


def measured(example: LearnerExample) -> dict[str, object]:
    """Return the three results of a learner's example, and over what they were made."""
    federation = dealt(example)
    alone = [trained(example.spec, {name: data}, federation.test, data) for name, data in federation.clients.items()]
    pooled = _joined(list(federation.clients.values()))
    return {
        "data": example.data,
        "clients": len(federation.clients),
        "test_examples": len(federation.test),
        "rounds": example.spec.rounds,
        "alone": _mean(alone),
        "federated": trained(example.spec, federation.clients, federation.test, None),
        "pooled": trained(example.spec, {"pooled": pooled}, federation.test, pooled),
    }


def dealt(example: LearnerExample) -> Federation:
    """Return the clients of an example, and its test."""
    source, scheme = parse_source(example.data), parse_scheme(example.partition)
    examples = load(source)
    if isinstance(scheme, ByKey):
        keys = load_keys(source)
        names = np.unique(keys)
        kept = names[-max(1, round(len(names) * TEST_PART)) :]
        rows = {str(name): torch.from_numpy(np.nonzero(keys == name)[0]) for name in names if name not in kept}
        test = examples.select(torch.from_numpy(np.nonzero(np.isin(keys, kept))[0]))
        return Federation({name: examples.select(own) for name, own in rows.items()}, test)
    parts = split(examples, TEST_PART, example.spec.seed, source.kind)
    made = partition(parts.training, scheme, example.clients, example.spec.seed)
    clients = {
        name: parts.training.select(torch.from_numpy(own)) for name, own in zip(made.client_ids, made.rows, strict=True)
    }
    return Federation(clients, parts.held_out)


def trained(
    spec: RunSpec, clients: Mapping[str, Examples], test: Examples, training: Examples | None
) -> dict[str, float]:
    """Train a federation and return what its model measures on the test."""
    size = min(spec.cohort.size or len(clients), len(clients))
    changes = {
        "cohort": CohortSpec(size=size),
        "evaluate": EvaluateSpec(every=0),
        "stop_when": None,
        "simulation": None,
    }
    spec = spec.model_copy(update=changes)
    sites = {name: LocalData("memory", data, data.select(torch.arange(0))) for name, data in clients.items()}
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_played(spec, sites, Path(folder)))
        shop = ModelShop(spec)
        model = read_checkpoint(checkpoint_path(Path(folder), spec.rounds), shop.initial().layout)
    constants = {name: torch.from_numpy(constant) for name, constant in model.constants.items()}
    state = {**model.layout.views(model.vector), **constants}
    found = build_learner(spec.learner).evaluate(state, test, training)
    return {name: _rounded(value) for name, value in found.metrics.items()}


async def _played(spec: RunSpec, sites: Mapping[str, LocalData], folder: Path) -> None:
    store = await open_store(str(folder / "store.db"))
    try:
        await run_serially(spec, sites, store, folder)
    finally:
        await store.close()


def _joined(parts: Sequence[Examples]) -> Examples:
    return Examples(torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts]))


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: _rounded(float(np.mean([metrics[name] for metrics in found]))) for name in found[0]}


def _rounded(value: float) -> float:
    """Return four significant digits: more would say what a run with other threads does not repeat."""
    return value if value == 0 or not math.isfinite(value) else round(value, 3 - math.floor(math.log10(abs(value))))


if __name__ == "__main__":
    main()
