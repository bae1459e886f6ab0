import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wire.identity import client_id_of, is_hello_signed, labelled_hash, sign_hello

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
NONCE = bytes(32)


def test_client_id_of_known_key_is_the_fixed_one() -> None:
    # The public key of RFC 8032's private key 00 01 02 ... 1f.
    assert PUBLIC.hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    assert client_id_of(PUBLIC) == "d9bd921cfabf826d05957f53588d69aa"
    assert client_id_of(PUBLIC) == hashlib.sha256(b"choral/secagg/1/id" + PUBLIC).hexdigest()[:32]


def test_signature_is_accepted_for_its_own_hello() -> None:
    signature = sign_hello(KEY, 1, NONCE)
    assert len(signature) == 64
    assert is_hello_signed(PUBLIC, signature, 1, NONCE)


def test_signature_covers_the_documented_digest() -> None:
    parts = [b"choral/hello/1", bytes([1, 0, 0, 0]), NONCE, PUBLIC]
    data = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    KEY.public_key().verify(sign_hello(KEY, 1, NONCE), hashlib.sha256(data).digest())


@pytest.mark.parametrize(
    ("public_key", "signature", "version", "nonce"),
    [
        pytest.param(PUBLIC, sign_hello(KEY, 1, NONCE), 1, bytes(31) + b"\x01", id="other-nonce"),
        pytest.param(PUBLIC, sign_hello(KEY, 1, NONCE), 2, NONCE, id="other-version"),
        pytest.param(
            Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw(),
            sign_hello(KEY, 1, NONCE),
            1,
            NONCE,
            id="other-key",
        ),
        pytest.param(PUBLIC, bytes(64), 1, NONCE, id="no-signature"),
        pytest.param(PUBLIC, sign_hello(KEY, 1, NONCE)[:63], 1, NONCE, id="short-signature"),
        pytest.param(PUBLIC, b"", 1, NONCE, id="empty-signature"),
        pytest.param(PUBLIC[:31], sign_hello(KEY, 1, NONCE), 1, NONCE, id="short-key"),
        pytest.param(b"", sign_hello(KEY, 1, NONCE), 1, NONCE, id="empty-key"),
        pytest.param(bytes([255] * 32), sign_hello(KEY, 1, NONCE), 1, NONCE, id="no-point-of-the-curve"),
    ],
)
def test_signature_of_anything_else_is_refused(public_key: bytes, signature: bytes, version: int, nonce: bytes) -> None:
    assert not is_hello_signed(public_key, signature, version, nonce)


def test_labelled_hash_tells_lists_of_parts_apart() -> None:
    hashes = {
        labelled_hash("a", b"bc"),
        labelled_hash("ab", b"c"),
        labelled_hash("a", b"b", b"c"),
        labelled_hash("a", b"bc", b""),
        labelled_hash("a"),
    }
    assert len(hashes) == 5
