"""The stable identity of a client or coordinator: an Ed25519 key in a file that is made on the first start and never leaves the machine."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from privacy.errors import IdentityError
from privacy.files import write_file


def load_identity(path: Path) -> Ed25519PrivateKey:
    """Return the key in `path`, which is made with mode 0600 if it does not exist.

    Raises:
        IdentityError: The file cannot be read or written, holds something else, or is readable by others.
    """
    try:
        if not path.exists():
            _create(path)
        if (mode := path.stat().st_mode & 0o077) != 0:
            raise IdentityError(
                f"Key file {path}: must be readable by its owner alone, got mode {mode:03o} for others. Run chmod 600."
            )
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise IdentityError(f"Key file {path}: must be readable and writable, got: {error.strerror}.") from error
    except (ValueError, TypeError) as error:
        raise IdentityError(f"Key file {path}: must hold an Ed25519 key in PEM, got something else.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(f"Key file {path}: must hold an Ed25519 key, got {type(key).__name__}.")
    return key


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_file(path, pem, 0o600)
