"""Certificates for the coordinator's address and, for mutual TLS, for clients, signed by a private authority of the federation.

A folder holds them in three parts, each of which goes whole to the place that needs it:

    authority/     certificate.pem, key.pem                    stays with who runs the federation
    coordinator/   certificate.pem, key.pem, authority.pem     to the coordinator
    clients/       authority.pem, NAME.pem, NAME-key.pem       to the clients

Source: RFC 5280, "Internet X.509 Public Key Infrastructure Certificate and CRL Profile", sections 4.2.1.1 to 4.2.1.12.
https://www.rfc-editor.org/rfc/rfc5280
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from privacy.errors import CertificateError
from privacy.files import write_file

AUTHORITY_DAYS = 3650
CLOCK_SKEW = timedelta(hours=1)
"""A certificate begins so long before it is made, for clocks that are late."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be certified.

    Attributes:
        hosts: Names and addresses by which clients and browsers reach the coordinator; at least one.
        clients: Names of clients; none without mutual TLS.
        days: Life of a certificate.
    """

    hosts: Sequence[str]
    clients: Sequence[str]
    days: int


@dataclass(frozen=True, slots=True)
class _Pair:
    """A certificate's file, its key's, and what it says."""

    certificate: Path
    key: Path
    common_name: str
    names: tuple[x509.GeneralName, ...]
    usage: x509.ObjectIdentifier


class Authority:
    """The authority in a folder, which is made where there is none."""

    def __init__(self, folder: Path) -> None:
        """Read or make the authority.

        Raises:
            CertificateError: Its files cannot be read or written, are no certificate with its key, or it has ended.
        """
        self._certificate_path, self._key_path = folder / "certificate.pem", folder / "key.pem"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not self._certificate_path.exists():
                self._make()
            self.pem = self._certificate_path.read_bytes()
            self._certificate = x509.load_pem_x509_certificate(self.pem)
            self._key = _elliptic(self._key_path)
        except OSError as error:
            raise _inaccessible(Path(str(error.filename or folder)), error) from error
        except ValueError as error:
            raise CertificateError(
                f"Authority {folder}: must be a certificate and its key in PEM, got other files."
            ) from error
        if (end := self._certificate.not_valid_after_utc) <= datetime.now(UTC):
            raise CertificateError(
                f"Authority {folder}: must be valid today, and it ended on {end:%Y-%m-%d}. "
                "Move the folder away: the next call makes a new authority, which every party then needs."
            )

    def certify(self, folder: Path, wanted: Wanted) -> list[Path]:
        """Make what is missing, says something else than it should, or has less than a third of its life left.

        Returns:
            The certificates that were made; the others are as they were.

        Raises:
            CertificateError: A name cannot stand in a certificate, and nothing was written; or a file cannot be written.
        """
        pairs = _pairs(folder, wanted)
        try:
            for part in ("coordinator", "clients"):
                (folder / part).mkdir(parents=True, exist_ok=True)
                if _content(folder / part / "authority.pem") != self.pem:
                    write_file(folder / part / "authority.pem", self.pem, 0o644)
            stale = [pair for pair in pairs if not self._is_good(pair)]
            for pair in stale:
                self._sign(pair, wanted.days)
        except OSError as error:
            raise _inaccessible(Path(str(error.filename or folder)), error) from error
        return [pair.certificate for pair in stale]

    def _make(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _subject("Choral federation")
        end = datetime.now(UTC) + timedelta(days=AUTHORITY_DAYS)
        builder = _builder(name, name, key.public_key(), key.public_key(), end)
        certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).add_extension(
            _key_usage(is_authority=True), critical=True
        )
        # The certificate last: it says that there is an authority, whose key may be kept elsewhere.
        write_file(self._key_path, _pem_of(key), 0o600)
        signed = certificate.sign(key, hashes.SHA256())
        write_file(self._certificate_path, signed.public_bytes(Encoding.PEM), 0o644)

    def _sign(self, pair: _Pair, days: int) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        end = min(datetime.now(UTC) + timedelta(days=days), self._certificate.not_valid_after_utc)
        subject, issuer = _subject(pair.common_name), self._certificate.subject
        certificate = (
            _builder(subject, issuer, key.public_key(), self._key.public_key(), end)
            .add_extension(x509.SubjectAlternativeName(pair.names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([pair.usage]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        # Cut off between the two, they do not fit together, and the next call makes both again.
        write_file(pair.key, _pem_of(key), 0o600)
        write_file(pair.certificate, certificate.public_bytes(Encoding.PEM), 0o644)

    def _is_good(self, pair: _Pair) -> bool:
        if not (pair.certificate.exists() and pair.key.exists()):
            return False
        try:
            certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
            certificate.verify_directly_issued_by(self._certificate)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            key = _elliptic(pair.key)
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        is_young = end - datetime.now(UTC) > (end - begin) / 3
        return is_young and set(names) == set(pair.names) and key.public_key() == certificate.public_key()


def _pairs(folder: Path, wanted: Wanted) -> list[_Pair]:
    if not wanted.hosts:
        raise CertificateError(
            "Certificates: the coordinator must have at least one --host to be reached by, got none."
        )
    coordinator, clients = folder / "coordinator", folder / "clients"
    hosts = tuple(dict.fromkeys(map(_general_name, wanted.hosts)))
    pairs = [
        _Pair(
            coordinator / "certificate.pem",
            coordinator / "key.pem",
            "coordinator",
            hosts,
            ExtendedKeyUsageOID.SERVER_AUTH,
        )
    ]
    for name in wanted.clients:
        if not _NAME.fullmatch(name) or name == "authority":
            raise CertificateError(
                f"Client {name!r}: its name must be 1 to 63 letters, digits, dots, dashes or underscores and not 'authority', got this one."
            )
        names = (x509.DNSName(name),)
        pairs.append(
            _Pair(clients / f"{name}.pem", clients / f"{name}-key.pem", name, names, ExtendedKeyUsageOID.CLIENT_AUTH)
        )
    return pairs


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not all(_LABEL.fullmatch(label) for label in host.removeprefix("*.").split(".")) or len(host) > 253:
        raise CertificateError(f"Host {host!r}: must be a host name or an IP address without a port, got neither.")
    return x509.DNSName(host)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    end: datetime,
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(issuer, subject, key).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(datetime.now(UTC) - CLOCK_SKEW).not_valid_after(end)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    return builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)


def _key_usage(is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _elliptic(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{type(key).__name__} instead of a key on an elliptic curve")
    return key


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _inaccessible(path: Path, error: OSError) -> CertificateError:
    return CertificateError(f"Certificates {path}: must be readable and writable, got: {error.strerror}.")
