import hashlib
import itertools

import pytest
import torch

from wire.seeds import client_seeds, derive_generator, derive_seed


@pytest.mark.parametrize(
    ("parts", "seed"),
    [
        ((0, "init"), 1701864808915585549),
        ((7, "fit", 3, "ab" * 16), 7562946404475857758),
    ],
)
def test_seed_is_the_fixed_one(parts: tuple[int, str], seed: int) -> None:
    assert derive_seed(*parts) == seed


def test_seed_is_the_hash_of_length_prefixed_parts() -> None:
    data = b"".join(
        bytes([length, 0, 0, 0, 0, 0, 0, 0]) + part
        for length, part in [(13, b"choral/seed/1"), (2, b"42"), (6, b"select"), (1, b"9"), (0, b"")]
    )
    assert derive_seed(42, "select", 9) == int.from_bytes(hashlib.sha256(data).digest()[:8], "little") // 2


def test_seed_differs_when_any_part_does() -> None:
    parts = list(itertools.product([0, 1, 11], ["fit", "init"], [0, 1, 11], ["", "a", "1"]))
    seeds = {derive_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_client_seeds_are_those_of_each_client_however_many_were_asked_for() -> None:
    seed_of = client_seeds(7, "fit", 3)
    for client_id in ("", "ana", "ab" * 16, "\u00e9" * 40, "ana"):
        assert seed_of(client_id) == derive_seed(7, "fit", 3, client_id)
    assert seed_of("ab" * 16) == 7562946404475857758


def test_generator_draws_the_same_numbers_again() -> None:
    first, again = (torch.rand(5, generator=derive_generator(1, "fit", 2, "ana")) for _ in range(2))
    other = torch.rand(5, generator=derive_generator(1, "fit", 2, "ben"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_generator_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(5, generator=derive_generator(1, "fit"))
    assert torch.equal(torch.get_rng_state(), before)
