"""Records as JSON documents, the form in which every store keeps them, and what every store says of them."""

from typing import TypeVar

from pydantic import ValidationError

from server.errors import ConflictError, NotFoundError, StoreError
from server.records import Record

R = TypeVar("R", bound=Record)


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


def token_exists(name: str) -> ConflictError:
    """Return the error of a second token of a name."""
    return ConflictError(
        f"Token {name!r}: name must be new, got one that there is. Revoke that one first, or take another name."
    )


def no_such_token(name: str) -> NotFoundError:
    """Return the error of a token that does not exist."""
    return NotFoundError(f"Token {name!r}: must be in the store, got no such token. See: choral token list")
