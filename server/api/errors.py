"""Every error of the REST API as problem details (RFC 9457), with the sentence that the command line would print."""

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from server.errors import AwayError, BusyError, ConflictError, LeaseTakenError, NotFoundError, StoreError
from server.problems import problem
from wire.errors import ChoralError, Finding, SpecError

log = logging.getLogger(__name__)

HTTP_CODES: dict[type[ChoralError], int] = {
    NotFoundError: 404,
    ConflictError: 409,
    SpecError: 422,
    StoreError: 503,
    BusyError: 503,
    AwayError: 503,
    LeaseTakenError: 503,
}
"""The one table from errors to HTTP codes; what is not here is a 400."""


def add_problems(app: FastAPI) -> None:
    """Let an application answer every error with problem details."""
    app.add_exception_handler(ChoralError, _choral_problem)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _validation_problem)
    app.add_exception_handler(Exception, _unexpected_problem)


async def _choral_problem(request: Request, error: Exception) -> Response:
    status = next((HTTP_CODES[kind] for kind in type(error).__mro__ if kind in HTTP_CODES), 400)
    findings = error.findings if isinstance(error, SpecError) else ()
    return problem(status, type(error).__name__.removesuffix("Error"), str(error), findings=findings)


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, "HTTP", error.detail, error.headers)


async def _validation_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    findings = [Finding(".".join(str(part) for part in item["loc"]), item["msg"]) for item in error.errors()]
    text = "; ".join(f"{finding.path}: {finding.message}" for finding in findings)
    return problem(422, "Request", f"Request: {text}.", findings=findings)


async def _unexpected_problem(request: Request, error: Exception) -> Response:
    log.error("%s %s: unexpected error", request.method, request.url.path, exc_info=error)
    return problem(500, "Unexpected", f"Unexpected {type(error).__name__}. The coordinator's log has the details.")
