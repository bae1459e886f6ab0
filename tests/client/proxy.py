"""A proxy as an ingress is: it speaks HTTP/2 and answers with a status of its own until the coordinator behind it is ready.

Source: Thomson and Benfield, "HTTP/2", RFC 9113, sections 3.4 and 4.1, https://www.rfc-editor.org/rfc/rfc9113; Peon and Ruellan,
"HPACK", RFC 7541, section 6.2.2, https://www.rfc-editor.org/rfc/rfc7541
"""

import asyncio
import contextlib

from tests.client.relay import Relay, listening

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, SETTINGS = 1, 4
END_STREAM_AND_HEADERS = 5


class Proxy(Relay):
    """Answers every call with one HTTP status while it is not open.

    Attributes:
        answer_count: Answers of its own so far.
    """

    def __init__(self, target: str, status: str) -> None:
        super().__init__(target)
        self.is_open = False
        self.answer_count = 0
        # A literal header without indexing, whose name is entry 8 of the static table, :status.
        self._headers = b"\x08" + bytes([len(status)]) + status.encode()

    async def turn_away(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the calls of a connection until its client ends it."""
        self.writers.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._answer(reader, writer)
        self.writers.discard(writer)
        await super().turn_away(reader, writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(PREFACE))
        writer.write(_frame(SETTINGS, 0, 0, b""))
        while True:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == HEADERS:
                stream = int.from_bytes(head[5:], "big")
                writer.write(_frame(HEADERS, END_STREAM_AND_HEADERS, stream, self._headers))
                self.answer_count += 1


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def proxying(target: str, status: str) -> contextlib.AbstractAsyncContextManager[Proxy]:
    """Stand before `target` while the context is open."""
    return listening(Proxy(target, status))
