"""Pages of long lists: a count of all in X-Total-Count, and the address of the next page in Link (RFC 8288)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request, Response

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is asked for."""

    offset: int
    limit: int

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this part of a list."""
        return items[self.offset : self.offset + self.limit]

    def mark(self, response: Response, request: Request, total_count: int) -> Response:
        """Say in a response's headers how much there is, and where it goes on."""
        response.headers["X-Total-Count"] = str(total_count)
        if self.offset + self.limit < total_count:
            url = request.url.include_query_params(offset=self.offset + self.limit, limit=self.limit)
            response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
        return response


async def _page(
    offset: Annotated[int, Query(ge=0, le=1 << 53, description="How many to leave out at the beginning.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many to return at most.")] = 50,
) -> Page:
    # A coroutine: for anything else the framework would go through a thread.
    return Page(offset, limit)


OfPage = Annotated[Page, Depends(_page)]

PAGED: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            "X-Total-Count": {"description": "How many there are in all.", "schema": {"type": "integer"}},
            "Link": {"description": "The next page, if there is one.", "schema": {"type": "string"}},
        }
    }
}
"""How the description tells of it."""
