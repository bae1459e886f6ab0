"""Partitions: what holds for all of them, each kind against numbers worked out by hand or known moments, and refusals."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.data import load, load_keys, parse_source
from models.learner import Examples
from server.records import RunState
from simulation.classes import class_counts, class_skew
from simulation.dealing import power_law_sizes
from simulation.dirichlet import Counts
from simulation.errors import PartitionError
from simulation.partition import DRAW_LIMIT, Partition, local_data, partition
from simulation.schemes import ByKey, Dirichlet, Iid, PowerLaw, Scheme, Shards
from simulation.serial import run_serially
from tests.server.cohorts import DIGITS, opened, spec

DRAWN = ["iid", "by-key", "dirichlet,alpha=0.3", "dirichlet,alpha=0.3,over=clients", "shards", "power-law"]

SCHEMES = st.one_of(
    st.builds(Iid, minimum=st.integers(1, 4)),
    st.builds(ByKey, minimum=st.integers(1, 4)),
    st.builds(
        Dirichlet,
        alpha=st.floats(1e-9, 1e9),
        over=st.sampled_from(["classes", "clients"]),
        minimum=st.integers(1, 4),
    ),
    st.builds(Shards, per_client=st.integers(1, 4), minimum=st.integers(1, 4)),
    st.builds(PowerLaw, exponent=st.floats(0, 100), minimum=st.integers(1, 4)),
)


def labelled(*classes: int) -> Examples:
    """Return examples of these classes, each with its position as its input."""
    return Examples(torch.arange(len(classes), dtype=torch.float32)[:, None], torch.tensor(classes, dtype=torch.int64))


def many(count: int, class_count: int, seed: int = 0) -> Examples:
    drawn = np.random.default_rng(seed).integers(class_count, size=count)
    return labelled(*drawn.tolist())


def counted(examples: Examples, parts: Partition) -> Counts:
    found = class_counts(examples, parts)
    assert found is not None
    return found[1]


def as_lists(parts: Partition) -> list[list[int]]:
    return [rows.tolist() for rows in parts.rows]


def digest(parts: Partition) -> str:
    return hashlib.sha256(b"|".join(rows.astype("<i8").tobytes() for rows in parts.rows)).hexdigest()[:16]


# What holds for every kind.


@given(
    scheme=SCHEMES,
    classes=st.lists(st.sampled_from([0, 1, 2, 7, 2**31 - 1]), min_size=1, max_size=60),
    key_count=st.integers(1, 12),
    client_count=st.integers(1, 20),
    seed=st.integers(0, 2**63 - 1),
)
def test_partition_gives_every_example_to_exactly_one_client_and_repeats_itself(
    scheme: Scheme, classes: list[int], key_count: int, client_count: int, seed: int
) -> None:
    examples = labelled(*classes)
    keys = np.arange(len(classes)) % key_count
    try:
        parts, again = (partition(examples, scheme, client_count, seed, keys) for _ in range(2))
    except PartitionError:
        return
    assert sorted(np.concatenate(parts.rows).tolist()) == list(range(len(classes)))
    assert len(parts.rows) == len(parts.client_ids) == client_count
    for rows in parts.rows:
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
        assert len(rows) >= scheme.minimum
    assert as_lists(parts) == as_lists(again)
    assert (parts.scheme, parts.seed, parts.sizes.tolist()) == (scheme, seed, [len(rows) for rows in parts.rows])
    assert examples.targets.tolist() == classes


@pytest.mark.parametrize("scheme", DRAWN)
def test_partition_other_seed_gives_other_clients(scheme: str) -> None:
    examples, keys = many(200, 4), np.arange(200) // 10
    first, second = (as_lists(partition(examples, scheme, 5, seed, keys)) for seed in (0, 1))
    assert first != second


def test_partition_is_the_same_in_another_process() -> None:
    code = f"""
