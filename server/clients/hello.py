"""What a client says of itself when it joins. Nothing of it is trusted but the key, which its signature has proven."""

import time

from server.records import ClientRecord
from wire import federation_pb2 as pb
from wire.identity import client_id_of


def client_of(hello: pb.Hello) -> ClientRecord:
    """Return the record of a client that joins now with a hello that was checked. Its text for people is cut and made printable."""
    now = time.time()
    return ClientRecord(
        client_id=client_id_of(hello.public_key),
        name=hello.name,
        device=printable(hello.capabilities.device, 64),
        learners=[printable(name, 64) for name in hello.capabilities.learners[:1000]],
        data_kind=printable(hello.data.kind, 64),
        example_count=hello.data.example_count,
        held_out_count=hello.data.held_out_count,
        release=printable(hello.release, 64),
        is_connected=True,
        first_seen_time=now,
        last_seen_time=now,
    )


def printable(text: str, length: int) -> str:
    """Return foreign text, cut, in one line, and without what would move the cursor of a terminal that shows it."""
    line = " ".join(text[: 2 * length].split())[:length]
    return "".join(character if character.isprintable() else "?" for character in line)
