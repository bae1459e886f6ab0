"""What liars send in place of a message of their own: entries made up or changed, keys that agree on nothing, bent bytes."""

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import strategies as st

from privacy.secagg.labels import hashed, sign
from privacy.secagg.members import advertised_parts
from privacy.secagg.party import Identity
from wire import federation_pb2 as pb
from wire.identity import client_id_of

LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    b"\xec" + b"\xff" * 30 + b"\x7f",
    b"\xed" + b"\xff" * 30 + b"\x7f",
    b"\xee" + b"\xff" * 30 + b"\x7f",
    bytes(31) + b"\x80",
]
"""Keys of X25519 with which every agreed secret is 0, some written in a way that is not the shortest."""


def changed(entry: pb.Advertise, **fields: bytes) -> pb.Advertise:
    """Return a copy of an entry with other fields, its signature as it was."""
    found = pb.Advertise()
    found.CopyFrom(entry)
    for name, value in fields.items():
        setattr(found, name, value)
    return found


def some_key() -> bytes:
    """Return a public key of X25519 whose secret is lost."""
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


def made_up(identity: Identity, session_id: bytes, **fields: bytes) -> pb.Advertise:
    """Return an entry that is signed by an identity of the coordinator's making, or of a client that conspires."""
    client_id = bytes.fromhex(client_id_of(identity.public_key))
    entry = pb.Advertise(
        session_id=session_id,
        client_id=client_id,
        public_key=identity.public_key,
        certificate=identity.certificate,
        encryption_key=some_key(),
        mask_key=some_key(),
        seed_commitment=hashed("commit-b", session_id, client_id, bytes(32)),
    )
    for name, value in fields.items():
        setattr(entry, name, value)
    entry.signature = sign(identity.key, "advertise", session_id, *advertised_parts(entry))
    return entry


@st.composite
def bent(draw: st.DrawFn, data: bytes) -> bytes:
    """Return the bytes of a message with some of them changed, left out, doubled or made up."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        put = draw(st.one_of(st.binary(max_size=8), st.just(data[start:end] * 2)))
        data = data[:start] + put + data[end:]
    return data
