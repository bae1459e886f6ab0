"""The example of each learner of the zoo: a run spec in `models/specs/`, whose first line is the command that runs it."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from wire.errors import SpecError
from wire.spec import RunSpec, parse_spec

FOLDER = Path(__file__).parent / "specs"
_COMMAND = "# choral simulate models/specs/"


@dataclass(frozen=True, slots=True)
class LearnerExample:
    """How a learner is tried out.

    Attributes:
        text: The spec's file, with the command in its first line.
        spec: The spec.
        data: Source of the data that suits it.
        clients: Clients that the data is dealt to; None for one for each natural key.
        partition: How.
    """

    text: str
    spec: RunSpec
    data: str
    clients: int | None
    partition: str

    @property
    def command(self) -> str:
        """The command that runs it."""
        return self.text.partition("\n")[0].removeprefix("# ")


def example_of(name: str) -> LearnerExample:
    """Return the example of a learner of the zoo.

    Raises:
        SpecError: There is none, or its first line is no such command.
    """
    path = FOLDER / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"Learner {name}: must have an example {path}, got none.") from error
    command = text.partition("\n")[0]
    words = shlex.split(command, comments=False)
    if not command.startswith(f"{_COMMAND}{name}.yaml ") or len(words) % 2:
        raise SpecError(f"{path}: the first line must read {_COMMAND}{name}.yaml --OPTION VALUE..., got {command!r}.")
    options = dict(zip(words[4::2], words[5::2], strict=True))
    clients = options.get("--clients")
    return LearnerExample(
        text,
        parse_spec(text, str(path)),
        options.get("--data", "digits"),
        int(clients) if clients else None,
        options.get("--partition", "iid"),
    )
