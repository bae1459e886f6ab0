"""Serving the dashboard's files: read once, compressed once, and sent again only when they have changed."""

import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "static"

POLICY = "; ".join(
    (
        "default-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "object-src 'none'",
        # No script may turn text into markup: names of clients and their errors come from others.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Content Security Policy: everything comes from this coordinator, and nothing is written inline."""

HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
}

MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class File:
    """One file, as it is and compressed. `tag` is of its content, so that a new release is seen at once."""

    content: bytes
    compressed: bytes
    media_type: str
    tag: str

    def response(self, request: Request) -> Response:
        """Return the file, or 304 to a browser that has it."""
        if self._is_had(",".join(request.headers.getlist("if-none-match"))):
            return Response(status_code=304, headers={**HEADERS, "ETag": self.tag})
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers = {**HEADERS, "ETag": self.tag, "Content-Encoding": "gzip"}
            return Response(self.compressed, headers=headers, media_type=self.media_type)
        return Response(self.content, headers={**HEADERS, "ETag": self.tag}, media_type=self.media_type)

    def _is_had(self, given: str) -> bool:
        """Tell whether If-None-Match names this file, by weak comparison, or any.

        Source: Fielding et al., "HTTP Semantics", RFC 9110, sections 8.8.3.2 and 13.1.2. https://www.rfc-editor.org/rfc/rfc9110
        """
        # A tag of others may have a comma in it, but its parts then lack a quotation mark.
        tags = {tag.strip().removeprefix("W/") for tag in given.split(",")}
        return given.strip() == "*" or self.tag.removeprefix("W/") in tags


def dashboard_routes() -> APIRouter:
    """Return the routes: `/` is the page, `/dashboard/...` is what it loads."""
    files = dict(_files())
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page(request: Request) -> Response:
        return files["index.html"].response(request)

    @router.get("/dashboard/{path:path}")
    async def file(request: Request, path: str) -> Response:
        if path not in files:
            raise HTTPException(404, f"Dashboard: must have a file of this name, got {path[:100]!r}.")
        return files[path].response(request)

    return router


def _files() -> Iterator[tuple[str, File]]:
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            tag = f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'
            yield (
                path.relative_to(FOLDER).as_posix(),
                File(content, gzip.compress(content, mtime=0), MEDIA_TYPES.get(path.suffix, "text/plain"), tag),
            )
