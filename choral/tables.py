"""Tables on a terminal: what does not fit takes more lines, and nothing is cut."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text


def table_of(*headings: str, wrapped: Sequence[str] = ()) -> Table:
    """Return a table whose columns are as narrow as can be; those of `wrapped` take several lines where they must."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=heading not in wrapped, overflow="fold")
    return table


def add_row(table: Table, *cells: str) -> None:
    """Add cells as they are: a client's name is no markup."""
    table.add_row(*(Text(cell) for cell in cells))
