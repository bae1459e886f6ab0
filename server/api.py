"""The REST API: what the command line needs to submit, watch and steer runs. Errors are problem details (RFC 9457)."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from server.errors import ConflictError, LeaseTakenError, NotFoundError, StoreError
from server.gate import BodyLimit, Caller, TokenGate
from server.problems import Problem, problem
from server.pulse import Pulse
from server.records import ClientRecord, RoundRecord, RunRecord
from server.runs import Runs
from server.sessions import Sessions
from server.store import Store
from wire import federation_pb2 as pb
from wire.errors import ChoralError, SpecError
from wire.protocol import PROTOCOL_VERSION
from wire.spec import RunSpec, validate_spec

log = logging.getLogger(__name__)

HTTP_CODES: dict[type[ChoralError], int] = {
    NotFoundError: 404,
    ConflictError: 409,
    SpecError: 422,
    StoreError: 503,
    LeaseTakenError: 503,
}
"""The one table from errors to HTTP codes; what is not here is a 400."""


PIECE_ROUNDS = 8
"""Rounds that are read and written at a time."""


class RunView(RunRecord):
    """A run and what it is doing now."""

    status: str
    """One line; of a wait it says for what, how much is missing and how long it may still take."""


class ClientView(ClientRecord):
    """A client and what it is doing now."""

    task_id: str = ""
    phase: str = ""
    """Phase of its task, such as "training"; empty when idle."""
    fraction: float = 0.0
    """Done part of that phase, 0 to 1."""


class Health(BaseModel):
    """The coordinator's health."""

    status: str = "ok"
    protocol_version: int = PROTOCOL_VERSION
    uptime_seconds: float
    client_count: int
    """Clients with an open session."""
    longest_stall_seconds: float
    """Longest time that the event loop was busy with one thing."""
    rss_bytes: int
    peak_rss_bytes: int


def create_api(runs: Runs, sessions: Sessions, store: Store, pulse: Pulse, is_loopback: bool) -> FastAPI:
    """Build the application. On loopback nobody is asked for a token as long as there is none."""
    app = FastAPI(title="Choral", version="0.1.0", summary="Federated learning: runs, rounds and clients.")
    app.include_router(_health_routes(sessions, pulse), prefix="/api/v1")
    # For the description alone: the gate asks for the token, before a body is read.
    protected = [Depends(HTTPBearer(auto_error=False))]
    problems: dict[int | str, dict[str, Any]] = {
        code: {"model": Problem} for code in (400, 401, 403, 404, 409, 413, 422, 429, 503)
    }
    app.include_router(_run_routes(runs, store), prefix="/api/v1", dependencies=protected, responses=problems)
    app.include_router(_spec_routes(), prefix="/api/v1")
    app.include_router(_client_routes(sessions), prefix="/api/v1", dependencies=protected, responses=problems)
    app.include_router(_access_routes(), prefix="/api/v1", dependencies=protected, responses=problems)
    app.add_middleware(BodyLimit)
    app.add_middleware(TokenGate, store=store, is_loopback=is_loopback)
    app.add_exception_handler(ChoralError, _choral_problem)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _validation_problem)
    app.add_exception_handler(Exception, _unexpected_problem)
    return app


