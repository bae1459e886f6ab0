"""Works on one task at a time: fetch the model, train or evaluate off the event loop, deliver. Outlives sessions.

A connection that breaks does not stop a task: training goes on. A finished contribution is kept until the next one, and is brought on a
session on which the coordinator has asked for it: it asks again on each new session for as long as its round waits for this client, after a
restart too, and gets it without training twice. What it no longer asks for has entered the sum before, or its round is over.
"""

import asyncio
import contextlib
import hashlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from client.cache import ModelCache
from client.connection import Connection
from client.data import LocalData
from client.errors import ConnectionLostError, PolicyError, RoundClosedError
from client.link import Link, raise_if_cancelled
from client.masking import Brought, Conversation, Line, MaskingSite
from client.policy import Policy
from client.training import Assignment, Result, Trainer, first_model
from models import DataError, TrainingStopped
from privacy.errors import AbortCode, SessionAbortedError
from wire import federation_pb2 as pb
from wire.errors import ChoralError, LayoutError, TransferError
from wire.logs import about
from wire.spec import RunSpec, parse_spec
from wire.tensors import Layout, Vector, vector_bytes, vector_from_bytes

log = logging.getLogger(__name__)

Value = TypeVar("Value")
PROGRESS_SECONDS = 1.0

VERDICT_SECONDS = 2.0
"""Time for the verdict on a contribution that is sent and whose task is withdrawn: the next task may overtake it on its way."""

_NOT_OPEN = (pb.REFUSAL_REASON_TOO_LATE, pb.REFUSAL_REASON_WRONG_RUN, pb.REFUSAL_REASON_WRONG_ROUND)
"""Verdicts that settle nothing: the coordinator has no round open for what was brought."""


@dataclass(frozen=True, slots=True)
class Site:
    """What a client works with: its data, on its device, under its policy."""

    data: LocalData = field(repr=False)
    device: torch.device
    policy: Policy
    cache: ModelCache
    masking: MaskingSite | None = None


