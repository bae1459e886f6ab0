"""Reading local data in the open: a large set takes minutes, which nobody should wait through in silence (law L7)."""

import logging

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from client.data import LocalData, load, parse_source, split

log = logging.getLogger(__name__)


def load_visibly(text: str, held_out_fraction: float, seed: int, console: Console | None = None) -> LocalData:
    """Read and split local data, and show meanwhile what is read: a line with the time on a terminal, a line in the log elsewhere.

    Args:
        text: The data source, as `parse_source` reads it.
        held_out_fraction: As `split`.
        seed: As `split`.
        console: Where to show it; standard error if None.

    Raises:
        DataError: The source or the data cannot be used.
    """
    source = parse_source(text)
    console = console or Console(stderr=True)
    said = f"reading data: {text}"
    if not console.is_terminal:
        log.info("%s", said)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(said, total=None)
        return split(load(source), held_out_fraction, seed, source.kind)
