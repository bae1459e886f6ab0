"""docs/secure-aggregation.md is what the code says: its tables are computed anew, and what it names exists."""

import ast
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from choral.cli import app
from client.policy import Policy, SecureAggregationPolicy
from privacy.errors import AbortCode
from privacy.secagg.client import ClientState
from privacy.secagg.combinations import check_masking
from privacy.secagg.costs import client_load, coordinator_load, vector_bytes_of
from privacy.secagg.head import Head
from privacy.secagg.labels import prefixed, u32, u64
from privacy.secagg.parameters import (
    GRINDING_BITS,
    LARGEST_COMPLETE,
    LIVENESS_BITS,
    OWN_RULES,
    SECURITY_BITS,
    Parameters,
    parameters_for,
)
from privacy.secagg.session import AUDIT, CHACHA20, SUITES, Purpose, SessionParameters
from wire import federation_pb2 as pb
from wire.document import parse_document
from wire.grid import Grid
from wire.secure import SecureAggregationSpec
from wire.spec import validate_spec
from wire.validation import Strict

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("docs/secure-aggregation.md", "README.md")}
PAGE = PAGES["docs/secure-aggregation.md"]
MILLION = 1_000_000

Table = list[list[str]]


def tables() -> dict[str, Table]:
    """Return the page's tables without their heads, by their heads."""
    found: dict[str, Table] = {}
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, flags=re.MULTILINE):
        head, rule, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()]
        assert all(set(cell) <= set("-| ") for cell in rule), head
        key = " | ".join(head).strip(" |")
        assert key not in found, key
        found[key] = [[cell.strip(" |") for cell in row] for row in rows]
        assert all(len(row) == len(head) for row in rows), key
    return found


TABLES = tables()


def table(start: str) -> Table:
    """Return the one table whose head begins so."""
    (found,) = [rows for head, rows in TABLES.items() if head.startswith(start)]
    assert found
    return found


def columns(rows: Table, *places: int) -> Table:
    return [[row[place] for place in places] for row in rows]


