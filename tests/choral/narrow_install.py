"""The command line where some packages are not installed: PACKAGES, joined by commas, then the arguments of `choral`."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class Missing:
    """Finds no module of the given packages, whoever else would."""

    def __init__(self, packages: list[str]) -> None:
        self._packages = packages

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in self._packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


if __name__ == "__main__":
    sys.meta_path.insert(0, Missing(sys.argv.pop(1).split(",")))

    from choral.cli import main

    main()
