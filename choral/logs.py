"""How log lines look: text for people, or one JSON object a line for what gathers them."""

import logging
from enum import StrEnum
from typing import Annotated, TextIO

import typer
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter
from rich.console import Console
from rich.logging import RichHandler

from wire.logs import add_subject

NOISY = ("httpx", "httpcore", "asyncio", "matplotlib", "PIL", "grpc", "uvicorn")


class LogFormat(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


Format = Annotated[LogFormat, typer.Option("--log-format", help="Log lines for people (text) or one JSON object each.")]


def log_text(is_debug: bool) -> None:
    """Log for people, in colour on a terminal."""
    console = Console(stderr=True)
    handler: logging.Handler = logging.StreamHandler()
    form = "%(asctime)s %(levelname)s %(message)s"
    if console.is_terminal:
        handler, form = RichHandler(console=console, show_path=is_debug, markup=False), "%(message)s"
    level = logging.DEBUG if is_debug else logging.INFO
    logging.basicConfig(level=level, format=form, handlers=[handler], force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def log_as(form: LogFormat) -> None:
    """Log from now on as asked for: in JSON, also what Python warns of."""
    if form is LogFormat.JSON:
        logging.basicConfig(level=logging.root.level, handlers=[json_handler()], force=True)
        logging.captureWarnings(True)


def json_handler() -> "logging.StreamHandler[TextIO]":
    """Return a handler that writes JSON to standard error."""
    handler = logging.StreamHandler()
    handler.addFilter(add_subject)
    handler.setFormatter(
        JsonFormatter(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            # uvicorn's is the message once more, with codes for a terminal.
            reserved_attrs=[*RESERVED_ATTRS, "taskName", "color_message"],
            timestamp="time",
        )
    )
    return handler


def is_json() -> bool:
    """Tell whether log lines are JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.root.handlers)
