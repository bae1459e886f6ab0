import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.errors import PartitionError
from simulation.schemes import SCHEMES, ByKey, Dirichlet, Iid, PowerLaw, Scheme, Shards, parse_scheme


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("iid", Iid()),
        ("iid,minimum=1", Iid(minimum=1)),
        ("by-key,minimum=30", ByKey(minimum=30)),
        ("dirichlet,alpha=0.5, minimum=10", Dirichlet(alpha=0.5, minimum=10)),
        ("dirichlet,alpha=1e-3,over=clients", Dirichlet(alpha=0.001, over="clients")),
        ("shards", Shards(per_client=2)),
        ("shards,per_client=3", Shards(per_client=3)),
        ("power-law,exponent=0", PowerLaw(exponent=0)),
    ],
)
def test_parse_scheme_reads_kind_and_parameters(text: str, scheme: Scheme) -> None:
    assert parse_scheme(text) == scheme


def test_scheme_as_text_has_every_parameter() -> None:
    assert str(Dirichlet(alpha=0.3)) == "dirichlet,alpha=0.3,over=classes,minimum=2"
    assert str(PowerLaw()) == "power-law,exponent=1.0,minimum=2"


@given(
    st.one_of(
        st.builds(Iid, minimum=st.integers(1, 10**9)),
        st.builds(
            Dirichlet,
            alpha=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
            over=st.sampled_from(["classes", "clients"]),
        ),
        st.builds(PowerLaw, exponent=st.floats(0, 100)),
        st.builds(Shards, per_client=st.integers(1, 10**9)),
    )
)
def test_scheme_survives_its_text(scheme: Scheme) -> None:
    assert parse_scheme(str(scheme)) == scheme


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "kind must be one of iid, by-key, dirichlet, shards, power-law, got ''", id="empty"),
        pytest.param("IID", "kind must be one of .*, got 'IID'", id="unknown-kind"),
        pytest.param("dirichlet,alpha", "kind must be one of .*, got 'dirichlet,alpha'. Write KIND", id="no-value"),
        pytest.param("dirichlet", "alpha is required. The keys of dirichlet are alpha, over, minimum", id="no-alpha"),
        pytest.param("dirichlet,alpha=0", "alpha must be greater than 0, got '0'", id="alpha-zero"),
        pytest.param("dirichlet,alpha=-1", "alpha must be greater than 0, got '-1'", id="alpha-negative"),
        pytest.param("dirichlet,alpha=nan", "alpha must be a finite number, got 'nan'", id="alpha-nan"),
        pytest.param("dirichlet,alpha=inf", "alpha must be a finite number, got 'inf'", id="alpha-infinite"),
        pytest.param("dirichlet,alpha=low", "alpha must be a valid number, .*got 'low'", id="alpha-text"),
        pytest.param("dirichlet,alpha=1,over=all", "over must be 'classes' or 'clients', got 'all'", id="over"),
        pytest.param(
            "iid,alpha=1", "alpha is not a key that exists here. The keys of iid are minimum", id="unknown-key"
        ),
        pytest.param("iid,minimum=0", "minimum must be greater than or equal to 1, got '0'", id="minimum-zero"),
        pytest.param("iid,minimum=1.5", "minimum must be a valid integer, .*got '1.5'", id="minimum-fraction"),
        pytest.param("iid,minimum=1,minimum=2", "minimum must be given once, got '1' and '2'", id="key-twice"),
        pytest.param("shards,per_client=0", "per_client must be greater than or equal to 1, got '0'", id="no-shards"),
        pytest.param("power-law,exponent=-1", "exponent must be greater than or equal to 0, got '-1'", id="exponent"),
    ],
)
def test_parse_scheme_broken_rule_names_text_key_and_value(text: str, message: str) -> None:
    with pytest.raises(PartitionError, match=f"^Partition {re.escape(repr(text))}: {message}"):
        parse_scheme(text)


@given(st.one_of(st.text(), st.from_regex(r"(iid|dirichlet|shards)(,(minimum|alpha|over)=[-0-9a-z.|=]{0,8}){0,3}")))
def test_parse_scheme_any_text_is_parsed_or_refused_with_a_partition_error(text: str) -> None:
    try:
        scheme = parse_scheme(text)
    except PartitionError:
        return
    assert type(scheme) is SCHEMES[scheme.kind]
