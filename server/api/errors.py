"""Every error of the REST API as problem details (RFC 9457), with the sentence that the command line would print."""

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from server.errors import ConflictError, LeaseTakenError, NotFoundError, StoreError
from server.problems import problem
from wire.errors import ChoralError, SpecError

log = logging.getLogger(__name__)

HTTP_CODES: dict[type[ChoralError], int] = {
    NotFoundError: 404,
    ConflictError: 409,
    SpecError: 422,
    StoreError: 503,
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
