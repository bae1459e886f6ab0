"""Run inside an image, as root: name what it holds and no image should, and fail if there is such a thing.

python contents.py /
"""

import os
import re
import shutil
import sys
from pathlib import Path

TOOLS = [
    "gcc",
    "cc",
    "g++",
    "c++",
    "clang",
    "make",
    "cmake",
    "ld",
    "pip",
    "pip3",
    "git",
    "curl",
    "wget",
    "protoc",
    "ninja",
]
FOLDERS = {"tests", "test", ".git", ".venv", ".pytest_cache", ".mypy_cache", ".hypothesis"}
FILES = re.compile(
    r"test_.*\.py|.*_test\.py|conftest\.py|\.env|\.netrc|pip\.conf|\.pypirc|id_(rsa|ed25519|ecdsa)|.*\.(key|p12|pfx|whl)|identity\.pem"
)
IMPORTED = re.compile(r"/site-packages/torch(/|$)")
"""Torch imports modules of its own that are named like tests."""
PRIVATE = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}")
PROGRAMS = ["opt/choral/bin", "usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"]
PARTS = ["opt", "root", "home", "var/lib/choral", "certificates", "source", "tmp", "srv"]
CACHES = ["root/.cache", "var/lib/choral/.cache", "source", "opt/pip"]
SMALL_BYTES = 1 << 20


def problems(root: Path) -> list[str]:
    """Return what lies in the file system at `root` and should not."""
    places = ":".join(f"{root}/{place}" for place in PROGRAMS)
    found = [f"program {place}" for name in TOOLS if (place := shutil.which(name, path=places))]
    found += [f"cache {root / cache}" for cache in CACHES if (root / cache).exists()]
    for part in PARTS:
        for folder, folders, files in os.walk(root / part):
            folders[:] = [name for name in folders if not name.endswith(".dist-info")]
            found += [f"folder {folder}/{name}" for name in folders if name in FOLDERS]
            for name in files:
                path = Path(folder, name)
                if FILES.fullmatch(name) and not IMPORTED.search(folder):
                    found.append(f"file {path}")
                elif not path.is_symlink() and path.stat().st_size < SMALL_BYTES and PRIVATE.search(path.read_bytes()):
                    found.append(f"a private key in {path}")
    return found


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]))
    sys.stdout.write("".join(f"{line}\n" for line in found))
    sys.exit(bool(found))
