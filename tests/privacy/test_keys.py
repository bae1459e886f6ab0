import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from privacy.errors import IdentityError
from privacy.keys import load_identity


def pem_of(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | x25519.X25519PrivateKey | ed448.Ed448PrivateKey,
) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
def open_umask() -> Iterator[None]:
    """The most careless mask there is."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_load_identity_first_start_makes_a_private_key_file(tmp_path: Path, open_umask: None) -> None:
    path = tmp_path / "site" / "state" / "identity.pem"
    key = load_identity(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes() == key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert list(path.parent.iterdir()) == [path]


def test_load_identity_restart_has_the_same_key(tmp_path: Path) -> None:
    first = load_identity(tmp_path / "identity.pem")
    again = load_identity(tmp_path / "identity.pem")
    assert again.private_bytes_raw() == first.private_bytes_raw()


def test_load_identity_other_folder_has_another_key(tmp_path: Path) -> None:
    assert (
        load_identity(tmp_path / "a.pem").private_bytes_raw() != load_identity(tmp_path / "b.pem").private_bytes_raw()
    )


def test_load_identity_beside_what_a_killed_process_left_makes_a_key(tmp_path: Path) -> None:
    # In a container, each process has the number of the one before it.
    (tmp_path / f".identity.pem.{os.getpid()}").write_bytes(b"half a k")
    load_identity(tmp_path / "identity.pem")
    assert (tmp_path / "identity.pem").exists()


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o644, 0o666])
def test_load_identity_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.pem"
    load_identity(path)
    path.chmod(mode)
    before = path.read_bytes()
    rule = rf"^Key file {path}: must be readable by its owner alone, got mode {mode & 0o77:03o} for others. Run chmod 600.$"
    with pytest.raises(IdentityError, match=rule):
        load_identity(path)
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        pytest.param(b"", "must hold an Ed25519 key in PEM, got something else", id="empty"),
        pytest.param(bytes(range(256)), "must hold an Ed25519 key in PEM, got something else", id="garbage"),
        pytest.param(
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "must hold an Ed25519 key in PEM, got something else",
            id="garbage-in-pem",
        ),
        pytest.param(
            Ed25519PrivateKey.generate().private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
            ),
            "must hold an Ed25519 key in PEM, got something else",
            id="encrypted",
        ),
        pytest.param(
            Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "must hold an Ed25519 key in PEM, got something else",
            id="public",
        ),
        pytest.param(pem_of(ec.generate_private_key(ec.SECP256R1())), "must hold an Ed25519 key, got", id="elliptic"),
        pytest.param(pem_of(x25519.X25519PrivateKey.generate()), "must hold an Ed25519 key, got X25519", id="x25519"),
        pytest.param(pem_of(ed448.Ed448PrivateKey.generate()), "must hold an Ed25519 key, got Ed448", id="ed448"),
        pytest.param(pem_of(rsa.generate_private_key(65537, 2048)), "must hold an Ed25519 key, got RSA", id="rsa"),
    ],
)
def test_load_identity_file_without_an_ed25519_key_is_refused_and_kept(
    tmp_path: Path, content: bytes, rule: str
) -> None:
    path = tmp_path / "identity.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match=rf"^Key file {path}: {rule}"):
        load_identity(path)
    assert path.read_bytes() == content


def test_load_identity_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "identity.pem"
    with pytest.raises(
        IdentityError, match=rf"^Key file {path}: must be readable and writable, got: (File exists|Not a directory).$"
    ):
        load_identity(path)


def test_load_identity_path_of_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    path.mkdir(mode=0o700)
    with pytest.raises(IdentityError, match=rf"^Key file {path}: must be readable and writable, got: Is a directory.$"):
        load_identity(path)
