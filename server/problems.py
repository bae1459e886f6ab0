"""Problem details (RFC 9457): the form of every error of the REST API."""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from wire.errors import Finding

MEDIA_TYPE = "application/problem+json"


class FieldProblem(BaseModel):
    """What is wrong with one part of what was sent."""

    path: str
    """Where, such as "cohort.size"; empty for the whole."""
    message: str


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    type: str = Field(examples=["urn:choral:problem:notfound"])
    title: str = Field(examples=["NotFound"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["Run 'nope': must be in the store, got no such run."])
    """One sentence or more for people."""
    errors: list[FieldProblem] | None = None
    """What is wrong where, when that can be told."""


def problem(
    status: int,
    title: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
    findings: Sequence[Finding] = (),
) -> Response:
    """Return a response of problem details; `detail` is one sentence for people."""
    errors = [FieldProblem(path=finding.path, message=finding.message) for finding in findings]
    body = Problem(
        type=f"urn:choral:problem:{title.lower()}", title=title, status=status, detail=detail, errors=errors or None
    )
    return JSONResponse(body.model_dump(exclude_none=True), status, headers, media_type=MEDIA_TYPE)
