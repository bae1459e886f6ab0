"""Every error of the REST API as problem details (RFC 9457), with the sentence that the command line would print."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from server.api.body import REPEATED_KEY
from server.errors import AwayError, BusyError, ConflictError, LeaseTakenError, NotFoundError, StoreError
from server.monitoring.metrics import ROUTE_METHODS
from server.problems import problem
from wire.errors import ChoralError, Finding, SpecError
from wire.validation import sentence, shown

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
    status, headers, path = error.status_code, error.headers, shown(request.url.path)
    match status:
        case 404 if error.detail == HTTPStatus(status).phrase:
            detail = f"Request: path must be one that /openapi.json lists, got {path}."
        case 405:
            methods = _methods(request)
            headers = {"Allow": ", ".join(methods)}
            detail = f"Request: method of {path} must be {' or '.join(methods)}, got {shown(request.method)}."
        case 400:  # the framework's, of a body that is no text or exhausts the stack
            detail = "Request: body must be JSON in UTF-8 that is not nested without end, got another."
        case _:
            detail = error.detail
    return problem(status, "HTTP", detail, headers)


def _methods(request: Request) -> list[str]:
    """Return what may be done with the path of a request. The framework names the methods of its first route alone."""
    routes, scope = request.app.router.routes, dict(request.scope)
    found = {
        method
        for method in ROUTE_METHODS
        if any(route.matches(scope | {"method": method})[0] is Match.FULL for route in routes)
    }
    return sorted(found | {"HEAD"} if "GET" in found else found)


async def _validation_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    findings = [_finding(item) for item in error.errors()]
    return problem(422, "Request", "\n".join(f"Request: {finding.message}" for finding in findings), findings=findings)


def _finding(item: Mapping[str, Any]) -> Finding:
    path = ".".join(map(str, item["loc"]))
    match item["type"]:
        case "json_invalid":
            place, reason = item["loc"][-1], item["ctx"]["error"]
            if place == REPEATED_KEY:
                return Finding("body", f"body must have each key once, got {shown(reason)} twice.")
            return Finding("body", f"body must be JSON, got something else at character {place}: {reason}.")
        case "dict_type":
            return Finding(path, f"{path} must be a JSON object, sent as application/json, got {shown(item['input'])}.")
    return Finding(path, sentence(item))


async def _unexpected_problem(request: Request, error: Exception) -> Response:
    log.error("%s %s: unexpected error", request.method, request.url.path, exc_info=error)
    return problem(500, "Unexpected", f"Unexpected {type(error).__name__}. The server's log has the details.")
