"""Records as JSON documents, the form in which every store keeps them."""

from typing import TypeVar

from pydantic import ValidationError

from server.errors import StoreError
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
