"""What a log line is about: run, round and client, bound once where they are known and on every line below."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

_bound: ContextVar[Mapping[str, str | int]] = ContextVar("choral_log_subject", default={})  # noqa: B039 - never written to


@contextlib.contextmanager
def about(*, run_id: str = "", round_number: int = 0, client_id: str = "") -> Iterator[None]:
    """Bind what is given to every line that is logged in the context, and in the tasks and threads that it starts."""
    given: dict[str, str | int] = {"run_id": run_id, "round": round_number, "client_id": client_id}
    token = _bound.set({**_bound.get(), **{name: value for name, value in given.items() if value}})
    try:
        yield
    finally:
        _bound.reset(token)


def add_subject(record: logging.LogRecord) -> bool:
    """Give a record what is bound: a filter for a handler, which lets everything pass."""
    for name, value in _bound.get().items():
        setattr(record, name, value)
    return True
