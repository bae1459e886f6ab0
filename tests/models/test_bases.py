import hashlib
import subprocess
from pathlib import Path

import pytest

from models.bases import FOLDER_VARIABLE, digest_base, find_base
from wire.errors import LearnerError


@pytest.fixture
def bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bases"
    (folder / "mini-lm" / "parts").mkdir(parents=True)
    (folder / "mini-lm" / "config.json").write_text("{}")
    (folder / "mini-lm" / "parts" / "model.safetensors").write_bytes(b"weights")
    (folder / "gpt.safetensors").write_bytes(b"more weights")
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    return folder


def test_find_base_gives_the_file_or_the_folder_of_that_name(bases: Path) -> None:
    assert find_base("gpt") == bases / "gpt.safetensors"
    assert find_base("mini-lm") == bases / "mini-lm"


@pytest.mark.parametrize("value", [None, ""])
def test_find_base_without_the_variable_looks_beside_the_process(
    bases: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.chdir(bases.parent)
    monkeypatch.delenv(FOLDER_VARIABLE)
    if value is not None:
        monkeypatch.setenv(FOLDER_VARIABLE, value)
    assert find_base("gpt") == Path("bases/gpt.safetensors")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../gpt", "/etc", "mini-lm/parts", ".hidden", "a b", "x" * 129, "gpt\n", "~", "-gpt"],
)
def test_find_base_of_a_name_that_could_lead_elsewhere_is_refused(bases: Path, name: str) -> None:
    with pytest.raises(LearnerError, match=r"^Base: name must be letters, digits, dot, dash and underscore, got "):
        find_base(name)


def test_find_base_that_is_not_there_says_where_it_should_be(bases: Path) -> None:
    message = r"^Base bert: folder .*bases must hold a file bert\.safetensors or a folder bert, got neither\. Put .* CHORAL_BASES"
    with pytest.raises(LearnerError, match=message):
        find_base("bert")


def test_find_base_of_two_of_one_name_is_refused(bases: Path) -> None:
    (bases / "gpt").mkdir()
    with pytest.raises(LearnerError, match=r"a folder gpt, got both\."):
        find_base("gpt")


def test_find_base_with_another_digest_is_refused(bases: Path) -> None:
    digest = digest_base(bases / "mini-lm")
    assert find_base("mini-lm", digest) == bases / "mini-lm"
    (bases / "mini-lm" / "config.json").write_text("{ }")
    with pytest.raises(
        LearnerError, match=rf"^Base mini-lm: SHA-256 must be {digest}, got [0-9a-f]{{64}}\. Take the base"
    ):
        find_base("mini-lm", digest)


def test_digest_of_a_file_is_that_of_its_bytes(bases: Path) -> None:
    assert digest_base(bases / "gpt.safetensors") == hashlib.sha256(b"more weights").hexdigest()


def test_digest_of_a_folder_is_that_of_the_list_that_sha256sum_prints(bases: Path) -> None:
    (bases / "mini-lm" / "parts.txt").write_text("sorts before the folder's files")
    command = "find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=bases / "mini-lm", check=True, capture_output=True, text=True)
    assert digest_base(bases / "mini-lm") == printed.stdout.split()[0]


def test_digest_of_a_folder_tells_names_bytes_and_places_apart(bases: Path) -> None:
    folder = bases / "mini-lm"
    found = [digest_base(folder)]
    (folder / "config.json").write_text("{ }")
    found.append(digest_base(folder))
    (folder / "config.json").rename(folder / "parts" / "config.json")
    found.append(digest_base(folder))
    (folder / "parts" / "config.json").rename(folder / "parts" / "other.json")
    found.append(digest_base(folder))
    assert len(set(found)) == 4


def test_digest_leaves_out_what_is_hidden_and_follows_links(bases: Path) -> None:
    before = digest_base(bases / "mini-lm")
    (bases / "mini-lm" / ".cache").mkdir()
    (bases / "mini-lm" / ".cache" / "download.lock").write_text("1")
    (bases / "linked").symlink_to(bases / "mini-lm")
    assert digest_base(bases / "mini-lm") == digest_base(bases / "linked") == before


def test_digest_of_a_file_that_cannot_be_read_is_refused(bases: Path) -> None:
    (bases / "mini-lm" / "gone").symlink_to(bases / "nowhere")
    with pytest.raises(LearnerError, match=r"^Base mini-lm: files must be readable, got: "):
        digest_base(bases / "mini-lm")
