"""What a person sees while the demo runs: a live table on a terminal, lines elsewhere. It never waits in silence (law L7)."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from choral.demo.history import Round

QUIET_SECONDS = 3.0
"""Where there is no terminal, a new status is printed when nothing was for so long."""

FRAME_LINES = 9
"""Lines of a live screen that are no rounds."""


class Screen:
    """Shows rounds and what the demo is doing. A context manager, for the terminal's sake."""

    def __init__(self, console: Console, round_count: int) -> None:
        """Show on `console`; nothing appears before the first `say`."""
        self.console = console
        self._round_count = round_count
        self._rounds: list[Round] = []
        self._said = ""
        self._printed_time = -QUIET_SECONDS
        self._spinner = Spinner("dots")
        self._live = Live(console=console, get_renderable=self._frame, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.console.is_terminal:
            self._live.stop()
            if self._rounds:
                self.console.print(self._table(self._rounds))

    def say(self, text: str) -> None:
        """Show what the demo is doing now."""
        if text == self._said:
            return
        self._said = text
        if self.console.is_terminal:
            self._spinner.update(text=Text(text))
        elif time.monotonic() - self._printed_time >= QUIET_SECONDS:
            self._print(text)

    def add(self, row: Round) -> None:
        """Show a round."""
        self._rounds.append(row)
        if not self.console.is_terminal:
            number, clients, accuracy, loss, size, seconds = self._cells(row)
            self._print(f"round {number}: {clients} clients, accuracy {accuracy}, loss {loss}, {size}, {seconds} s")

    def note(self, text: str) -> None:
        """Show a line that stays."""
        self._print(text)

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._printed_time = time.monotonic()

    def _frame(self) -> RenderableType:
        room = max(3, self.console.height - FRAME_LINES)
        spinner = self._spinner if self._said else Text()
        return Group(self._table(self._rounds[-room:]), spinner) if self._rounds else spinner

    def _table(self, rounds: list[Round]) -> Table:
        table = Table(caption="accuracy and loss on digits that the clients hold out", caption_justify="left")
        for heading in ("round", "clients", "accuracy", "loss", "received", "seconds"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rounds:
            table.add_row(*self._cells(row))
        return table

    def _cells(self, row: Round) -> tuple[str, ...]:
        return (
            f"{row.round:>{len(str(self._round_count))}}/{self._round_count}",
            str(row.clients),
            "none" if row.accuracy is None else f"{row.accuracy:.1%}",
            "none" if row.loss is None else f"{row.loss:.4f}",
            f"{row.bytes / 1e6:.2f} MB",
            f"{row.seconds:.2f}",
        )