def codes_in(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.mark.parametrize(
    ("head", "model"),
    [
        pytest.param("key | default | what it trades", SecureAggregationSpec, id="spec"),
        pytest.param("key | default | what it does", SecureAggregationPolicy, id="policy"),
    ],
)
def test_every_key_is_there_with_its_default_and_no_other(head: str, model: type[Strict]) -> None:
    found = {codes_in(key)[0]: json.loads(codes_in(default)[0]) for key, default in columns(table(head), 0, 1)}
    assert found == model().model_dump(mode="json")


def test_examples_of_the_page_are_sound() -> None:
    snippets = [parse_document(block, "the page") for block in re.findall(r"(?:^    [ \w]+:.*\n)+", PAGE, re.MULTILINE)]
    (spec,) = [found for found in snippets if isinstance(found, dict) and "privacy" in found]
    (policy,) = [found for found in snippets if isinstance(found, dict) and "secure_aggregation" in found]
    check_masking(validate_spec({"name": "lakes", "learner": {"name": "mlp"}, "rounds": 1, **spec}))
    assert Policy.model_validate(policy).secure_aggregation.required


def test_labels_are_those_of_the_code() -> None:
    listed = {label for (cell,) in columns(table("label | of"), 0) for label in codes_in(cell)}
    assert listed == set(labels_in_code())


def labels_in_code() -> Iterator[str]:
    takers = {"hashed": 0, "sign": 1, "is_signed": 2, "derive_key": 2, "_check_server": 1, "_signed": 2, "_key": 1}
    # What costs.py signs is for its clock.
    for path in {*(ROOT / "privacy").rglob("*.py")} - {ROOT / "privacy/secagg/costs.py"}:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            place = 0 if name == "labelled_hash" else takers.get(name)
            if place is None or len(call.args) <= place or not isinstance(argument := call.args[place], ast.Constant):
                continue
            if isinstance(argument.value, str):
                yield argument.value.removeprefix("choral/secagg/1/")


def test_parameters_are_encoded_in_the_order_of_the_table() -> None:
    spec = SecureAggregationSpec(corrupt_fraction=0.11, dropout_fraction=0.12, minimum_cohort=4)
    purpose = Purpose("lakes", "run/train", 7, 3, 12, 1000, bytes(range(32)), quorum=9)
    parameters = SessionParameters(purpose, spec)
    graph = parameters_for(12, spec.corrupt_ppm, spec.dropout_ppm)
    encoded = {
        "federation": prefixed(b"lakes"),
        "task": prefixed(b"run/train"),
        "round": u64(7),
        "attempt": u32(3),
        "ring_bits": bytes([32]),
        "size": u64(parameters.size),
        "weight_cap": u64(1000),
        "minimum_cohort": u32(4),
        "corrupt_ppm": u32(110_000),
        "degree": u32(graph.degree),
        "threshold": u32(graph.threshold),
        "model_digest": prefixed(bytes(range(32))),
        "dropout_ppm": u32(120_000),
        "client_count": u32(12),
        "quorum": u32(9),
        "coordinate_bound": struct.pack("<d", 4.0),
        "exponent": struct.pack("<i", parameters.grid.exponent),
        "suite": bytes([SUITES["x25519"]]),
        "metric_count": u32(2),
        "metrics": prefixed(b"loss") + prefixed(b"accuracy"),
    }
    rows = table("field | bytes")
    sizes = {"u8": 1, "u32": 4, "i32": 4, "u64": 8, "IEEE 754 binary64": 8}
    for field, kind in rows:
        assert kind.startswith("LP") or len(encoded[field]) == sizes[kind.split(":")[0]], field
    assert b"".join(encoded[field] for (field,) in columns(rows, 0)) == parameters.canon()


def test_suites_are_numbered_as_the_table_says() -> None:
    [number] = [kind for field, kind in table("field | bytes") if field == "suite"]
    assert number == (
        f"u8: {SUITES['x25519']}, or {SUITES['x25519_mlkem768']} with `key_agreement: x25519_mlkem768`; "
        f"{CHACHA20} more with `cipher: chacha20`, {AUDIT} more with `audit: true`"
    )


def test_messages_have_the_fields_of_the_contract() -> None:
    rows = [row for row in table("message | from") if row[0].startswith("`")]
    for message, _, fields in rows:
        descriptor = pb.DESCRIPTOR.message_types_by_name[codes_in(message)[0]]
        assert codes_in(fields) == [field.name for field in descriptor.fields]
    named = messages_in("JoinRequest", range(20, 40)) | messages_in("JoinResponse", range(20, 40))
    assert {codes_in(message)[0] for message, _, _ in rows} == named | {"SessionOffer"}


def messages_in(name: str, numbers: range) -> set[str]:
    """Return the names of the messages that a message may hold under these numbers."""
    fields = [field for field in pb.DESCRIPTOR.message_types_by_name[name].fields if field.number in numbers]
    return {field.message_type.name for field in fields if field.message_type is not None}


def test_what_is_in_the_clear_are_messages_of_the_contract() -> None:
    named = {name for (cell,) in columns(table("from a client"), 0) for name in codes_in(cell)}
    requests = messages_in("JoinRequest", range(40))
    # A heartbeat carries nothing, and an evaluation is masked.
    assert named == requests - {"Heartbeat", "EvaluateResult"} | {"UploadHeader"}


def test_states_of_a_client_are_named() -> None:
    assert set(ClientState) <= set(codes_in(PAGE))


def test_codes_say_whether_they_are_alarming() -> None:
    rows = table("code | meaning")
    assert {codes_in(code)[0]: kept == "yes" for code, kept in columns(rows, 0, 2)} == {
        str(code): code.is_alarming for code in AbortCode
    }
    alarming = {codes_in(code)[0] for (code,) in columns(table("code | may also"), 0)}
    assert alarming == {str(code) for code in AbortCode if code.is_alarming}


def test_checks_are_where_the_tables_say() -> None:
    rows = columns(table("check, in order"), 1) + columns(table("check | where"), 1)
    for place in [place for (cell,) in rows for place in codes_in(cell)]:
        file, function = place.split(":")
        path = ROOT / (file if "/" in file else f"privacy/secagg/{file}")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, place


@pytest.mark.parametrize("name", PAGES)
def test_files_and_links_exist(name: str) -> None:
    text = PAGES[name]
    for path in re.findall(r"`([\w/-]+/[\w/.-]+\.(?:py|proto|md))`", text):
        assert (ROOT / path).exists(), path
    headings = {re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in lines_with("#", text)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        assert not path or (ROOT / name).parent.joinpath(path).exists(), target
        assert path or anchor in headings, target


def lines_with(start: str, text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_sections_that_the_code_refers_to_exist() -> None:
    headings = {line.lstrip("# ") for line in lines_with("#", PAGE)}
    named = set()
    for folder in ("client", "privacy", "server"):
        for path in (ROOT / folder).rglob("*.py"):
            for rest in re.findall(r"secure-aggregation\.md\), sections? ([^.;]+)", path.read_text(encoding="utf-8")):
                named |= set(re.findall(r'"(\w+)"', rest))
    assert {"Encodings", "Messages", "Client", "Coordinator"} <= named <= headings


@pytest.mark.parametrize("name", PAGES)
def test_commands_and_their_options_exist(name: str) -> None:
    lines = re.findall(r"`(choral [^`]+)`", PAGES[name].replace("\n", " ")) + re.findall(
        r"^    (choral [^#\n]+)", PAGES[name], flags=re.MULTILINE
    )
    assert lines
    for line in lines:
        words = line.split()[1:]
        command = get_command(app)
        while words and isinstance(command, typer.core.TyperGroup):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= options | {"--help"}, line


def test_heads_have_so_many_elements() -> None:
    for row in table("ring_bits | clients | metrics"):
        ring_bits, clients, metrics, size = map(int, row)
        head = Head(ring_bits, clients, 1000, tuple(f"metric_{place}" for place in range(metrics)))
        assert not head.problem
        assert head.size == size


def test_resolutions_are_those_of_the_grid() -> None:
    for row in table("ring_bits | coordinate_bound"):
        ring_bits, bound, cap, clients, exponent = int(row[0]), float(row[1]), int(row[2]), int(row[3]), int(row[4])
        grid = Grid(bound, cap, clients, ring_bits, is_clipping=True)
        assert grid.exponent == exponent
        assert row[5:] == [f"{2.0**-exponent / weight:.1e}" for weight in (cap, cap / 10)]
        assert not Head(ring_bits, clients, cap, ()).problem


def derived(clients: int, corrupt: float, dropout: float) -> Parameters:
    return parameters_for(clients, round(corrupt * MILLION), round(dropout * MILLION))


def test_complete_graphs_are_those_of_the_code() -> None:
    for row in table("n | t | a, D"):
        clients, threshold = int(row[0]), int(row[1])
        for cell, (corrupt, dropout) in zip(row[2:], ((0.1, 0.1), (0.2, 0.2), (0.33, 0.3)), strict=True):
            found = derived(clients, corrupt, dropout)
            counts = (found.corrupt_count, found.missing_count, found.fewest_survivors(3))
            assert cell == ", ".join(map(str, counts)), row
            assert found.is_complete
            assert found.threshold == threshold == 2 * clients // 3 + 1
    two = derived(2, 0.1, 0.1)
    assert (two.threshold, two.missing_count, two.fewest_survivors(2)) == (2, 0, 2)


def test_rings_are_those_of_the_code() -> None:
    for row in table("n | corrupt | dropout"):
        found = derived(int(row[0]), float(row[1]), float(row[2]))
        kind = "complete" if found.is_complete else "ring"
        assert row[3:] == [kind, *map(str, (found.degree, found.threshold, found.fewest_survivors(3)))]


def test_constants_of_the_text_are_those_of_the_code() -> None:
    assert (LARGEST_COMPLETE, OWN_RULES.most_degree_percent) == (128, 75)
    assert (SECURITY_BITS, GRINDING_BITS, OWN_RULES.bits, LIVENESS_BITS) == (40, 40, 81, 20)


def test_small_cohorts_bear_what_the_text_says() -> None:
    assert (derived(9, 0.1, 0.1).corrupt_count, derived(9, 0.1, 0.1).missing_count) == (0, 0)
    for clients, fraction in ((4, 0.25), (5, 0.2)):
        found = derived(clients, fraction, fraction)
        assert (found.corrupt_count, found.missing_count, found.fewest_survivors(3) <= clients) == (1, 1, True)
    # Whatever roster the coordinator freezes, C corrupt clients are within the fraction.
    smallest = min(n for n in range(2, 50) if derived(n, 0.2, 0.1).fewest_survivors(10) <= n)
    assert derived(smallest, 0.2, 0.1).corrupt_count >= 2


def test_costs_are_those_of_the_plan() -> None:
    loads = []
    for clients in (10, 200):
        found, size = derived(clients, 0.1, 0.1), vector_bytes_of(1_000_000, 32, clients)
        loads += [client_load(found, size), coordinator_load(found, size)]
    counts = {
        "mask streams": [f"{load.streams:,}" for load in loads],
        "agreed keys": [f"{load.agreements:,}" for load in loads],
        "checked signatures": [f"{load.verifications:,}" for load in loads],
        "MB sent": [f"{load.sent_bytes / 1e6:,.2f}" for load in loads],
        "MB received": [f"{load.received_bytes / 1e6:,.2f}" for load in loads],
    }
    *rows, seconds = table("of 1,000,000 parameters, 32 bits")
    assert {row[0]: row[1:] for row in rows} == counts
    # Those are of one machine.
    assert seconds[0].startswith("CPU seconds, one core of ")
