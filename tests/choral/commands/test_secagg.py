"""`choral secagg plan`: graph, threshold, whom they bear and what they cost."""

import json

import pytest

from tests.choral.command_line import WIDTH, Choral, sentence


def plan(*arguments: str, clients: str = "10", corrupt: str = "0.1", dropout: str = "0.2") -> tuple[str, ...]:
    return ("secagg", "plan", "--clients", clients, "--corrupt", corrupt, "--dropout", dropout, *arguments)


def test_plan_of_a_ring_prints_graph_costs_and_where_they_were_measured(choral: Choral) -> None:
    outcome = choral(*plan(clients="200", corrupt="0.1", dropout="0.1"))
    assert (outcome.code, outcome.err) == (0, "")
    for row in (
        "clients          200",
        "graph            ring in a random order, 56 neighbours each",
        "threshold        39 of 57 shares open a secret",
        "corrupt clients  20 at most, with the coordinator",
        "dropouts         20 at most, once the roster is fixed",
        "survivors        180 at least, 3 or more of them honest",
        "A round of 1,000,000 parameters in a ring of 32 bits:",
        "The coordinator's costs are with 20 dropouts after sharing.",
        "CPU seconds are of one core, by its speed measured here and now:",
    ):
        assert row in outcome.lines
    cells = {line[:18].strip(): line[18:].split() for line in outcome.lines}
    assert cells["mask streams"] == ["57", "1,194"]
    assert cells["agreed keys"] == ["114", "1,034"]
    assert cells["MB sent"] == ["4.01", "14.95"]
    assert cells["MB received"] == ["0.08", "721.80"]
    assert all(float(seconds) > 0 for seconds in cells["CPU seconds"])
    assert max(map(len, outcome.lines)) <= WIDTH


def test_plan_of_few_clients_is_a_complete_graph(choral: Choral) -> None:
    outcome = choral(*plan("--minimum-honest", "8", clients="10", corrupt="0.2", dropout="0"))
    assert "graph            complete, 9 neighbours each" in outcome.lines
    assert "threshold        7 of 10 shares open a secret" in outcome.lines
    assert "survivors        10 at least, 8 or more of them honest" in outcome.lines


def test_plan_of_the_largest_fits_a_terminal(choral: Choral) -> None:
    sizes = ("--parameters", "100000000000", "--ring-bits", "64")
    outcome = choral(*plan(*sizes, clients="10000", corrupt="0.3", dropout="0.3"))
    assert outcome.code == 0
    assert max(map(len, outcome.lines)) <= WIDTH


def test_plan_as_json_has_all_counts_with_their_units(choral: Choral) -> None:
    found = json.loads(choral(*plan("--parameters", "100", "--json")).out)
    measured = found.pop("measured_seconds")
    assert measured.keys() == {"mask_byte", "agreement", "signature", "verification"}
    client, coordinator = found.pop("client"), found.pop("coordinator")
    assert found == {
        "client_count": 10,
        "corrupt_count": 1,
        "missing_count": 2,
        "degree": 9,
        "threshold": 7,
        "fewest_survivors": 8,
        "vector_bytes": 420,
    }
    assert (client["sent_bytes"], client["received_bytes"], client["streams"]) == (2433, 5217, 10)
    assert coordinator["streams"] == 24
    assert client["cpu_seconds"] == pytest.approx(
        10 * 420 * measured["mask_byte"]
        + 20 * measured["agreement"]
        + 4 * measured["signature"]
        + 30 * measured["verification"]
    )


def test_plan_in_a_ring_of_16_bits_takes_half_the_bytes(choral: Choral) -> None:
    # Heads of 5 and 7 elements.
    wide, narrow = (json.loads(choral(*plan("--json", "--ring-bits", bits)).out) for bits in ("32", "16"))
    assert (wide["vector_bytes"], narrow["vector_bytes"]) == (4 * 1_000_005, 2 * 1_000_007)
    assert wide["client"]["streams"] == narrow["client"]["streams"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (plan(corrupt="0.5", dropout="0.3"), "Secure aggregation of 10 clients: threshold must be at least 8, "),
        (plan(corrupt="nan"), "Secure aggregation: corrupt must be 0 to 1, got nan."),
        (plan(dropout="-0.1"), "Secure aggregation: dropout must be 0 to 1, got -0.1."),
        (plan(dropout="1"), "Secure aggregation: dropout_ppm must be 0 to 999999, got 1000000."),
        (plan(clients="1"), "Secure aggregation: client_count must be 2 to 100000, got 1."),
        (
            plan(clients="2"),
            "Secure aggregation of 2 clients: client_count must be at least 3, for 3 honest beside 0 corrupt, got 2.",
        ),
        (plan("--minimum-honest", "1"), "Secure aggregation: minimum_honest must be 2 or more, got 1."),
        (plan("--ring-bits", "8"), "Secure aggregation: ring_bits must be one of 16, 32, 64, got 8."),
        (
            plan("--ring-bits", "16", clients="20000"),
            "Secure aggregation: clients must be at most 16384 with ring_bits 16",
        ),
        (plan("--parameters", "0"), "Secure aggregation: parameters must be 1 or more, got 0."),
    ],
)
def test_plan_that_cannot_be_is_refused(choral: Choral, arguments: tuple[str, ...], message: str) -> None:
    assert sentence(choral(*arguments)).startswith(message)
