import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.document import DEPTH, DOCUMENT_CHARACTERS, parse_document
from wire.errors import SpecError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def test_parse_yaml_1_2_reads_on_as_text_and_1e3_as_number() -> None:
    document = parse_document("{on: off, rate: 1e-3, deep: [yes, 0o17, 1.5, null, true]}", "File")
    assert document == {"on": "off", "rate": 0.001, "deep": ["yes", 15, 1.5, None, True]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a: &x [1]\nb: *x", r"File: must not use aliases, got \*x in line 2\.", id="alias"),
        pytest.param("a: &x [*x]", r"must not use aliases, got \*x", id="alias-to-itself"),
        pytest.param("a:\n  !!binary abcd", r"must not use tags, got tag:yaml\.org,2002:binary in line 2", id="tag"),
        pytest.param("!!python/object:os.system {}", "must not use tags", id="python-tag"),
        pytest.param("%YAML 1.1\n---\non: 1", r"must be YAML 1\.2, got 1\.1", id="older-yaml"),
        pytest.param("[" * 100_000, f"must be nested at most {DEPTH} deep, got {DEPTH + 1}", id="deep-lists"),
        pytest.param("{a: " * 20_000, f"must be nested at most {DEPTH} deep", id="deep-mappings"),
        pytest.param(
            "a" * (DOCUMENT_CHARACTERS + 1), f"at most {DOCUMENT_CHARACTERS} characters, got 262145", id="long"
        ),
        pytest.param("a: 1\na: 2", 'must be YAML or JSON: .*found duplicate key "a"', id="key-twice"),
        pytest.param('{"a": 1, "a": 2}', 'found duplicate key "a"', id="key-twice-in-json"),
        pytest.param("a: 2020-13-45", "must be YAML or JSON: month must be in 1..12", id="date-that-is-none"),
        pytest.param("a: " + "1" * 5_000, "must be YAML or JSON: .*4300 digits", id="endless-number"),
        pytest.param("a: 0x_", "must be YAML or JSON: invalid literal", id="number-that-is-none"),
        pytest.param("a: [1", "must be YAML or JSON: .*expected ',' or ']'", id="not-closed"),
        pytest.param("a: 1\n---\nb: 2", "must be YAML or JSON: expected a single document", id="two-documents"),
        pytest.param("a: \x00", "must be YAML or JSON: unacceptable character", id="control-character"),
    ],
)
def test_parse_what_is_no_plain_data_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_document(text, "File")


def test_parse_aliases_that_stand_for_gigabytes_is_refused_at_once() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    start = time.process_time()
    with pytest.raises(SpecError, match="must not use aliases"):
        parse_document(bomb, "File")
    assert time.process_time() - start < 1


@given(PLAIN)
def test_parse_json_gives_what_was_written(value: object) -> None:
    assert parse_document(json.dumps(value), "File") == value


@given(
    st.text(alphabet=st.characters() | st.sampled_from("-:?[]{}&*!%|>'\"\n\t #,.0123456789xo_eE+~<=@`"), max_size=60)
)
def test_parse_any_text_raises_nothing_but_spec_error(text: str) -> None:
    with contextlib.suppress(SpecError):
        parse_document(text, "File")