import numpy as np
from client.data import load, load_keys, parse_source
from simulation.partition import partition
from tests.simulation.test_partition import digest
source = parse_source("digits")
for scheme in {DRAWN!r}:
    print(digest(partition(load(source), scheme, 10, 7, load_keys(source))))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={"PYTHONHASHSEED": "12", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    source = parse_source("digits")
    here = [digest(partition(load(source), scheme, 10, 7, load_keys(source))) for scheme in DRAWN]
    assert done.stdout.split() == here
    assert len(set(here)) == len(DRAWN)


def test_client_ids_are_stable_and_in_order() -> None:
    assert partition(many(30, 2), "iid", 3, 0).client_ids == ["client-0000", "client-0001", "client-0002"]
    names = partition(many(10_001, 2), "iid,minimum=1", 10_001, 0).client_ids
    assert (names[7], names[-1]) == ("client-00007", "client-10000")
    assert names == sorted(names)


# Each kind.


def test_iid_sizes_differ_by_one_at_most() -> None:
    assert partition(many(10, 2), "iid", 4, 3).sizes.tolist() == [3, 3, 2, 2]


def test_iid_class_counts_are_those_of_draws_without_replacement() -> None:
    # Hypergeometric: of n examples with K of a class, m are drawn. Variance m (K/n) (1 - K/n) (n - m) / (n - 1).
    examples, clients = many(3000, 5), 30
    counts = np.stack([counted(examples, partition(examples, "iid", clients, seed)) for seed in range(40)])
    share = torch.bincount(examples.targets).numpy() / 3000
    variance = 100 * share * (1 - share) * (3000 - 100) / (3000 - 1)
    scores = (counts - 100 * share) / np.sqrt(variance)
    assert (scores**2).mean() == pytest.approx(1, abs=0.06)
    assert np.abs(scores).max() < 5


def test_by_key_with_a_client_for_each_key_follows_the_order_of_keys() -> None:
    keys = np.array(["ben", "ana", "cem", "ana", "ben", "cem", "ana"])
    parts = partition(labelled(*range(7)), "by-key", None, 5, keys)
    assert as_lists(parts) == [[1, 3, 6], [0, 4], [2, 5]]


def test_by_key_of_digits_gives_their_form_blocks() -> None:
    source = parse_source("digits,blocks=2|5|13")
    parts = partition(load(source), "by-key", 3, 0, load_keys(source))
    for rows, block in zip(parts.rows, (2, 5, 13), strict=True):
        own = load(source).select(torch.from_numpy(rows))
        assert torch.equal(own.inputs, load(parse_source(f"digits,blocks={block}")).inputs)


def test_by_key_with_fewer_clients_deals_whole_keys_in_equal_numbers() -> None:
    keys = np.repeat(np.arange(11), 3)
    parts = partition(many(33, 2), "by-key", 4, 1, keys)
    assert sorted(parts.sizes.tolist()) == [6, 9, 9, 9]
    held = [set(keys[rows].tolist()) for rows in parts.rows]
    assert sum(len(names) for names in held) == len(set.union(*held)) == 11


def test_by_key_draws_again_until_the_minimum_is_met() -> None:
    # Only one in three ways to make pairs of these keys leaves nobody with less than 9 examples.
    keys = np.repeat(np.arange(4), [1, 2, 8, 9])
    for seed in range(20):
        sizes = partition(many(20, 2), "by-key,minimum=9", 2, seed, keys).sizes
        assert sizes.min() >= 9


def test_shards_of_one_class_each_are_dealt_two_to_a_client() -> None:
    # Four classes of six are cut into eight shards of three: a client has two classes, or both halves of one.
    examples = labelled(*[0, 1, 2, 3] * 6)
    parts = partition(examples, "shards,per_client=2", 4, 3)
    for row in counted(examples, parts).tolist():
        assert sorted(row) in ([0, 0, 3, 3], [0, 0, 0, 6])


def test_shards_hold_no_more_classes_than_shards_and_boundaries() -> None:
    source = parse_source("digits")
    examples = load(source)
    for per_client in (1, 2, 5):
        counts = counted(examples, partition(examples, Shards(per_client=per_client), 20, 0))
        # Each of the nine boundaries between ten classes cuts through one shard at most.
        assert (counts > 0).sum() <= 20 * per_client + 9
        assert (counts > 0).sum(axis=1).max() <= per_client + 9


def test_dirichlet_over_classes_keeps_sizes_equal_whatever_alpha() -> None:
    for alpha in (1e-12, 0.3, 1e6):
        assert partition(many(103, 7), Dirichlet(alpha=alpha), 10, 0).sizes.tolist() == [11] * 3 + [10] * 7


def test_dirichlet_with_huge_alpha_is_as_skewed_as_iid_and_with_small_alpha_more() -> None:
    source = parse_source("digits")
    examples = load(source)

    def skew(scheme: str) -> float:
        return float(
            np.mean([class_skew(counted(examples, partition(examples, scheme, 20, seed))) for seed in range(10)])
        )

    at_random = skew("iid")
    assert skew("dirichlet,alpha=1e6") == pytest.approx(at_random, rel=0.1)
    assert skew("dirichlet,alpha=1e6,over=clients") < at_random  # cut in equal parts, and not drawn
    skews = [skew(f"dirichlet,alpha={alpha}") for alpha in (100, 10, 1, 0.1)]
    assert skews == sorted(skews)
    assert skews[-1] > 0.7


def test_dirichlet_with_tiny_alpha_gives_most_of_a_client_to_one_class() -> None:
    # Four of 40 clients fit into a class. Where more have it as theirs, they share it and then take what others left.
    examples = load(parse_source("digits"))
    largest = [
        counted(examples, partition(examples, scheme, 40, 0)).max(axis=1) for scheme in ("iid", "dirichlet,alpha=1e-9")
    ]
    assert np.median(largest[0]) / 45 < 0.25
    assert np.median(largest[1]) / 45 > 0.7


def test_dirichlet_over_clients_draws_again_until_the_minimum_is_met() -> None:
    examples = many(300, 3)
    text = "dirichlet,alpha=0.5,over=clients,minimum="
    smallest = np.array([[partition(examples, f"{text}{m}", 6, s).sizes.min() for m in (1, 20)] for s in range(10)])
    assert (smallest[:, 0] < 20).any()
    assert (smallest[:, 1] >= 20).all()


@pytest.mark.parametrize(
    ("total", "clients", "exponent", "minimum", "sizes"),
    [
        pytest.param(14, 3, 1.0, 1, [7, 4, 3], id="zipf"),  # 11 in parts of 6 : 3 : 2
        pytest.param(10, 4, 0.0, 1, [3, 3, 2, 2], id="equal"),
        pytest.param(21, 2, 2.0, 3, [15, 6], id="square"),  # 15 in parts of 4 : 1
        pytest.param(10, 3, 100.0, 2, [6, 2, 2], id="all-to-the-first"),
        pytest.param(6, 3, 1.0, 2, [2, 2, 2], id="nothing-left"),
    ],
)
def test_power_law_sizes(total: int, clients: int, exponent: float, minimum: int, sizes: list[int]) -> None:
    assert power_law_sizes(total, clients, exponent, minimum).tolist() == sizes
    scheme = PowerLaw(exponent=exponent, minimum=minimum)
    assert partition(many(total, 3), scheme, clients, 0).sizes.tolist() == sizes


@given(st.integers(1, 300), st.integers(1, 20), st.floats(0, 100), st.integers(1, 5))
def test_power_law_sizes_never_rise(rest: int, clients: int, exponent: float, minimum: int) -> None:
    total = clients * minimum + rest
    sizes = power_law_sizes(total, clients, exponent, minimum)
    assert sizes.sum() == total
    assert (np.diff(sizes) <= 0).all()
    assert sizes.min() >= minimum


def test_partition_of_text_needs_no_classes() -> None:
    windows = Examples(torch.zeros(20, 5, dtype=torch.int64), torch.zeros(20, 5, dtype=torch.int64))
    for scheme in ("iid", "by-key", "power-law"):
        parts = partition(windows, scheme, 4, 0, np.arange(20) // 5)
        assert sum(parts.sizes) == 20
        assert class_counts(windows, parts) is None


# Refusals.


@pytest.mark.parametrize(
    ("scheme", "clients", "message"),
    [
        pytest.param("iid", 0, "clients must be at least 1, got 0. Take more.", id="no-clients"),
        pytest.param("iid,minimum=1", 21, "clients must be at most 20, the number of examples, got 21.", id="clients"),
        pytest.param(
            "iid,minimum=4", 6, "minimum must be at most 3 for 6 clients of 20 examples, got 4. Lower it,", id="minimum"
        ),
        pytest.param(
            "power-law,minimum=11",
            2,
            "minimum must be at most 10 for 2 clients of 20 examples, got 11.",
            id="power-law",
        ),
        pytest.param("iid", None, "clients must be given, got none. Only by-key can", id="clients-left-out"),
        pytest.param(
            "shards,per_client=7",
            3,
            "shards must be at most 20, the number of examples, got 21 for 3 clients. Lower per_client,",
            id="shards",
        ),
        pytest.param(
            "by-key", 5, "clients must be at most 4, the number of keys, got 5. Take fewer clients", id="keys"
        ),
        pytest.param(
            "by-key,minimum=3",
            None,
            "each client must have at least 3 examples, got 2 with the key 'd'. Lower minimum, or take fewer clients",
            id="small-key",
        ),
        pytest.param(
            "by-key,minimum=10",
            2,
            f"each client must have at least 10 examples within {DRAW_LIMIT} draws, got 8 for the smallest of 2 clients",
            id="small-groups",
        ),
        pytest.param(
            "dirichlet,alpha=1e-9,over=clients",
            5,
            f"each client must have at least 2 examples within {DRAW_LIMIT} draws, got 0 for the smallest of 5 clients at "
            "best. Lower minimum, raise alpha, take fewer clients, or deal over=classes",
            id="dirichlet",
        ),
    ],
)
def test_partition_impossible_request_is_refused(scheme: str, clients: int | None, message: str) -> None:
    keys = np.repeat(["a", "b", "c", "d"], [6, 6, 6, 2])
    with pytest.raises(PartitionError, match=f"^Partition '{scheme.split(',')[0]}.*': {re.escape(message)}"):
        partition(many(20, 2), scheme, clients, 0, keys)


@pytest.mark.parametrize(
    ("keys", "found"), [(None, "none"), (np.arange(5), r"shape \(5,\)"), (np.zeros((20, 1), int), r"shape \(20, 1\)")]
)
def test_by_key_without_a_key_for_each_example_is_refused(keys: Any, found: str) -> None:
    with pytest.raises(PartitionError, match=f"keys must be one for each of 20 examples, got {found}. Name them in"):
        partition(many(20, 2), "by-key", 2, 0, keys)


@pytest.mark.parametrize("scheme", ["shards", "dirichlet,alpha=1"])
@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (torch.zeros(20, 5, dtype=torch.int64), r"int64 of shape \(20, 5\)"),
        (torch.zeros(20), r"float32 of shape \(20,\)"),
    ],
)
def test_partition_by_class_without_classes_is_refused(scheme: str, targets: torch.Tensor, found: str) -> None:
    with pytest.raises(PartitionError, match=f"targets must be one class an example, got {found}. Choose iid, by-key"):
        partition(Examples(torch.zeros(20, 1), targets), scheme, 2, 0)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_partition_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(PartitionError, match=f"seed must be from 0 to {2**63 - 1}, got {seed}"):
        partition(many(20, 2), "iid", 2, seed)