class Worker:
    """Takes tasks from the coordinator. Used from the event loop alone; learners run in one thread of its own."""

    def __init__(self, site: Site, link: Link) -> None:
        self._site = site
        self._link = link
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="training")
        self._job: asyncio.Task[None] | None = None
        self._task = pb.Task()
        self._is_asked_again = False
        self._asked_on: Connection | None = None
        self._trainer: Trainer | None = None
        self._conversation: Conversation | None = None
        self._is_delivered = False
        self._kept: tuple[tuple[object, ...], Result, bytes] | None = None
        self._phase = pb.PHASE_UNSPECIFIED
        self._fraction = 0.0

    def take(self, task: pb.Task, client_id: str) -> None:
        """Begin a task. One that is under way goes on if it is the same, and ends if it is another."""
        self._asked_on = self._link.connection
        if self._job is not None and not self._job.done() and not self._job.cancelling():
            if task == self._task:
                self._is_asked_again = True
                if self._conversation is not None:
                    self._conversation.hear(None)
                return
            self._job.cancel()
        self._task, self._is_delivered = task, False
        with about(run_id=task.run_id, round_number=task.round):
            self._job = asyncio.create_task(self._work(task, client_id, self._job), name=task.task_id)

    def hear(self, message: pb.JoinResponse) -> None:
        """Take the coordinator's next message of a session of secure aggregation."""
        self._asked_on = self._link.connection
        session_id: bytes = getattr(message, message.WhichOneof("message") or "").session_id
        if self._conversation is not None and self._conversation.session_id == session_id:
            self._conversation.hear(message)
            return
        # Its secrets were this client's before it was started again.
        lost = pb.TaskFailed(task_id=session_id.hex(), detail="The client was started again since the session began.")
        if self._asked_on is not None:
            self._asked_on.send_soon(pb.JoinRequest(task_failed=lost))

    def cancel(self, task_id: str, reason: str) -> None:
        """Stop working on a task."""
        if self._job is not None and not self._job.done() and self._task.task_id == task_id:
            with about(run_id=self._task.run_id, round_number=self._task.round):
                log.info("task %s: %s, %s", task_id, "over" if self._is_delivered else "withdrawn", reason)
            self._job.cancel()

    async def close(self) -> None:
        """Stop whatever is under way."""
        if self._job is not None:
            self._job.cancel()
            await asyncio.wait([self._job])
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self, task: pb.Task, client_id: str, before: "asyncio.Task[None] | None") -> None:
        """Work on a task until it is settled, once the work before it has come to its end.

        A coordinator that was started again may be reached before its round is open, and then takes nothing. It asks again once the round
        is open, perhaps before its answer to the first attempt has arrived here.
        """
        if before is not None:
            try:
                await asyncio.wait([before])
            finally:
                before.cancel()
            # Its error, if it has one, holds on to its vectors.
            del before
        job = asyncio.current_task()
        assert job is not None
        while not await self._is_settled(task, client_id) and self._is_asked_again and not job.cancelling():
            pass

    async def _is_settled(self, task: pb.Task, client_id: str) -> bool:
        """Attempt a task, and tell whether its result or a refusal was delivered; if not, it waits to be asked for again."""
        self._is_asked_again = False
        failure: tuple[pb.RefusalReason, str]
        try:
            async with self._progress(task.task_id):
                await self._attempt(task, client_id)
            return True
        except RoundClosedError as error:
            log.warning("task %s: put aside, %s", task.task_id, error)
            return False
        except SessionAbortedError as error:
            # Neither is this client's fault: it is welcome in the round's next session.
            is_dropped = error.code in (AbortCode.LOST, AbortCode.FALSE_PACKET)
            reason = pb.REFUSAL_REASON_UNSPECIFIED if is_dropped else pb.REFUSAL_REASON_CLIENT_POLICY
            failure = reason, str(error)
        except PolicyError as error:
            failure = pb.REFUSAL_REASON_CLIENT_POLICY, str(error)
        except DataError as error:
            log.warning("task %s: %s", task.task_id, error)
            rule = error.rule or "Local data must suit the learner"
            failure = pb.REFUSAL_REASON_CLIENT_DATA, f"{rule}. The client's log says what it has."
        except ChoralError as error:
            failure = pb.REFUSAL_REASON_CLIENT_ERROR, str(error)
        except Exception as error:
            log.exception("task %s: unexpected error", task.task_id)
            # What a library says of an error may quote the data.
            detail = f"Unexpected {type(error).__name__}. The client's log has the details."
            failure = pb.REFUSAL_REASON_CLIENT_ERROR, detail
        log.warning("task %s: refused. %s", task.task_id, failure[1])
        refusal = pb.TaskFailed(task_id=task.task_id, reason=failure[0], detail=failure[1])
        await self._send(pb.JoinRequest(task_failed=refusal))
        return True

    async def _attempt(self, task: pb.Task, client_id: str) -> None:
        spec = parse_spec(task.spec_json, "The coordinator's run spec")
        self._site.policy.check_run(spec)
        if spec.secure is not None:
            self._masking().party(self._site.policy.floor)
        if task.HasField("first_model"):
            await self._draw(task, spec)
            return
        self._site.policy.check(spec, task.cohort_size)
        trainer = await self._trainer_for(spec, task.base)
        if task.HasField("train"):
            await self._train(task, spec, trainer, client_id)
        elif task.HasField("evaluate"):
            vector = await self._model(task.base)
            self._enter(pb.PHASE_EVALUATING)
            evaluation = await self._in_thread(lambda: trainer.evaluate(vector, self._site.data))
            if spec.secure is not None or task.HasField("offer"):
                count = evaluation.example_count
                brought = Brought(min(count, spec.weight_cap), count, evaluation.metrics)
                await self._deliver_masked(task, spec, brought)
                return
            result = pb.EvaluateResult(
                task_id=task.task_id, example_count=evaluation.example_count, metrics=dict(evaluation.metrics)
            )
            await self._send(pb.JoinRequest(evaluate_result=result))
        else:
            raise ChoralError(
                "Task: kind must be one that this release knows, got another one. Install the coordinator's release."
            )

    async def _draw(self, task: pb.Task, spec: RunSpec) -> None:
        """Draw the run's first model and bring it."""
        data = await self._in_thread(lambda: first_model(spec))
        header = pb.UploadHeader(
            task_id=task.task_id,
            run_id=task.run_id,
            encoding=pb.VECTOR_ENCODING_SAFETENSORS,
            total_bytes=len(data),
            sha256=hashlib.sha256(data).digest(),
        )
        if await self._is_taken(task, header, memoryview(data)):
            log.info("task %s: delivered, the first model", task.task_id)

    async def _train(self, task: pb.Task, spec: RunSpec, trainer: Trainer, client_id: str) -> None:
        key = (task.run_id, task.round, task.base.sha256, task.spec_json)
        if self._kept is None or self._kept[0] != key:
            vector = await self._model(task.base)
            self._kept = None
            self._enter(pb.PHASE_TRAINING)
            assignment = Assignment(spec, task.round, client_id, vector)
            stop = threading.Event()

            def report(fraction: float) -> None:
                self._fraction = fraction
                if stop.is_set():
                    raise TrainingStopped("The task was withdrawn.")

            def train() -> tuple[Result, bytes]:
                result = trainer.train(assignment, self._site.data, report)
                return result, hashlib.sha256(vector_bytes(result.vector)).digest()

            try:
                self._kept = (key, *await self._in_thread(train))
            except asyncio.CancelledError:
                stop.set()
                raise
        _, result, sha256 = self._kept
        if spec.secure is not None or task.HasField("offer"):
            metrics = {name.removeprefix("train_"): value for name, value in result.metrics.items()}
            brought = Brought(result.weight, result.example_count, metrics, result.vector)
            await self._deliver_masked(task, spec, brought)
            return
        await self._deliver(task, result, sha256, trainer.contribution_layout)

    async def _deliver(self, task: pb.Task, result: Result, sha256: bytes, layout: Layout) -> None:
        data = vector_bytes(result.vector)
        header = pb.UploadHeader(
            task_id=task.task_id,
            run_id=task.run_id,
            round=task.round,
            base_sha256=task.base.sha256,
            layout_sha256=layout.sha256,
            encoding=pb.VECTOR_ENCODING_FLOAT32,
            total_bytes=len(data),
            sha256=sha256,
            weight=result.weight,
            example_count=result.example_count,
            metrics=dict(result.metrics),
            train_seconds=result.train_seconds,
        )
        if await self._is_taken(task, header, data):
            log.info(
                "task %s: delivered, %d examples in %.2f s", task.task_id, result.example_count, result.train_seconds
            )

    async def _is_taken(self, task: pb.Task, header: pb.UploadHeader, data: memoryview) -> bool:
        """Upload what a task asks for, and tell whether it was taken. Raises `RoundClosedError` when nobody waits for it."""
        self._enter(pb.PHASE_WAITING)
        verdict = await self._with_connection(lambda connection: self._upload(connection, header, data))
        if verdict.reason == pb.REFUSAL_REASON_UNSPECIFIED:
            return True
        if verdict.reason in _NOT_OPEN:
            raise RoundClosedError(_sentence(verdict))
        log.warning("task %s: not taken, %s", task.task_id, _sentence(verdict))
        return False

    async def _deliver_masked(self, task: pb.Task, spec: RunSpec, brought: Brought) -> None:
        """Take part in the task's session of secure aggregation."""
        masking, floor = self._masking(), self._site.policy.floor
        self._enter(pb.PHASE_WAITING)
        line = Line(self._send, self._upload_masked, self._in_thread)
        try:
            self._conversation = await self._in_thread(lambda: masking.begin(task, spec, brought, floor))
            await self._conversation.hold(line)
            self._is_delivered = True
            log.info("task %s: delivered, masked", task.task_id)
            await self._conversation.linger(line)
        finally:
            self._conversation = None

    def _masking(self) -> MaskingSite:
        if self._site.masking is None:
            raise PolicyError("Secure aggregation: a client must have a roster, this one has none. Join with --roster.")
        return self._site.masking

    async def _upload_masked(self, header: pb.UploadHeader, data: memoryview) -> None:
        """Upload a masked vector. One that nobody waits for on this connection is asked for again, or is in the sum already."""
        with contextlib.suppress(RoundClosedError):
            verdict = await self._with_connection(lambda connection: self._upload(connection, header, data))
            if verdict.reason != pb.REFUSAL_REASON_UNSPECIFIED:
                log.warning("task %s: not taken, %s", header.task_id, _sentence(verdict))

    async def _upload(self, connection: Connection, header: pb.UploadHeader, data: memoryview) -> pb.UploadVerdict:
        """Upload a contribution. One that is sent whole is not given up before its verdict has had time to arrive.

        Raises:
            RoundClosedError: Nobody has asked for it on this session.
        """
        if connection is not self._asked_on:
            raise RoundClosedError("the coordinator has not asked for it since the connection broke")
        upload = asyncio.create_task(connection.upload(header, data, self._report_upload))
        try:
            return await asyncio.shield(upload)
        except asyncio.CancelledError:
            if (self._phase, self._fraction) != (pb.PHASE_UPLOADING, 1.0):
                raise
            await asyncio.wait([upload], timeout=VERDICT_SECONDS)
            if not upload.done() or upload.cancelled() or upload.exception() is not None:
                raise
            return upload.result()
        finally:
            upload.cancel()

    async def _trainer_for(self, spec: RunSpec, base: pb.ModelReference) -> Trainer:
        """Return the resident trainer, or one for another learner once the data suits it."""
        trainer = self._trainer
        if trainer is None or trainer.named != spec.learner:
            trainer = await self._in_thread(lambda: self._build_trainer(spec))
        if trainer.layout.sha256 != base.layout_sha256 or trainer.layout.byte_count != base.total_bytes:
            raise LayoutError(
                f"Learner {spec.learner.name}: layout must be the coordinator's, {base.layout_sha256.hex()[:16]}, "
                f"got {trainer.layout.sha256.hex()[:16]}. Install the coordinator's release."
            )
        self._trainer = trainer
        return trainer

    def _build_trainer(self, spec: RunSpec) -> Trainer:
        trainer = Trainer(spec.learner, self._site.device)
        trainer.check(self._site.data)
        return trainer

    async def _model(self, reference: pb.ModelReference) -> Vector:
        """Return the model, from the cache or by download."""
        cache = self._site.cache
        if (vector := cache.get(reference.sha256)) is not None:
            return vector
        self._enter(pb.PHASE_DOWNLOADING)

        async def download(connection: Connection) -> Vector:
            incoming = cache.begin(reference.sha256, reference.total_bytes // 4)
            try:
                await connection.download(incoming, self._report_fraction)
            except TransferError:
                cache.drop()
                raise
            return vector_from_bytes(incoming.buffer)

        vector = await self._with_connection(download)
        raise_if_cancelled()
        return vector

    async def _with_connection(self, transfer: Callable[[Connection], Awaitable[Value]]) -> Value:
        """Run a transfer on the connection of the moment, again and again until one holds."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((ConnectionLostError, TransferError)),
            wait=wait_random_exponential(multiplier=0.1, max=2),
            before_sleep=_log_retry,
        )
        return await retrying(self._transfer, transfer)

    async def _transfer(self, transfer: Callable[[Connection], Awaitable[Value]]) -> Value:
        return await transfer(await self._link.get())

    async def _send(self, message: pb.JoinRequest) -> None:
        await self._with_connection(lambda connection: connection.send(message))

    async def _in_thread(self, function: Callable[[], Value]) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._thread, copy_context().run, function)

    def _enter(self, phase: pb.Phase) -> None:
        self._phase, self._fraction = phase, 0.0

    def _report_fraction(self, fraction: float) -> None:
        self._fraction = fraction

    def _report_upload(self, fraction: float) -> None:
        self._phase, self._fraction = pb.PHASE_UPLOADING, fraction

    @contextlib.asynccontextmanager
    async def _progress(self, task_id: str) -> AsyncIterator[None]:
        """Tell the coordinator once a second how far the task is, while the context is open."""

        async def tell() -> None:
            while True:
                await asyncio.sleep(PROGRESS_SECONDS)
                progress = pb.Progress(task_id=task_id, phase=self._phase, fraction=self._fraction)
                await self._send(pb.JoinRequest(progress=progress))

        telling = asyncio.create_task(tell())
        try:
            yield
        finally:
            telling.cancel()


def _sentence(verdict: pb.UploadVerdict) -> str:
    reason = pb.RefusalReason.Name(verdict.reason).removeprefix("REFUSAL_REASON_").lower()
    return f"{reason}: {verdict.detail}"


def _log_retry(state: RetryCallState) -> None:
    log.info("a transfer broke off, %s; trying again", state.outcome.exception() if state.outcome else None)
