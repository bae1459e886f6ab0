"""Windows that overlap in time: they go to clients by key alone, and no client sees what another forecasts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data import load, load_keys, parse_source
from models.errors import DataError
from simulation.errors import PartitionError
from simulation.partition import local_data, partition


def numbered(folder: Path, sites: list[int]) -> str:
    """Write a series whose values tell their places in the file, and return its data source without options."""
    path = folder / "numbered.csv"
    path.write_text("x,site\n" + "".join(f"{row},{site}\n" for row, site in enumerate(sites)))
    return f"series:{path},columns=x,key=site"


@given(
    sites=st.lists(st.integers(0, 4), min_size=20, max_size=80),
    window=st.integers(1, 3),
    horizon=st.integers(1, 3),
    client_count=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_clients_share_no_value_and_none_is_trained_on_and_held_out(
    tmp_path_factory: pytest.TempPathFactory, sites: list[int], window: int, horizon: int, client_count: int, seed: int
) -> None:
    text = numbered(tmp_path_factory.getbasetemp(), sites)
    source = parse_source(f"{text},window={window},horizon={horizon}")
    try:
        examples, keys = load(source), load_keys(source)
        parts = partition(examples, "by-key", client_count, seed, keys)
        clients = local_data(examples, parts, 0.2, source.kind)
    except (DataError, PartitionError):
        return
    assert sorted(np.concatenate(parts.rows).tolist()) == list(range(len(examples)))
    seen: set[float] = set()
    for data in clients.values():
        trained_on = {*data.training.inputs.flatten().tolist(), *data.training.targets.flatten().tolist()}
        held_out = {*data.held_out.targets.flatten().tolist()}
        assert not trained_on & held_out
        own = trained_on | held_out | {*data.held_out.inputs.flatten().tolist()}
        assert not own & seen
        seen |= own


def test_sunspots_are_dealt_by_span() -> None:
    source = parse_source("sunspots,spans=4")
    parts = partition(load(source), "by-key", None, 0, load_keys(source))
    assert parts.sizes.tolist() == [54, 53, 53, 53]  # 309 years in 78 and three times 77, less 24


@pytest.mark.parametrize("scheme", ["iid", "power-law", "dirichlet,alpha=1", "shards"])
def test_partition_of_windows_at_random_is_refused(scheme: str) -> None:
    message = (
        f"^Partition '{scheme.split(',')[0]}.*': windows that overlap in time must be dealt by-key, got .*Choose by-key"
    )
    with pytest.raises(PartitionError, match=message):
        partition(load(parse_source("sunspots")), scheme, 2, 0)
