"""Problem details (RFC 9457): the form of every error of the REST API."""

from pydantic import BaseModel
from starlette.responses import JSONResponse, Response


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    title: str
    status: int
    detail: str


def problem(status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    """Return a response of problem details; `detail` is one sentence for people."""
    body = Problem(title=title, status=status, detail=detail).model_dump()
    return JSONResponse(body, status, headers, media_type="application/problem+json")