# Classes and skew.


def test_class_counts_and_skew_by_hand() -> None:
    # Two clients with 3 + 1 and 1 + 3 of two classes: each is a quarter away from half and half.
    examples = labelled(4, 4, 4, 9, 4, 9, 9, 9)
    parts = Partition(Iid(), 0, (np.arange(4), np.arange(4, 8)))
    found = class_counts(examples, parts)
    assert found is not None
    assert (found[0].tolist(), found[1].tolist()) == ([4, 9], [[3, 1], [1, 3]])
    assert class_skew(found[1]) == pytest.approx(0.25)
    assert class_skew(np.array([[2, 4], [1, 2]])) == pytest.approx(0)
    assert class_skew(np.eye(5, dtype=np.int64)) == pytest.approx(0.8)


# Data of a simulation.


def test_local_data_deals_each_client_its_examples_and_holds_some_out() -> None:
    examples = many(50, 3)
    parts = partition(examples, "power-law", 4, 9)
    sites = local_data(examples, parts, 0.3, "npz")
    assert list(sites) == parts.client_ids
    for rows, site in zip(parts.rows, sites.values(), strict=True):
        held_out, training = (part.inputs[:, 0].long().tolist() for part in (site.held_out, site.training))
        assert sorted(held_out + training) == rows.tolist()
        assert len(held_out) == max(1, round(0.3 * len(rows)))
        assert site.kind == "npz"
        assert torch.equal(site.training.targets, examples.targets[site.training.inputs[:, 0].long()])
    again = local_data(examples, parts, 0.3)
    assert all(torch.equal(sites[name].held_out.inputs, again[name].held_out.inputs) for name in sites)


