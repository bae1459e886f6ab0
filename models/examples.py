"""The example of each learner of the zoo: a run spec in `models/specs/`, whose first line is the command that runs it."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from wire.errors import SpecError
from wire.spec import RunSpec, parse_spec

FOLDER = Path(__file__).parent / "specs"
_FOLDER = "models/specs/"
_COMMAND = f"# choral simulate {_FOLDER}"


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

    @property
    def source(self) -> str:
        """The data as it is found from any folder, where it came with the examples."""
        return _from_anywhere(self.data)

    def saved_as(self, path: str) -> str:
        """Return the text as a file of that path is to have it, in any folder: its first line is the command that runs that file."""
        words = [path if word.endswith(".yaml") else _from_anywhere(word) for word in shlex.split(self.command)]
        return f"# {shlex.join(words)}\n" + self.text.partition("\n")[2]


def _from_anywhere(word: str) -> str:
    return word.replace(_FOLDER, f"{FOLDER}/")


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
