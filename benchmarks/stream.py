"""The floor of a round: the time that gRPC alone needs to carry a round's bytes.

One `grpc.aio` server and several clients, each a process of its own, move as many bytes down and up as a round does, in
slices of the same size, with the same messages and the same channel options: from a buffer on one side into a buffer on
the other. Nothing is hashed, checked, stored or computed. What a coordinator needs beyond this is its own doing.

The processes are as Python makes them. With `--keep-slices` they keep freed slices as Choral's do, which is faster.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from wire.federation_pb2 import DownloadRequest, DownloadResponse, Heartbeat, Slice, UploadRequest, UploadResponse
from wire.memory import keep_freed_slices
from wire.protocol import CLIENT_OPTIONS, SERVER_OPTIONS
from wire.slices import cut

LIMIT_SECONDS = 600.0
"""Time that one measurement may take, over all of its rounds, before it is given up."""

_SERVICE = "choral.benchmarks.Stream"
_REPOSITORY = Path(__file__).resolve().parents[1]
_Context = grpc.aio.ServicerContext[Any, Any]


def measure(client_count: int, byte_count: int, rounds: int, keeps_slices: bool = False) -> float:
    """Time rounds in which every client downloads and then uploads the same number of bytes, all clients at once.

    A round runs from the moment the server lets all clients go until the last upload has ended. One round more, the
    first, warms the connections up and is not counted. Runs its own event loop: not to be called from a coroutine.

    Args:
        client_count: Client processes, 1 or more.
        byte_count: Bytes that each client downloads and uploads in a round, 1 or more.
        rounds: Rounds that are counted, 1 or more.
        keeps_slices: Whether the processes keep freed slices.

    Returns:
        Median of the rounds, in seconds.

    Raises:
        ValueError: An argument is below 1. Nothing was started.
        RuntimeError: A process failed, and its error stands on stderr. All processes have ended.
        TimeoutError: `LIMIT_SECONDS` have passed. All processes have ended.
    """
    for name, value in {"client_count": client_count, "byte_count": byte_count, "rounds": rounds}.items():
        if value < 1:
            raise ValueError(f"Stream: {name} must be at least 1, got {value}.")
    return statistics.median(asyncio.run(_time_rounds(client_count, byte_count, rounds, keeps_slices)))


async def _time_rounds(client_count: int, byte_count: int, rounds: int, keeps_slices: bool) -> list[float]:
    processes: list[Process] = []
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            printed = await _start(processes, "serve", client_count, byte_count, rounds, int(keeps_slices))
            port = int(await printed.readline() or 0)
            for _ in range(client_count if port else 0):
                await _start(processes, "drive", port, byte_count, rounds, int(keeps_slices))
            async with asyncio.TaskGroup() as group:
                for process in processes:
                    group.create_task(_end_well(process))
            seconds: list[float] = json.loads(await printed.read())
            return seconds
    except TimeoutError:
        raise TimeoutError(f"Stream: all rounds must end within {LIMIT_SECONDS:g} s, got no end.") from None
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    finally:
        # The server goes last, so that no client complains of its end.
        for process in reversed(processes):
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _start(processes: list[Process], role: str, *arguments: int) -> asyncio.StreamReader:
    """Start one more process and return what it prints."""
    command = [sys.executable, "-m", "benchmarks.stream", role, *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(*command, cwd=_REPOSITORY, stdout=asyncio.subprocess.PIPE)
    processes.append(process)
    assert process.stdout
    return process.stdout


async def _end_well(process: Process) -> None:
    if (status := await process.wait()) != 0:
        raise RuntimeError(f"Stream: process {process.pid} must exit with 0, got {status}. Its error stands on stderr.")


class _Server:
    """What the server answers, and the times of its rounds."""

    def __init__(self, client_count: int, byte_count: int) -> None:
        self._gate = asyncio.Barrier(client_count + 1)
        self._uploads = asyncio.Semaphore(0)
        self._client_count = client_count
        self._payload = memoryview(os.urandom(byte_count))
        self._buffers = [memoryview(bytearray(byte_count)) for _ in range(client_count)]

    async def time_rounds(self, rounds: int) -> list[float]:
        """Let all clients go and wait for the last upload, `rounds` times; return the seconds of each."""
        seconds = []
        for _ in range(rounds):
            await self._gate.wait()
            began = time.perf_counter()
            for _ in range(self._client_count):
                await self._uploads.acquire()
            seconds.append(time.perf_counter() - began)
        return seconds

    async def wait(self, request: Heartbeat, context: _Context) -> Heartbeat:
        """Answer when every client has asked."""
        await self._gate.wait()
        return request

    async def download(self, request: DownloadRequest, context: _Context) -> None:
        """Send one client its bytes."""
        for part in cut(self._payload):
            await context.write(DownloadResponse(data=bytes(part.data)))

    async def upload(self, requests: AsyncIterator[UploadRequest], context: _Context) -> UploadResponse:
        """Take one client's bytes into a buffer."""
        buffer = self._buffers.pop()
        end = 0
        async for request in requests:
            start, end = end, end + len(request.slice.data)
            buffer[start:end] = request.slice.data
        self._buffers.append(buffer)
        if end != len(buffer):
            await context.abort(grpc.StatusCode.DATA_LOSS, f"bytes must be {len(buffer)}, got {end}")
        self._uploads.release()
        return UploadResponse()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Name the three calls and their messages."""
        calls: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Wait": grpc.unary_unary_rpc_method_handler(self.wait, Heartbeat.FromString, Heartbeat.SerializeToString),
            "Download": grpc.unary_stream_rpc_method_handler(
                self.download, DownloadRequest.FromString, DownloadResponse.SerializeToString
            ),
            "Upload": grpc.stream_unary_rpc_method_handler(
                self.upload, UploadRequest.FromString, UploadResponse.SerializeToString
            ),
        }
        return grpc.method_handlers_generic_handler(_SERVICE, calls)


async def serve(client_count: int, byte_count: int, rounds: int) -> None:
    """Print the port, serve until all rounds are over, and print their seconds as JSON, without the first round."""
    service = _Server(client_count, byte_count)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((service.handlers(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    async with asyncio.timeout(LIMIT_SECONDS):
        _, *seconds = await service.time_rounds(rounds + 1)
    await server.stop(grace=5.0)
    print(json.dumps(seconds))


async def drive(port: int, byte_count: int, rounds: int) -> None:
    """Take part in all rounds as one client of the server at `port`."""
    buffer = memoryview(bytearray(byte_count))
    async with (
        asyncio.timeout(LIMIT_SECONDS),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CLIENT_OPTIONS) as channel,
    ):
        for _ in range(rounds + 1):
            await _take_part(channel, buffer)


async def _take_part(channel: grpc.aio.Channel, buffer: memoryview) -> None:
    await channel.unary_unary(f"/{_SERVICE}/Wait", Heartbeat.SerializeToString, Heartbeat.FromString)(
        Heartbeat(), wait_for_ready=True
    )

    down = channel.unary_stream(
        f"/{_SERVICE}/Download", DownloadRequest.SerializeToString, DownloadResponse.FromString
    )(DownloadRequest())
    end = 0
    async for response in down:
        start, end = end, end + len(response.data)
        buffer[start:end] = response.data
    if end != len(buffer):
        raise RuntimeError(f"Stream: a download must have {len(buffer)} bytes, got {end}.")

    up = channel.stream_unary(f"/{_SERVICE}/Upload", UploadRequest.SerializeToString, UploadResponse.FromString)()
    for part in cut(buffer):
        await up.write(UploadRequest(slice=Slice(offset=part.offset, data=bytes(part.data))))
    await up.done_writing()
    await up


def main() -> None:
    """Read the command line: a measurement, or one process of it."""
    if sys.argv[1:2] in (["serve"], ["drive"]):
        role = serve if sys.argv[1] == "serve" else drive
        first, byte_count, rounds, keeps_slices = map(int, sys.argv[2:])
        if keeps_slices:
            keep_freed_slices()
        asyncio.run(role(first, byte_count, rounds))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description="Time a bare gRPC stream.")
    parser.add_argument("--clients", type=int, default=4, help="client processes")
    parser.add_argument("--bytes", type=int, default=100_000_000, help="bytes down and up, per client and round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that are counted")
    parser.add_argument("--keep-slices", action="store_true", help="keep freed slices for the next ones")
    arguments = parser.parse_args()
    seconds = measure(arguments.clients, arguments.bytes, arguments.rounds, arguments.keep_slices)
    print(f"{arguments.clients} clients, {arguments.bytes:,} bytes down and up: {seconds:.3f} s a round")


if __name__ == "__main__":
    main()