def test_local_data_holds_out_other_places_at_each_client() -> None:
    examples = many(80, 2)
    parts = Partition(Iid(), 0, tuple(np.arange(20 * k, 20 * k + 20) for k in range(4)))
    places = [tuple(site.held_out.inputs[:, 0].long() % 20) for site in local_data(examples, parts, 0.5).values()]
    assert len(set(places)) == 4


@pytest.mark.parametrize(
    ("scheme", "fraction", "message"),
    [
        pytest.param(
            "iid,minimum=1", 0.2, "must leave at least 1 example to train on, got 0.2 of 1", id="nothing-left"
        ),
        pytest.param("iid,minimum=1", 1.0, "must be at least 0 and below 1, got 1.0", id="out-of-range"),
    ],
)
def test_local_data_that_cannot_be_split_names_the_client(scheme: str, fraction: float, message: str) -> None:
    examples = many(5, 2)
    parts = partition(examples, scheme, 5, 0)
    with pytest.raises(PartitionError, match=f"^Partition 'iid,minimum=1', client-0000: .*{message}"):
        local_data(examples, parts, fraction)


async def test_local_data_is_what_a_serial_simulation_runs_on(tmp_path: Path) -> None:
    examples = load(parse_source("digits"))
    sites = local_data(examples, partition(examples, "dirichlet,alpha=0.5", 5, 7), 0.2, "digits")
    configured = spec(**DIGITS, rounds=2, cohort={"size": 3}, evaluate={"every": 1})
    async with opened(tmp_path) as store:
        run = await run_serially(configured, sites, store, tmp_path / "run")
        records = await store.rounds(run.run_id)
    assert run.state == RunState.FINISHED
    assert all(part.client_id in sites for record in records for part in record.contributions)
