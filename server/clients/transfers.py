"""Models going out and contributions coming in, in slices.

An upload gets one of a few places, each with a buffer of its own, and is handed on whole or not at all; so memory does not grow with the
cohort (law L4). When its connection breaks, the buffer is parked: the client goes on where it stopped, unless another needs the place
first.
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from enum import Enum, auto

from server.errors import ContributionRefused
from server.inbox import Inbox
from server.model import Model
from server.monitoring.observer import DEAF, Observer
from wire import federation_pb2 as pb
from wire.slices import Assembly
from wire.tensors import vector_bytes

Key = tuple[str, str, int, bytes, int]
"""Client, run, round, SHA-256 and length of a contribution: what makes a later upload the same one."""


class Places:
    """Buffers for uploads, at most `count` of them. First come, first served."""

    def __init__(self, count: int) -> None:
        self._free_count = count
        self._parked: OrderedDict[Key, Assembly] = OrderedDict()
        self._waiting: deque[asyncio.Future[None]] = deque()

    @contextlib.asynccontextmanager
    async def take(self, key: Key, sha256: bytes, new_buffer: Callable[[], memoryview]) -> AsyncIterator[Assembly]:
        """Wait for a place and lend its buffer, with what an earlier try left in it. Call `park` before leaving to keep the buffer."""
        assembly = self._parked.pop(key, None)
        if assembly is None:
            await self._wait()
        try:
            assembly = assembly or Assembly(new_buffer(), sha256)
            yield assembly
        finally:
            if assembly is None or self._parked.get(key) is not assembly:
                self._free()

    def park(self, key: Key, assembly: Assembly) -> None:
        """Keep a buffer for the client's next try; the place counts as taken until somebody else needs it."""
        if self._waiting or assembly.received_bytes == 0 or key in self._parked:
            return
        self._parked[key] = assembly

    def clear(self, run_id: str) -> None:
        """Drop what is parked for a run: its round has closed."""
        for key in [key for key in self._parked if key[1] == run_id]:
            del self._parked[key]
            self._free()

    async def _wait(self) -> None:
        if self._free_count == 0 and self._parked:
            self._parked.popitem(last=False)
            self._free_count += 1
        if self._free_count > 0 and not self._waiting:
            self._free_count -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._free()
            # `_free` may have passed over the cancelled turn already.
            with contextlib.suppress(ValueError):
                self._waiting.remove(turn)
            raise

    def _free(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free_count += 1


class Interruption(Enum):
    """Why an upload ended before its time."""

    SLOW = auto()
    CLOSED = auto()
    SUPERSEDED = auto()


class Reception:
    """The transfer of one contribution, with a time limit that moves on as bytes arrive."""

    def __init__(self, inbox: Inbox, limit: asyncio.Timeout) -> None:
        self.inbox = inbox
        self.ended = asyncio.Event()
        self._interruption: Interruption | None = None
        self._limit = limit
        self._is_finished = False

    @property
    def interruption(self) -> Interruption:
        """Why it ended before its time; nobody said so: it was too slow."""
        return self._interruption or Interruption.SLOW

    @property
    def is_resumable(self) -> bool:
        """Whether a later upload may go on where this one stops: its connection broke, no rule of ours ended it."""
        if self._interruption is None:
            return not self._limit.expired()
        return self._interruption is Interruption.SUPERSEDED

    def allow(self, seconds: float) -> None:
        """Let the transfer go on for so long from now."""
        if not self._is_finished and self._interruption is None:
            self._limit.reschedule(asyncio.get_running_loop().time() + seconds)

    def finish(self) -> None:
        """Take the limit away: every byte has arrived."""
        self._is_finished = True
        if self._interruption is None:
            self._limit.reschedule(None)

    def interrupt(self, why: Interruption) -> None:
        """End the transfer now, unless it is finished or ending already."""
        if not self._is_finished and self._interruption is None and not self._limit.expired():
            self._interruption = why
            self._limit.reschedule(asyncio.get_running_loop().time())


class Transfers:
    """What can be downloaded and uploaded at the moment."""

    def __init__(self, upload_places: int, download_places: int, observer: Observer = DEAF) -> None:
        self.observer = observer
        self.places = Places(upload_places)
        self.download_places = asyncio.Semaphore(download_places)
        self._models: dict[bytes, memoryview] = {}
        self._model_uses: Counter[bytes] = Counter()
        self._inboxes: dict[str, Inbox] = {}
        self._uploads: dict[str, Reception] = {}

    @contextlib.contextmanager
    def publish(self, model: Model) -> Iterator[None]:
        """Offer a model for download while the context is open."""
        self._models[model.sha256] = vector_bytes(model.vector)
        self._model_uses[model.sha256] += 1
        try:
            yield
        finally:
            self._model_uses[model.sha256] -= 1
            if not self._model_uses[model.sha256]:
                del self._models[model.sha256], self._model_uses[model.sha256]

    def model(self, sha256: bytes) -> memoryview | None:
        """Return the bytes of a model that is on offer."""
        return self._models.get(sha256)

    @contextlib.contextmanager
    def receive(self, inbox: Inbox) -> Iterator[None]:
        """Take uploads for an inbox while the context is open. Uploads under way when it closes end at once."""
        run_id = inbox.binding.run_id
        self._inboxes[run_id] = inbox
        try:
            yield
        finally:
            del self._inboxes[run_id]
            for upload in list(self._uploads.values()):
                if upload.inbox is inbox:
                    upload.interrupt(Interruption.CLOSED)
            self.places.clear(run_id)

    def is_open(self, inbox: Inbox) -> bool:
        """Tell whether uploads are taken for an inbox."""
        return self._inboxes.get(inbox.binding.run_id) is inbox

    def inbox_for(self, client_id: str, run_id: str) -> Inbox | None:
        """Return the inbox that has to judge a client's upload: that of the run it names, else the one that asked it."""
        named = self._inboxes.get(run_id)
        if named is not None:
            return named
        return next((inbox for inbox in self._inboxes.values() if client_id in inbox.invited), None)

    @contextlib.asynccontextmanager
    async def upload(self, client_id: str, inbox: Inbox) -> AsyncIterator["Reception"]:
        """Bound the transfer of one contribution: the context raises `TimeoutError` when the upload is interrupted.

        The end of the round does that, and so does a newer upload of the same client, whose older connection has then broken without a
        sign: the newer one begins when the older has ended and left what it had. Once the transfer is `finished`, nothing interrupts the
        rest.
        """
        while (older := self._uploads.get(client_id)) is not None:
            older.interrupt(Interruption.SUPERSEDED)
            await older.ended.wait()
        async with asyncio.timeout(None) as limit:
            upload = self._uploads[client_id] = Reception(inbox, limit)
            try:
                yield upload
            finally:
                del self._uploads[client_id]
                upload.ended.set()


def check_header(header: pb.UploadHeader, inbox: Inbox) -> None:
    """Check that a header announces what an inbox takes. Raises `ContributionRefused`."""
    if header.encoding != inbox.encoding:
        expected = pb.VectorEncoding.Name(inbox.encoding).removeprefix("VECTOR_ENCODING_")
        raise ContributionRefused(pb.REFUSAL_REASON_MALFORMED, f"encoding must be {expected}, got {header.encoding}")
    most = inbox.vector_bytes
    if not (most if inbox.is_exact else 1) <= header.total_bytes <= most:
        rule = f"{most}" if inbox.is_exact else f"1 to {most}, for which this coordinator has room"
        raise ContributionRefused(pb.REFUSAL_REASON_WRONG_SIZE, f"total_bytes must be {rule}, got {header.total_bytes}")
    if header.encoding == pb.VECTOR_ENCODING_MASKED and (header.weight or header.example_count or header.metrics):
        raise ContributionRefused(
            pb.REFUSAL_REASON_MALFORMED,
            "weight, examples and metrics must travel inside a masked vector, got them beside it",
        )
    if len(header.sha256) != 32:
        raise ContributionRefused(pb.REFUSAL_REASON_MALFORMED, f"sha256 must be 32 bytes, got {len(header.sha256)}")
