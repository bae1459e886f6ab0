"""The primitives of secure aggregation give the numbers of the protocol's test vectors, and keep their own rules."""

import hashlib
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from privacy.secagg.graph import neighbourhoods
from privacy.secagg.labels import derive_key, hashed, is_signed, sign
from privacy.secagg.masks import CHUNK_BYTES, RING_TYPES, Mask, Peer, RingVector, add_masks, pair_mask, self_mask
from privacy.secagg.shamir import PRIME, Limbs, combine, limbs_of, split

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors.json").read_text())
SESSION, ROSTER = b"\x11" * 32, b"\x22" * 32
LOW, HIGH = b"\x01" * 16, b"\x02" * 16


def key_a() -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes(range(32)))


def key_b() -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes(range(32, 64)))


def peer(index: int, client_id: bytes, key: X25519PrivateKey) -> Peer:
    return Peer(index, client_id, key.public_key().public_bytes_raw())


def masked(size: int, *masks: Mask, bits: int = 32) -> RingVector:
    vector = np.zeros(size, dtype=RING_TYPES[bits])
    add_masks(vector, masks)
    return vector


def test_hashes_are_those_of_the_vectors() -> None:
    assert hashed("graph").hex() == VECTORS["H_label_graph_empty"]
    commitment = hashed("commit-b", bytes(32), b"\x01" * 16, b"\x02" * 32)
    assert commitment.hex() == VECTORS["H('commit-b',00*32,01*16,02*32)"]


def test_pair_masks_are_those_of_the_vectors_from_either_side() -> None:
    low, high = peer(0, LOW, key_a()), peer(1, HIGH, key_b())
    assert low.mask_public_key.hex() == VECTORS["x25519_pk_a"]
    assert high.mask_public_key.hex() == VECTORS["x25519_pk_b"]
    assert key_a().exchange(key_b().public_key()).hex() == VECTORS["x25519_ss"]
    ours = pair_mask(key_a(), low, high, SESSION, ROSTER)
    theirs = pair_mask(key_b(), high, low, SESSION, ROSTER)
    assert ours.key.hex() == VECTORS["pair_mask_key(sid=11*32,rh=22*32,lo=01*16,hi=02*16)"] == theirs.key.hex()
    assert (ours.is_negative, theirs.is_negative) == (False, True)
    stream = masked(1_000_001, ours)
    assert stream[:8].tolist() == VECTORS["pair_mask_first8_u32"]
    assert stream[1_000_000] == VECTORS["pair_mask_elem_1000000_u32"]
    assert not masked(1_000_001, ours, theirs).any()


def test_self_mask_is_that_of_the_vectors() -> None:
    mask = self_mask(b"\x03" * 32, SESSION, ROSTER, LOW)
    assert mask.key.hex() == VECTORS["self_mask_key(b=03*32)"]
    assert masked(4, mask).tolist() == VECTORS["self_mask_first4_u32"]


