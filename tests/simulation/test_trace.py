"""Traces: what is read from each kind of file, and the line, rule and value of each that is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.errors import SimulationError
from simulation.trace import Device, Trace, read_trace

HEADER = "client,seconds_per_example,bytes_per_second,from_seconds,until_seconds"


def written(folder: Path, *lines: str) -> Path:
    path = folder / "trace.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(folder: Path, *lines: str, end_seconds: float | None = None) -> Trace:
    path = written(folder, *lines)
    return read_trace(path) if end_seconds is None else read_trace(path, end_seconds)


def summary(device: Device) -> tuple[float | None, float | None, list[float]]:
    return device.seconds_per_example, device.bytes_per_second, device.edges.tolist()


def test_read_trace_with_every_column(tmp_path: Path) -> None:
    trace = read(tmp_path, HEADER, "ana,0.5,1e6,0,10", "ben,0,2000,5,6", "ana,0.5,1e6,20,30.5")
    assert {name: summary(device) for name, device in trace.clients.items()} == {
        "ana": (0.5, 1e6, [0, 10, 20, 30.5]),
        "ben": (0, 2000, [5, 6]),
    }
    assert (trace.devices, trace.has_periods) == ([], True)


def test_read_trace_joins_what_the_rows_of_a_client_leave_empty(tmp_path: Path) -> None:
    trace = read(tmp_path, HEADER, "ana,,,0,1", "ana,0.5,,2,3", "ana,,7,4,5", "ben,,,0,1")
    assert summary(trace.clients["ana"]) == (0.5, 7, [0, 1, 2, 3, 4, 5])
    assert summary(trace.clients["ben"]) == (None, None, [0, 1])


def test_read_trace_joins_periods_that_touch(tmp_path: Path) -> None:
    trace = read(tmp_path, "client,from_seconds,until_seconds", "ana,0,1", "ana,1,3", "ana,4,5", "ana,5,6")
    assert summary(trace.clients["ana"]) == (None, None, [0, 3, 4, 6])


def test_read_trace_of_clients_without_periods(tmp_path: Path) -> None:
    trace = read(tmp_path, "seconds_per_example,client", "0.25,ana", "0.5,ben", "0.25,ana")
    assert {name: summary(device) for name, device in trace.clients.items()} == {
        "ana": (0.25, None, []),
        "ben": (0.5, None, []),
    }
    assert not trace.has_periods


def test_read_trace_of_devices_keeps_each_row(tmp_path: Path) -> None:
    trace = read(tmp_path, "bytes_per_second,seconds_per_example", "1000,0.5", ",0.25", "1000,0.5")
    assert [summary(device) for device in trace.devices] == [(0.5, 1000, []), (0.25, None, []), (0.5, 1000, [])]
    assert (trace.clients, trace.has_periods) == ({}, False)


def test_read_trace_as_spreadsheets_write_it(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes('\ufeffclient, "seconds_per_example"\r\n\r\n"ana, the first", 0.5 \r\nben ,1\r\n'.encode())
    assert {name: summary(device) for name, device in read_trace(path).clients.items()} == {
        "ana, the first": (0.5, None, []),
        "ben": (1, None, []),
    }


def test_read_trace_period_may_end_with_the_cycle(tmp_path: Path) -> None:
    trace = read(tmp_path, "client,from_seconds,until_seconds", "ana,0,60", end_seconds=60)
    assert summary(trace.clients["ana"]) == (None, None, [0, 60])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param([""], ": columns must tell something of clients, got none. Add some.", id="empty"),
        pytest.param(["client", "ana"], ": columns must tell something of clients, got client. Add some.", id="names"),
        pytest.param(
            ["client,speed", "ana,1"],
            ": columns must be of client, seconds_per_example, bytes_per_second, from_seconds, until_seconds, got 'speed'. "
            "Rename or drop it.",
            id="unknown-column",
        ),
        pytest.param(
            ["client,client", "ana,ben"],
            ": columns must have different names, got client twice. Drop one.",
            id="column-twice",
        ),
        pytest.param(
            ["client,from_seconds", "ana,1"],
            ": columns of periods must be client, from_seconds and until_seconds, got client, from_seconds. "
            "Add what is missing.",
            id="no-end",
        ),
        pytest.param(
            ["client,until_seconds", "ana,1"],
            ": columns of periods must be client, from_seconds and until_seconds, got client, until_seconds. "
            "Add what is missing.",
            id="no-start",
        ),
        pytest.param(
            ["from_seconds,until_seconds", "0,1"],
            ": columns of periods must be client, from_seconds and until_seconds, got from_seconds, until_seconds. "
            "Add what is missing.",
            id="periods-of-nobody",
        ),
        pytest.param([HEADER], ": file must have a row below its columns, got none. Add clients.", id="no-rows"),
        pytest.param(
            [HEADER, "ana,1,1,0,1", "ben,1,1,0"],
            ", line 3: row must have 5 values, got 4. Mend or drop the line.",
            id="short-row",
        ),
        pytest.param(
            [HEADER, "ana,1,1,0,1,1"], ", line 2: row must have 5 values, got 6. Mend or drop the line.", id="long-row"
        ),
        pytest.param(
            [HEADER, "", '"a', 'na",1,1,0,1', ",1,1,0,1"],
            ", line 5: client must be given, got ''. Mend or drop the line.",
            id="nameless",
        ),
        pytest.param(
            [HEADER, "ana,fast,1,0,1"],
            ", line 2: seconds_per_example must be a number, got 'fast'. Mend or drop the line.",
            id="no-number",
        ),
        pytest.param(
            [HEADER, "ana,nan,1,0,1"],
            ", line 2: seconds_per_example must be from 0 to 1000000000000, got 'nan'. Mend or drop the line.",
            id="nan",
        ),
        pytest.param(
            [HEADER, "ana,-1,1,0,1"],
            ", line 2: seconds_per_example must be from 0 to 1000000000000, got '-1'. Mend or drop the line.",
            id="negative",
        ),
        pytest.param(
            [HEADER, "ana,1,0,0,1"],
            ", line 2: bytes_per_second must be from 1e-09 to 1000000000000, got '0'. Mend or drop the line.",
            id="no-link",
        ),
        pytest.param(
            [HEADER, "ana,1,inf,0,1"],
            ", line 2: bytes_per_second must be from 1e-09 to 1000000000000, got 'inf'. Mend or drop the line.",
            id="infinite-link",
        ),
        pytest.param(
            [HEADER, "ana,1,1,,1"], ", line 2: from_seconds must be given, got ''. Mend or drop the line.", id="start"
        ),
        pytest.param(
            [HEADER, "ana,1,1,0,"], ", line 2: until_seconds must be given, got ''. Mend or drop the line.", id="end"
        ),
        pytest.param(
            [HEADER, "ana,1,1,-5,1"],
            ", line 2: from_seconds must be from 0 to 1000000000000, got '-5'. Mend or drop the line.",
            id="early",
        ),
        pytest.param(
            [HEADER, "ana,1,1,0,61"],
            ", line 2: until_seconds must be from 0 to 60, got '61'. Mend or drop the line.",
            id="past-the-cycle",
        ),
        pytest.param(
            [HEADER, "ana,1,1,7.5,7.5"],
            ", line 2: until_seconds must be above from_seconds, 7.5, got '7.5'. Mend or drop the line.",
            id="no-length",
        ),
        pytest.param(
            [HEADER, "ana,1,1,0,10", "ben,1,1,5,6", "ana,1,1,9,12"],
            ", line 4: from_seconds must be at least 10, where the client's period before ends, got '9'. "
            "Mend or drop the line.",
            id="overlap",
        ),
        pytest.param(
            [HEADER, "ana,1,1,20,30", "ana,1,1,0,10"],
            ", line 3: from_seconds must be at least 30, where the client's period before ends, got '0'. "
            "Mend or drop the line.",
            id="out-of-order",
        ),
        pytest.param(
            [HEADER, "ana,0,,0,10", "ana,,,20,30", "ana,2,,40,50"],
            ", line 4: seconds_per_example must be 0 as in the client's rows before, or be left empty, got '2'. "
            "Mend or drop the line.",
            id="two-speeds",
        ),
        pytest.param(
            [HEADER, "ana,,1,0,10", "ana,,2,20,30"],
            ", line 3: bytes_per_second must be 1 as in the client's rows before, or be left empty, got '2'. "
            "Mend or drop the line.",
            id="two-links",
        ),
        pytest.param(
            [HEADER, '"ana"x,1,1,0,1'],
            ", line 2: line must be CSV, got an error: ',' expected after '\"'. Mend or drop it.",
            id="no-csv",
        ),
    ],
)
def test_read_trace_broken_rule_names_line_rule_and_value(tmp_path: Path, lines: list[str], message: str) -> None:
    path = written(tmp_path, *lines)
    before = path.read_bytes()
    with pytest.raises(SimulationError) as caught:
        read_trace(path, 60)
    assert str(caught.value) == f"Trace {path}{message}"
    assert path.read_bytes() == before


def test_read_trace_that_cannot_be_read_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(
        SimulationError, match=r"^Trace .*none\.csv: file must be there to be read, got .* No such file .* counts from"
    ):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(
        SimulationError, match=r"file must be there to be read, got .* Is a directory.* working directory"
    ):
        read_trace(tmp_path)
    path = tmp_path / "trace.csv"
    path.write_bytes(b"client,bytes_per_second\n\xff,1\n")
    with pytest.raises(SimulationError, match=r"trace\.csv: file must be text in UTF-8, got .*'utf-8' codec"):
        read_trace(path)


@given(st.text(alphabet=st.sampled_from('anb,0123.-e\n"'), max_size=60))
def test_read_trace_of_any_rows_raises_nothing_but_its_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = written(tmp_path_factory.getbasetemp(), "client,bytes_per_second,from_seconds,until_seconds", text)
    try:
        trace = read_trace(path)
    except SimulationError:
        return
    for device in trace.clients.values():
        edges = device.edges.tolist()
        assert edges == sorted(set(edges))
        assert len(edges) >= 2
