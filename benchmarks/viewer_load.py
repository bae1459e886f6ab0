"""Those who look on, without their browsers: connections in a process of their own that takes as little of the machine as it can.

    python -m benchmarks.viewer_load watch HOST:PORT COUNT              follow events, until standard input ends
    python -m benchmarks.viewer_load ask HOST:PORT RATE SECONDS PATH... ask for paths in turn, however long the answers take

Each says "ready" once it is connected, and at its end what it saw, as JSON. Nothing of an answer is looked at but what is counted here.
"""

import collections
import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field

READ_SECONDS = 0.1
"""Time between two looks at the viewers' connections: they are read many at a time, as no browser would notice."""

CONNECT_SECONDS = 30.0
ANSWER_SECONDS = 10.0
"""Time that the last answers have. Those that have not come by then count as if they came then."""

FIRST_CONNECTIONS = 6
"""Connections that are open before anything is asked, as many as a browser has; more are opened when all of them are busy."""

BUFFER_BYTES = 1 << 18


def request(address: str, path: str) -> bytes:
    """Return a GET of the API, as a browser's fetch() would send it."""
    return f"GET /api/v1{path} HTTP/1.1\r\nHost: {address}\r\nAccept: application/json\r\n\r\n".encode()


def connected(address: str) -> socket.socket:
    """Return a connection."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), CONNECT_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def watch(address: str, count: int) -> dict[str, int]:
    """Follow events over some connections. Returns how many committed rounds the viewers were told of."""
    selector, seen = selectors.DefaultSelector(), {}
    for _ in range(count):
        connection = connected(address)
        connection.sendall(request(address, "/events/stream"))
        if b" 200 " not in (first := connection.recv(BUFFER_BYTES)):
            raise SystemExit(f"Viewer: must be let in, got {first[:200]!r}.")
        selector.register(connection, selectors.EVENT_READ)
        seen[connection.fileno()] = 0
    print("ready", flush=True)
    selector.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                return {"fewest": min(seen.values()), "most": max(seen.values())}
            assert isinstance(key.fileobj, socket.socket)
            if not (data := key.fileobj.recv(BUFFER_BYTES)):
                raise SystemExit("Viewer: must be told of events until it leaves, got an end.")
            # The coordinator sends whole events, and a look takes all that has come.
            seen[key.fd] += data.count(b"event: round_committed\n")
        time.sleep(READ_SECONDS)


@dataclass(slots=True)
class Asking:
    """A connection, and what it waits for: the path at a place, or nothing where that is below 0."""

    connection: socket.socket
    place: int = -1
    due: float = 0.0
    data: bytearray = field(default_factory=bytearray)

    def is_whole(self) -> bool:
        """Tell whether the answer is there."""
        head = self.data.find(b"\r\n\r\n")
        if head < 0:
            return False
        length = self.data.lower().find(b"\r\ncontent-length:", 0, head)
        end = self.data.find(b"\r\n", length + 2)
        return length >= 0 and len(self.data) >= head + 4 + int(self.data[length + 17 : end])


def ask(address: str, rate: float, seconds: float, paths: list[str]) -> dict[str, list[tuple[int, float]]]:
    """Ask for paths in turn at a steady rate.

    Returns:
        For each answer the path's place and the seconds since it should have been asked for; and the same of how late it was asked for.
    """
    requests = [request(address, path) for path in paths]
    selector = selectors.DefaultSelector()
    idle = collections.deque(Asking(connected(address)) for _ in range(FIRST_CONNECTIONS))
    for one in idle:
        selector.register(one.connection, selectors.EVENT_READ, one)
    print("ready", flush=True)
    answered: list[tuple[int, float]] = []
    late: list[tuple[int, float]] = []
    began, count, asked = time.perf_counter(), int(rate * seconds), 0
    while len(answered) < count:
        now = time.perf_counter()
        while asked < count and began + asked / rate <= now:
            if not idle:
                idle.append(Asking(connected(address)))
                selector.register(idle[0].connection, selectors.EVENT_READ, idle[0])
            one = idle.pop()
            one.place, one.due = asked % len(paths), began + asked / rate
            one.connection.sendall(requests[one.place])
            late.append((one.place, time.perf_counter() - one.due))
            asked += 1
        if now > began + seconds + ANSWER_SECONDS:
            waiting = [one for key in selector.get_map().values() if (one := key.data).place >= 0]
            answered += [(one.place, now - one.due) for one in waiting]
            break
        wait = began + asked / rate - time.perf_counter() if asked < count else 1.0
        for key, _ in selector.select(max(0.0, wait)):
            one = key.data
            if not (data := one.connection.recv(BUFFER_BYTES)):
                # The server has closed what was idle for long. As a browser does, ask again on a new one if that was too late.
                selector.unregister(one.connection)
                one.connection.close()
                if one.place < 0:
                    idle.remove(one)
                else:
                    one.connection = connected(address)
                    selector.register(one.connection, selectors.EVENT_READ, one)
                    one.data.clear()
                    one.connection.sendall(requests[one.place])
                continue
            one.data += data
            if not one.is_whole():
                continue
            if not one.data.startswith(b"HTTP/1.1 200 "):
                raise SystemExit(f"{paths[one.place]}: must be answered with 200, got {bytes(one.data[:200])!r}.")
            answered.append((one.place, time.perf_counter() - one.due))
            one.data.clear()
            one.place = -1
            idle.append(one)
    return {"answered": answered, "late": late}


def main() -> None:
    """Do what the command line says."""
    kind, address, *rest = sys.argv[1:]
    found = watch(address, int(rest[0])) if kind == "watch" else ask(address, float(rest[0]), float(rest[1]), rest[2:])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