@pytest.mark.parametrize("bits", RING_TYPES)
@pytest.mark.parametrize("size", [1, 5, CHUNK_BYTES // 4 - 1, CHUNK_BYTES // 2 + 3])
def test_masks_come_off_again_whatever_the_length(bits: int, size: int) -> None:
    keys = [bytes([number]) * 32 for number in range(3)]
    vector = np.arange(size).astype(RING_TYPES[bits])
    before = vector.copy()
    add_masks(vector, [Mask(key) for key in keys])
    assert (vector != before).mean() > 0.9 or size < 10
    for key in keys:
        add_masks(vector, [Mask(key, is_negative=True)])
    assert (vector == before).all()


def test_stream_of_chacha20_is_that_of_its_reference() -> None:
    """RFC 8439, appendix A.1, test vectors 1 and 2: key and nonce of zeros, blocks 0 and 1."""
    vector = np.zeros(20, dtype=RING_TYPES[32])
    add_masks(vector, [Mask(bytes(32))], "chacha20")
    assert vector[:4].tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"
    assert vector[16:].tobytes().hex() == "9f07e7be5551387a98ba977c732d080d"


@pytest.mark.parametrize("bits", RING_TYPES)
def test_stream_of_every_ring_is_the_same_bytes(bits: int) -> None:
    assert (
        masked(1 << 12, Mask(b"\x07" * 32), bits=bits).tobytes()[:64] == masked(64, Mask(b"\x07" * 32)).tobytes()[:64]
    )


def test_limbs_and_shares_are_those_of_the_vectors() -> None:
    secret = bytes(range(32))
    assert limbs_of(secret).tolist() == VECTORS["limbs(00..1f)"]
    coefficients: Limbs = np.array(
        [[(9 * j + i + 1) * 111_111 % PRIME for i in range(9)] for j in range(2)], dtype=np.uint64
    )
    shares = split(secret, 3, 5, coefficients)
    assert [share.hex() for share in shares] == VECTORS["shamir t=3 n=5 coef[j][i]=((9j+i+1)*111111)"]
    for chosen in itertools.combinations(range(1, 6), 3):
        assert combine({x: shares[x - 1] for x in chosen}) == secret


@given(st.binary(min_size=32, max_size=32), st.integers(1, 20), st.integers(0, 10), st.randoms(use_true_random=False))
def test_any_threshold_of_shares_gives_the_secret(
    secret: bytes, threshold: int, spare: int, generator: random.Random
) -> None:
    shares = split(secret, threshold, threshold + spare)
    chosen = generator.sample(range(1, threshold + spare + 1), threshold)
    assert combine({x: shares[x - 1] for x in chosen}) == secret


def test_fewer_shares_than_the_threshold_fit_every_secret() -> None:
    """For two shares of three, some polynomial goes through them and any value at 0: they say nothing of the secret."""
    shares = split(b"\x55" * 32, 3, 5)
    first, second = (np.frombuffer(shares[x], dtype="<u4").astype(object) for x in (0, 1))
    for other in (bytes(32), b"\xaa" * 32):
        at_zero = limbs_of(other).astype(object)
        # Through (0, s), (1, y1), (2, y2) goes one parabola; its value at 3 makes a third share.
        third = (at_zero - 3 * first + 3 * second) % PRIME
        made_up = third.astype("<u4").tobytes()
        assert combine({1: shares[0], 2: shares[1], 3: made_up}) == other


@pytest.mark.parametrize(
    ("share", "message"),
    [
        pytest.param(bytes(35), "36 bytes, got 35", id="short"),
        pytest.param(b"\xff" * 36, "below 2\\^31 - 1", id="beyond-the-field"),
    ],
)
def test_malformed_share_is_refused(share: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combine({1: share})


def test_shares_of_no_secret_are_refused() -> None:
    with pytest.raises(ValueError, match="one secret"):
        combine({1: (np.ones(9, dtype="<u4") * (PRIME - 1)).tobytes()})


def test_rings_are_those_of_the_vectors() -> None:
    small = neighbourhoods(12, 4, ROSTER)
    assert [list(near) for near in small[:4]] == VECTORS["graph n=12 k=4 rh=22*32 neighbours of 0..3"]
    large = neighbourhoods(1000, 100, ROSTER)
    listed = json.dumps([list(near) for near in large])
    assert hashlib.sha256(listed.encode()).hexdigest() == VECTORS["graph n=1000 k=100 sha256"]


@given(st.integers(4, 60), st.integers(1, 20), st.binary(min_size=32, max_size=32))
def test_every_neighbourhood_is_mutual_and_of_the_degree(count: int, half: int, roster_hash: bytes) -> None:
    degree = 2 * half if 2 * half < count - 1 else count - 1
    near = neighbourhoods(count, degree, roster_hash)
    assert all(len(set(others)) == degree and own not in others for own, others in enumerate(near))
    assert all(own in near[other] for own, others in enumerate(near) for other in others)


def test_signature_and_key_are_bound_to_label_and_parts() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public = key.public_key().public_bytes_raw()
    signature = sign(key, "offer", b"ab", b"c")
    assert is_signed(public, signature, "offer", b"ab", b"c")
    assert not is_signed(public, signature, "offer", b"a", b"bc")
    assert not is_signed(public, signature, "shares", b"ab", b"c")
    assert not is_signed(bytes(31), signature, "offer", b"ab", b"c")
    keys = {derive_key(bytes(32), SESSION, label, part) for label in ("a", "b") for part in (b"1", b"2")}
    assert len(keys | {derive_key(bytes(32), ROSTER, "a", b"1")}) == 5
