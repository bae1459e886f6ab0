"""Python with the packages that `pip install choral[server]` brings and no others: FOLDER, made by `link_packages`, then -m MODULE or a
script, and its arguments. To be run with -S, which leaves the packages that are installed here out.
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def link_packages(folder: Path, extra: str) -> list[str]:
    """Link what an extra of Choral's brings into `folder`, and return the start of a command line that runs Python with it alone."""
    import tomllib
    from importlib.metadata import distribution

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"][extra]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while wanted:
        requirement = wanted.pop()
        key = (requirement.name, frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        found = distribution(requirement.name)
        for file in found.files or ():
            if (top := file.parts[0]) not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))))
        for text in found.requires or ():
            needed = Requirement(text)
            extras = {"", *requirement.extras}
            if needed.marker is None or any(needed.marker.evaluate({"extra": name}) for name in extras):
                wanted.append(needed)
    return [sys.executable, "-S", __file__, str(folder)]


if __name__ == "__main__":
    del sys.argv[0]
    sys.path.append(sys.argv.pop(0))
    # The folder of this script, which Python puts first.
    del sys.path[0]
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
