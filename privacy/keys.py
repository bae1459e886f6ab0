"""Ed25519 keys in files that their owner alone can read: the stable identity of a client or coordinator, and the officer's enrolment key.

An identity is made on the first start and never leaves the machine. The enrolment key may be locked with a passphrase.
"""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from privacy.errors import IdentityError
from privacy.files import write_file


def load_identity(path: Path) -> Ed25519PrivateKey:
    """Return the key in `path`, which is made with mode 0600 if it does not exist.

    Raises:
        IdentityError: The file cannot be read or written, holds something else, or is readable by others.
    """
    try:
        pem = _private_bytes(path) if path.exists() else make_key(path)
    except OSError as error:
        raise _inaccessible(path, error) from error
    return _parsed(path, pem)


def make_key(path: Path, passphrase: str = "") -> bytes:
    """Make a key with mode 0600, and the folder where there is none; return it as PEM, locked if there is a passphrase.

    Raises:
        IdentityError: The file exists already or cannot be written. What was there is unchanged.
    """
    lock = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)
    try:
        if path.exists():
            raise IdentityError(f"Key file {path}: must not exist yet, and it does. A key is never overwritten.")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, pem, 0o600)
    except OSError as error:
        raise _inaccessible(path, error) from error
    return pem


def read_key(path: Path, passphrase: str) -> Ed25519PrivateKey:
    """Return a key that a passphrase may lock.

    Raises:
        IdentityError: The passphrase is not the key's, or `load_identity` would refuse the file.
    """
    try:
        pem = _private_bytes(path)
    except OSError as error:
        raise _inaccessible(path, error) from error
    is_locked = b"-----BEGIN ENCRYPTED PRIVATE KEY" in pem
    if is_locked != bool(passphrase):
        rule, got = ("must be opened with its", "none") if is_locked else ("must be opened without a", "one")
        raise IdentityError(f"Key file {path}: {rule} passphrase, got {got}.")
    try:
        return _parsed(path, pem, passphrase)
    except IdentityError as error:
        if is_locked and isinstance(error.__cause__, ValueError):
            raise IdentityError(f"Key file {path}: must be opened with its passphrase, got another one.") from error
        raise


def _private_bytes(path: Path) -> bytes:
    if (mode := path.stat().st_mode & 0o077) != 0:
        raise IdentityError(
            f"Key file {path}: must be readable by its owner alone, got mode {mode:03o} for others. Run chmod 600."
        )
    return path.read_bytes()


def _parsed(path: Path, pem: bytes, passphrase: str = "") -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem, passphrase.encode() or None)
    except (ValueError, TypeError) as error:
        raise IdentityError(f"Key file {path}: must hold an Ed25519 key in PEM, got something else.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(f"Key file {path}: must hold an Ed25519 key, got {type(key).__name__}.")
    return key


def _inaccessible(path: Path, error: OSError) -> IdentityError:
    return IdentityError(f"Key file {path}: must be readable and writable, got: {error.strerror}.")
