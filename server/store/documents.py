"""Records as JSON documents, the form in which every store keeps them, and what every store says of them."""

import asyncio
from collections.abc import Sequence
from typing import Generic, TypeVar

from pydantic import ValidationError

from server.errors import ConflictError, NotFoundError, StoreError
from server.records import Record

R = TypeVar("R", bound=Record)

SHORT_LENGTH = 1 << 14
"""Documents that are together no longer are read at once: a thread would take longer to begin."""


def to_document(record: Record) -> str:
    """Return a record as JSON text that `from_document` reads back equal."""
    return record.model_dump_json()


def from_document(kind: type[R], document: str) -> R:
    """Read a document. Raises `StoreError` when it is not one of a `kind`, as after a write by another release."""
    try:
        return kind.model_validate_json(document)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"]) or "document"
        raise StoreError(
            f"Stored {kind.__name__}: {key} must be readable by this release, got: {problem['msg']}. "
            "Start the release of Choral that wrote it, or a newer one."
        ) from error


async def from_documents(kind: type[R], documents: Sequence[str]) -> list[R]:
    """Read documents, in a thread where that takes long. Raises as `from_document`."""
    if sum(map(len, documents)) <= SHORT_LENGTH:
        return [from_document(kind, document) for document in documents]
    return await asyncio.to_thread(lambda: [from_document(kind, document) for document in documents])


class KeptRecords(Generic[R]):
    """The records of a list as it was read last, so that the next reading parses only what has changed.

    They are kept by their stored text, which is read every time: what another process has written has another text.
    """

    def __init__(self, kind: type[R]) -> None:
        self._kind = kind
        self._records: dict[str, R] = {}

    async def read(self, documents: Sequence[str]) -> list[R]:
        """Return the records of a whole list. Raises as `from_document`."""
        known = self._records
        new = [document for document in documents if document not in known]
        found = known | dict(zip(new, await from_documents(self._kind, new), strict=True))
        self._records = {document: found[document] for document in documents}
        return list(self._records.values())


def token_exists(name: str) -> ConflictError:
    """Return the error of a second token of a name."""
    return ConflictError(
        f"Token {name!r}: name must be new, got one that there is. Revoke that one first, or take another name."
    )


def no_such_token(name: str) -> NotFoundError:
    """Return the error of a token that does not exist."""
    return NotFoundError(f"Token {name!r}: must be in the store, got no such token. See: choral token list")
