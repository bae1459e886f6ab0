"""Certificates from the private authority, by a TLS handshake and by who renews what when."""

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from privacy import certificates
from privacy.certificates import Authority, Wanted
from privacy.errors import CertificateError

WANTED = Wanted(["fed.example.org", "127.0.0.1"], ["site-0"], 365)


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> None:
    """Shake hands in memory. Raises `ssl.SSLError` when either side will not have the other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    # A client that the server refuses learns of it with what it reads first.
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue


def server_side(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "coordinator/certificate.pem", folder / "coordinator/key.pem")
    context.load_verify_locations(folder / "coordinator/authority.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_side(folder: Path, name: str | None = "site-0") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=folder / "clients/authority.pem")
    if name:
        context.load_cert_chain(folder / f"clients/{name}.pem", folder / f"clients/{name}-key.pem")
    return context


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def at(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Let it be some days later for the authority."""

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Later":
            moment = datetime.now(UTC) + timedelta(days=days)
            return cls.fromtimestamp(moment.timestamp(), UTC)

    monkeypatch.setattr(certificates, "datetime", Later)


@pytest.mark.parametrize("host", WANTED.hosts)
def test_coordinator_and_client_believe_each_other(tmp_path: Path, host: str) -> None:
    Authority(tmp_path / "authority").certify(tmp_path, WANTED)
    handshake(client_side(tmp_path), server_side(tmp_path), host)


def test_other_host_and_other_parties_are_not_believed(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        Authority(folder / "authority").certify(folder, WANTED)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(client_side(mine), server_side(mine), "elsewhere.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client_side(mine), server_side(other), "fed.example.org")
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(client_side(mine, None), server_side(mine), "fed.example.org")
    believing = client_side(other)
    believing.load_verify_locations(mine / "clients/authority.pem")
    with pytest.raises(ssl.SSLError):
        handshake(believing, server_side(mine), "fed.example.org")


def test_client_cannot_pass_for_the_coordinator(tmp_path: Path) -> None:
    Authority(tmp_path / "authority").certify(tmp_path, Wanted(["fed.example.org"], ["fed.example.org"], 365))
    posing = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    posing.load_cert_chain(tmp_path / "clients/fed.example.org.pem", tmp_path / "clients/fed.example.org-key.pem")
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(client_side(tmp_path, None), posing, "fed.example.org")


def test_keys_are_their_owners_alone(tmp_path: Path) -> None:
    Authority(tmp_path / "authority").certify(tmp_path, WANTED)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in files(tmp_path)}
    assert {name for name, mode in modes.items() if mode == 0o600} == {name for name in modes if "key" in name}
    assert "clients/key.pem" not in modes
    assert "coordinator/site-0-key.pem" not in modes


def test_second_call_changes_nothing(tmp_path: Path) -> None:
    Authority(tmp_path / "authority").certify(tmp_path, WANTED)
    before = files(tmp_path)
    assert Authority(tmp_path / "authority").certify(tmp_path, WANTED) == []
    assert files(tmp_path) == before


def test_what_gets_old_is_renewed_under_the_same_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Authority(tmp_path / "authority").certify(tmp_path, WANTED)
    before = files(tmp_path)
    at(monkeypatch, 365 * 2 / 3 - 2)
    assert Authority(tmp_path / "authority").certify(tmp_path, WANTED) == []
    at(monkeypatch, 365 * 2 / 3 + 2)
    made = Authority(tmp_path / "authority").certify(tmp_path, WANTED)
    assert [path.name for path in made] == ["certificate.pem", "site-0.pem"]
    after = files(tmp_path)
    kept = {name for name in before if before[name] == after[name]}
    assert kept == {
        "authority/certificate.pem",
        "authority/key.pem",
        "coordinator/authority.pem",
        "clients/authority.pem",
    }


def test_new_client_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    Authority(tmp_path / "authority").certify(tmp_path, WANTED)
    before = files(tmp_path)
    made = Authority(tmp_path / "authority").certify(tmp_path, Wanted(WANTED.hosts, ["edge-1"], 365))
    assert [path.name for path in made] == ["edge-1.pem"]
    assert {name: text for name, text in files(tmp_path).items() if "edge-1" not in name} == before


def test_another_host_brings_another_certificate(tmp_path: Path) -> None:
    Authority(tmp_path / "authority").certify(tmp_path, WANTED)
    # Named twice, it stands there once.
    hosts = [*WANTED.hosts, "new.example.org", "new.example.org"]
    made = Authority(tmp_path / "authority").certify(tmp_path, Wanted(hosts, ["site-0"], 365))
    assert [path.name for path in made] == ["certificate.pem"]
    found = x509.load_pem_x509_certificate(made[0].read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org", "new.example.org"]


def test_certificate_does_not_outlive_its_authority(tmp_path: Path) -> None:
    made = Authority(tmp_path / "authority").certify(tmp_path, Wanted(["a.example.org"], [], 100_000))
    ends = [
        x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
        for path in (made[0], tmp_path / "authority/certificate.pem")
    ]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("hosts", "clients", "message"),
    [
        ([], [], r"must have at least one --host"),
        (
            ["fed.example.org:7070"],
            [],
            r"Host 'fed.example.org:7070': must be a host name or an IP address without a port",
        ),
        (["a"], ["../x"], r"Client '\.\./x': its name must be"),
        (["a"], ["authority"], r"and not 'authority'"),
    ],
)
def test_name_that_cannot_stand_in_a_certificate_writes_nothing(
    tmp_path: Path, hosts: list[str], clients: list[str], message: str
) -> None:
    authority = Authority(tmp_path / "authority")
    before = files(tmp_path)
    with pytest.raises(CertificateError, match=message):
        authority.certify(tmp_path, Wanted(hosts, clients, 365))
    assert files(tmp_path) == before


def test_authority_that_ended_or_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Authority(tmp_path / "authority")
    at(monkeypatch, 3651)
    with pytest.raises(CertificateError, match="must be valid today, and it ended on "):
        Authority(tmp_path / "authority")
    (tmp_path / "authority/certificate.pem").write_text("hello")
    with pytest.raises(CertificateError, match="must be a certificate and its key in PEM, got other files"):
        Authority(tmp_path / "authority")
