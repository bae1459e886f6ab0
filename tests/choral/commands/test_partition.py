"""`choral partition`: a table, a picture, and refusals of one sentence."""

from pathlib import Path

import numpy as np
import pytest

from tests.choral.command_line import Choral, sentence


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_partition_prints_what_clients_have_and_draws_it(choral: Choral, folder: Path) -> None:
    outcome = choral("partition", "--data", "digits", "--partition", "by-key", "--output", "blocks.png")
    assert (outcome.code, outcome.err) == (0, "")
    totals, heading, _, examples, classes, picture = outcome.lines
    assert totals == "14 clients, 1797 examples, 10 classes, class skew 0.01 (0 alike, 1 apart)"
    assert heading.split() == ["per", "client", "min", "median", "max"]
    assert examples.split() == ["examples", "122", "130", "130"]
    assert classes.split() == ["classes", "10", "10", "10"]
    assert picture == "blocks.png: the picture"
    assert (folder / "blocks.png").read_bytes().startswith(b"\x89PNG")


def test_partition_same_seed_same_picture_and_other_seed_another(choral: Choral, folder: Path) -> None:
    def draw(seed: str) -> bytes:
        scheme = ("--clients", "20", "--partition", "dirichlet,alpha=0.3")
        outcome = choral("partition", "--data", "digits", *scheme, "--seed", seed)
        assert outcome.code == 0
        assert outcome.lines[3].split() == ["examples", "89", "90", "90"]
        return (folder / "partition.png").read_bytes()

    first, again, other = draw("7"), draw("7"), draw("8")
    assert first == again
    assert first != other


def test_partition_by_key_of_an_archive_reads_the_array(choral: Choral, folder: Path) -> None:
    np.savez(folder / "a.npz", x=np.zeros((10, 1)), y=np.arange(10) % 2, w=np.repeat(["a", "b"], [7, 3]))
    outcome = choral("partition", "--data", "npz:a.npz,key=w", "--partition", "by-key")
    assert outcome.code == 0
    assert outcome.lines[0].startswith("2 clients, 10 examples, 2 classes")
    assert outcome.lines[3].split() == ["examples", "3", "5", "7"]


def test_partition_of_series_is_dealt_by_key_and_shows_sizes(choral: Choral, folder: Path) -> None:
    outcome = choral("partition", "--data", "sunspots,spans=4", "--partition", "by-key")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.lines[0] == "4 clients, 213 examples"
    assert outcome.lines[3].split() == ["examples", "53", "53", "54"]
    assert (folder / "partition.png").read_bytes().startswith(b"\x89PNG")


def test_partition_of_text_says_nothing_of_classes(choral: Choral, folder: Path) -> None:
    (folder / "play.txt").write_text("x" * 101)
    outcome = choral("partition", "--data", "text:play.txt,window=10", "--clients", "1")
    assert outcome.code == 0
    assert outcome.lines[0] == "1 client, 10 examples"
    assert "classes" not in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ("--data", "digits", "--partition", "dirichlet,alpha=0"),
            "Partition 'dirichlet,alpha=0': alpha must be greater than 0, got '0'.",
            id="alpha",
        ),
        pytest.param(
            ("--data", "sunspots", "--clients", "2"),
            "Partition 'iid,minimum=2': windows that overlap in time must be dealt by-key, got iid",
            id="series",
        ),
        pytest.param(("--data", "shapes"), "Data source 'shapes': kind must be one of digits, ", id="data"),
        pytest.param(("--data", "digits"), "Partition 'iid,minimum=2': clients must be given, got none.", id="clients"),
        pytest.param(
            ("--data", "digits", "--clients", "15", "--partition", "by-key"),
            "Partition 'by-key,minimum=2': clients must be at most 14, the number of keys, got 15.",
            id="keys",
        ),
        pytest.param(
            ("--data", "digits", "--clients", "2", "--seed", "-1"), "Partition 'iid,minimum=2': seed must be", id="seed"
        ),
        pytest.param(
            ("--data", "digits", "--clients", "2", "-o", "a.txt"), "Picture a.txt: name must end with", id="suffix"
        ),
    ],
)
def test_partition_that_cannot_be_is_refused_and_draws_nothing(
    choral: Choral, folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert sentence(choral("partition", *arguments)).startswith(message)
    assert list(folder.iterdir()) == []