def _run_routes(runs: Runs, store: Store) -> APIRouter:
    router = APIRouter(tags=["runs"])

    def view(run: RunRecord) -> RunView:
        return _run_view(run, runs.status(run))

    @router.post("/runs", status_code=201, summary="Submit a run spec")
    async def submit(spec: dict[str, Any]) -> RunView:
        # A spec of a mebibyte takes long to look at, and longer to find fault with.
        return view(await runs.submit(await asyncio.to_thread(validate_spec, spec)))

    @router.get("/runs", summary="List runs, oldest first", response_model=list[RunView])
    async def list_runs() -> Response:
        found = [(run, runs.status(run)) for run in await store.runs()]
        return await _listed(_run_view(run, status) for run, status in found)

    @router.get("/runs/{run_id}", summary="Show a run")
    async def show(run_id: str) -> RunView:
        return view(await store.run(run_id))

    @router.get("/runs/{run_id}/rounds", summary="List a run's rounds, oldest first", response_model=list[RoundRecord])
    async def rounds(
        run_id: str, after: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> Response:
        await store.run(run_id)
        return await _streamed(_round_pages(store, run_id, after, limit))

    @router.get("/runs/{run_id}/model", summary="Download a run's model (safetensors)", response_class=FileResponse)
    async def model(run_id: str) -> FileResponse:
        run = await store.run(run_id)
        name = f"{run.spec.name}-{run.round_number}.safetensors"
        return FileResponse(runs.model_path(run), media_type="application/octet-stream", filename=name)

    @router.post("/runs/{run_id}/pause", summary="Pause a run at its last committed round")
    async def pause(run_id: str) -> RunView:
        return view(await runs.pause(run_id))

    @router.post("/runs/{run_id}/resume", summary="Queue a paused run again")
    async def resume(run_id: str) -> RunView:
        return view(await runs.resume(run_id))

    @router.post("/runs/{run_id}/stop", summary="End a run for good")
    async def stop(run_id: str) -> RunView:
        return view(await runs.stop(run_id))

    return router


def _spec_routes() -> APIRouter:
    router = APIRouter(tags=["specs"])

    @router.get("/spec/schema", summary="JSON Schema of a run spec")
    async def schema() -> dict[str, Any]:
        return RunSpec.model_json_schema()

    return router


def _client_routes(sessions: Sessions) -> APIRouter:
    router = APIRouter(tags=["clients"])

    def progress_of(client: ClientRecord) -> pb.Progress | None:
        session = sessions.by_client(client.client_id)
        return session.progress if session else None

    @router.get("/clients", summary="List every client that ever joined, by identity", response_model=list[ClientView])
    async def clients() -> Response:
        found = [(client, progress_of(client)) for client in sessions.clients()]
        return await _listed(_client_view(client, progress) for client, progress in found)

    return router


async def _listed(records: Iterable[BaseModel]) -> Response:
    """Return records as a JSON list, written in a thread."""
    content = await asyncio.to_thread(lambda: b"[%s]" % _joined(records))
    return Response(content, media_type="application/json")


async def _round_pages(store: Store, run_id: str, after: int, limit: int) -> AsyncGenerator[bytes, None]:
    """Yield a JSON list of rounds in pieces: as a whole it may hold a million contributions.

    As objects they would take gigabytes, and each look of the garbage collector at them would hold up the event loop.
    """
    start = b"["
    while limit > 0 and (found := await store.rounds(run_id, after, min(limit, PIECE_ROUNDS))):
        yield start + await asyncio.to_thread(_joined, found)
        start, after, limit = b",", found[-1].number, limit - len(found)
    yield b"[]" if start == b"[" else b"]"


async def _streamed(pieces: AsyncGenerator[bytes, None]) -> Response:
    """Return pieces of JSON as they come. The first is waited for: what goes wrong until then is still problem details."""
    first = await anext(pieces)

    async def body() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    return StreamingResponse(body(), media_type="application/json")


def _joined(records: Iterable[BaseModel]) -> bytes:
    # One by one: the interpreter turns to the event loop between two, and not while it writes one.
    return b",".join(map(_as_json, records))


def _as_json(record: BaseModel) -> bytes:
    """Return a record as JSON, in which a number that is infinite or none is null."""
    text = record.model_dump_json()
    if "NaN" in text or "Infinity" in text:
        return to_json(record.model_dump(mode="json"), inf_nan_mode="null")
    return text.encode()


def _run_view(run: RunRecord, status: str) -> RunView:
    return RunView(**run.model_dump(exclude={"spec"}), spec=run.spec, status=status)


def _client_view(client: ClientRecord, progress: pb.Progress | None) -> ClientView:
    if progress is None:
        return ClientView(**client.model_dump())
    phase = pb.Phase.Name(progress.phase).removeprefix("PHASE_").lower()
    fraction = min(1.0, max(0.0, progress.fraction))
    return ClientView(**client.model_dump(), task_id=progress.task_id, phase=phase, fraction=fraction)


def _access_routes() -> APIRouter:
    router = APIRouter(tags=["access"])

    @router.get("/me", summary="Show who asks: the name and role of the token")
    async def me(request: Request) -> Caller:
        caller: Caller = request.state.caller
        return caller

    return router


def _health_routes(sessions: Sessions, pulse: Pulse) -> APIRouter:
    router = APIRouter(tags=["health"])
    started = time.monotonic()

    @router.get("/health", summary="Show the coordinator's health")
    async def health() -> Health:
        return Health(
            uptime_seconds=time.monotonic() - started,
            client_count=sum(member.is_present for member in sessions.members()),
            longest_stall_seconds=pulse.longest_stall_seconds,
            rss_bytes=pulse.rss_bytes,
            peak_rss_bytes=pulse.peak_rss_bytes,
        )

    return router


async def _choral_problem(request: Request, error: Exception) -> Response:
    status = next((HTTP_CODES[kind] for kind in type(error).__mro__ if kind in HTTP_CODES), 400)
    return problem(status, type(error).__name__.removesuffix("Error"), str(error))


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, "HTTP", error.detail, dict(error.headers or {}))


async def _validation_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors())
    return problem(422, "Request", f"Request: {found}.")


async def _unexpected_problem(request: Request, error: Exception) -> Response:
    log.error("%s %s: unexpected error", request.method, request.url.path, exc_info=error)
    return problem(500, "Unexpected", f"Unexpected {type(error).__name__}. The coordinator's log has the details.")
