"""ML-KEM-768: one side makes a secret and a ciphertext for the other's key, which opens it.

Source: NIST, "Module-Lattice-Based Key-Encapsulation Mechanism Standard", FIPS 203, 2024. https://doi.org/10.6028/NIST.FIPS.203
"""

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey

KEM_KEY_BYTES = 1184
KEM_CIPHERTEXT_BYTES = 1088


def encapsulated(public_key: bytes) -> tuple[bytes, bytes]:
    """Return a new secret, 32 bytes, and its ciphertext for a key."""
    return MLKEM768PublicKey.from_public_bytes(public_key).encapsulate()


def is_kem_key(public_key: bytes) -> bool:
    """Tell whether these bytes are a key of ML-KEM-768, in the one way in which it is written."""
    try:
        MLKEM768PublicKey.from_public_bytes(public_key)
    except ValueError:
        return False
    return True
