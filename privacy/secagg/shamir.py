"""Shamir's secret sharing of 32 bytes over the prime field of 2^31 - 1, all limbs and all shares at a time.

A secret is 9 limbs of 30 bits, little-endian, and each limb the constant term of a random polynomial of degree t - 1. The share of the
holder at x is every polynomial's value there. Any t shares give the secret, fewer say nothing of it.

Source: Shamir, "How to Share a Secret", Communications of the ACM 22(11), 1979. https://doi.org/10.1145/359168.359176
"""

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

PRIME = 2**31 - 1
SECRET_BYTES = 32
LIMB_COUNT = 9
LIMB_BITS = 30
SHARE_BYTES = 4 * LIMB_COUNT

Limbs = npt.NDArray[np.uint64]


def limbs_of(secret: bytes) -> Limbs:
    """Return a secret of 32 bytes as limbs, uint64 (9,)."""
    number = int.from_bytes(secret, "little")
    return np.array([number >> LIMB_BITS * i & (1 << LIMB_BITS) - 1 for i in range(LIMB_COUNT)], dtype=np.uint64)


def random_coefficients(count: int) -> Limbs:
    """Return coefficients from the operating system's generator, uniform in the field, uint64 (count, 9)."""
    found = np.empty(0, dtype=np.uint32)
    while len(found) < count * LIMB_COUNT:
        draw = np.frombuffer(secrets.token_bytes(4 * (count * LIMB_COUNT + 1)), dtype="<u4") & np.uint32(PRIME)
        # 31 bits reach one value beyond the field.
        found = np.concatenate([found, draw[draw < PRIME]])
    return found[: count * LIMB_COUNT].reshape(count, LIMB_COUNT).astype(np.uint64)


def split(secret: bytes, threshold: int, holder_count: int, coefficients: Limbs | None = None) -> list[bytes]:
    """Return the shares of a secret for the holders at x = 1, 2, ..., 36 bytes each.

    Args:
        secret: 32 bytes.
        threshold: t, shares that give the secret again, 1 to `holder_count`.
        holder_count: Holders, below 2^31 - 1.
        coefficients: Of x, x^2, ..., uint64 (t - 1, 9), below 2^31 - 1; drawn if not given.
    """
    if coefficients is None:
        coefficients = random_coefficients(threshold - 1)
    points = np.arange(1, holder_count + 1, dtype=np.uint64)[:, None]
    values = np.zeros((holder_count, LIMB_COUNT), dtype=np.uint64)
    for coefficient in (*coefficients[::-1], limbs_of(secret)):
        values = (values * points + coefficient) % np.uint64(PRIME)  # (holders, limbs)
    return [row.tobytes() for row in values.astype("<u4")]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret of as many shares as its threshold says, by the holders' x.

    Fewer or false shares give another secret, or none: the caller checks it against what the dealer committed to.

    Raises:
        ValueError: A share is malformed, or the shares are no secret's.
    """
    values = np.array([_limbs_of_share(share) for share in shares.values()], dtype=np.uint64)  # (shares, limbs)
    limbs = np.zeros(LIMB_COUNT, dtype=np.uint64)
    for weight, row in zip(_weights_at_zero(tuple(shares)), values, strict=True):
        limbs = (limbs + weight * row) % np.uint64(PRIME)
    number = sum(int(limb) << LIMB_BITS * i for i, limb in enumerate(limbs))
    if any(limb >> LIMB_BITS for limb in limbs.tolist()) or number >> 8 * SECRET_BYTES:
        raise ValueError("Shares must be those of one secret, got others.")
    return number.to_bytes(SECRET_BYTES, "little")


def _limbs_of_share(share: bytes) -> npt.NDArray[np.uint32]:
    if len(share) != SHARE_BYTES:
        raise ValueError(f"A share must have {SHARE_BYTES} bytes, got {len(share)}.")
    limbs = np.frombuffer(share, dtype="<u4")
    if (limbs >= PRIME).any():
        raise ValueError("A share's limbs must be below 2^31 - 1, got a larger one.")
    return limbs


@lru_cache(maxsize=16)
def _weights_at_zero(points: Sequence[int]) -> Limbs:
    """Return Lagrange's weights for the value at 0 of a polynomial known at these points, uint64 (points,)."""
    weights = []
    for own in points:
        top = bottom = 1
        for other in points:
            if other != own:
                top = top * other % PRIME
                bottom = bottom * (other - own) % PRIME
        weights.append(top * pow(bottom, -1, PRIME) % PRIME)
    return np.array(weights, dtype=np.uint64)
