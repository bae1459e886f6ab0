import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wire.errors import LayoutError
from wire.tensors import Entry, Layout, State, vector_bytes, vector_from_bytes

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


def state_of(parts: list[tuple[tuple[int, ...], torch.dtype]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(len(parts))
    return {
        f"part{index}.weight": torch.randn(shape, generator=generator).to(dtype)
        for index, (shape, dtype) in enumerate(parts)
    }


@given(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=5))
def test_flatten_then_views_gives_the_state_back(parts: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
    state: State = state_of([((2,), torch.float32), *parts])
    layout = Layout.of(state)
    vector = layout.flatten(state)
    assert vector.dtype == np.float32
    assert vector.shape == (layout.size,) == (layout.byte_count // 4,)
    views = layout.views(vector)
    assert list(views) == list(state)
    for name, tensor in state.items():
        # float32 holds every bfloat16 and float16; a float64 is rounded to it.
        assert views[name].shape == tensor.shape
        assert torch.equal(views[name], tensor.to(torch.float32))
        assert torch.equal(views[name].to(tensor.dtype), tensor.to(torch.float32).to(tensor.dtype))


def test_of_integer_tensors_stay_local() -> None:
    state = {"steps": torch.tensor(3), "weight": torch.ones(2, 3), "mask": torch.tensor([True]), "bias": torch.zeros(3)}
    layout = Layout.of(state)
    assert layout.entries == (Entry("weight", (2, 3), "float32", 0), Entry("bias", (3,), "float32", 6))
    assert layout.flatten(state).tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 0]


def test_flatten_tensor_in_another_order_of_memory_keeps_its_rows() -> None:
    state = {"weight": torch.arange(6.0).reshape(2, 3).T}
    assert Layout.of(state).flatten(state).tolist() == [0, 3, 1, 4, 2, 5]


def test_flatten_parameters_that_require_gradients_copies_their_values() -> None:
    module = torch.nn.Linear(2, 1)
    state = dict(module.named_parameters())
    vector = Layout.of(state).flatten(state)
    vector[:] = 0
    assert module.weight.abs().sum() > 0


def test_views_share_memory_with_the_vector_both_ways() -> None:
    layout = Layout.of({"a": torch.zeros(2), "b": torch.zeros(2, 1)})
    vector = np.zeros(4, dtype=np.float32)
    views = layout.views(vector)
    views["b"].fill_(5)
    vector[0] = 7
    assert vector.tolist() == [7, 0, 5, 5]
    assert views["a"].tolist() == [7, 0]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        pytest.param({}, "at least one floating tensor that is not empty, got none", id="empty"),
        pytest.param({"steps": torch.tensor(1)}, "at least one floating tensor", id="only-integers"),
        pytest.param({"a": torch.zeros(0, 3)}, "at least one floating tensor", id="no-coordinates"),
        pytest.param(
            {"a": torch.zeros(2, dtype=torch.complex64)}, "'a': dtype must be real, got torch.complex64", id="complex"
        ),
    ],
)
def test_of_state_that_cannot_travel_is_refused(state: State, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Layout.of(state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        pytest.param(
            {"a": torch.zeros(3), "b": torch.zeros(1)},
            r"'a': shape must be \(2,\) float32, got 'a' \(3,\) float32",
            id="shape",
        ),
        pytest.param(
            {"b": torch.zeros(1), "a": torch.zeros(2)}, r"'a': shape must be \(2,\) float32, got 'b'", id="order"
        ),
        pytest.param(
            {"a": torch.zeros(2, dtype=torch.float64), "b": torch.zeros(1)}, r"got 'a' \(2,\) float64", id="dtype"
        ),
        pytest.param({"a": torch.zeros(2)}, "must have 2 tensors, got 1", id="missing"),
        pytest.param({"a": torch.zeros(2), "b": torch.zeros(1), "c": torch.zeros(1)}, "2 tensors, got 3", id="extra"),
    ],
)
def test_flatten_other_layout_is_refused(state: State, message: str) -> None:
    layout = Layout.of({"a": torch.zeros(2), "b": torch.zeros(1)})
    with pytest.raises(LayoutError, match=message):
        layout.flatten(state)


@pytest.mark.parametrize(
    ("vector", "found"),
    [
        (np.zeros(3, dtype=np.float32), r"got \(3,\) float32"),
        (np.zeros((2, 1), dtype=np.float32), r"got \(2, 1\) float32"),
        (np.zeros(2), r"got \(2,\) float64"),
    ],
)
def test_views_other_vector_is_refused(vector: np.ndarray, found: str) -> None:
    with pytest.raises(LayoutError, match=rf"shape must be \(2,\) float32, {found}"):
        Layout.of({"a": torch.zeros(2)}).views(vector)


def test_sha256_covers_names_shapes_types_and_order() -> None:
    layout = Layout.of({"a": torch.zeros(2, 1), "b": torch.zeros((), dtype=torch.bfloat16)})
    assert layout.json == '[["a",[2,1],"float32"],["b",[],"bfloat16"]]'
    assert layout.sha256 == hashlib.sha256(layout.json.encode()).digest()
    others = [
        {"a": torch.zeros(2, 1), "c": torch.zeros((), dtype=torch.bfloat16)},
        {"a": torch.zeros(1, 2), "b": torch.zeros((), dtype=torch.bfloat16)},
        {"a": torch.zeros(2, 1), "b": torch.zeros(())},
        {"b": torch.zeros((), dtype=torch.bfloat16), "a": torch.zeros(2, 1)},
    ]
    assert layout.sha256 not in {Layout.of(other).sha256 for other in others}
    assert json.loads(layout.json)[0][0] == "a"


def test_bytes_are_little_endian_float32_and_share_memory() -> None:
    vector = np.array([1.0, -2.5], dtype=np.float32)
    data = vector_bytes(vector)
    assert bytes(data).hex() == "0000803f000020c0"
    vector[0] = 0
    assert bytes(data[:4]) == bytes(4)


def test_bytes_of_strided_vector_are_those_of_its_values() -> None:
    vector = np.arange(6, dtype=np.float32)[::2]
    assert vector_from_bytes(bytes(vector_bytes(vector))).tolist() == [0, 2, 4]


@given(st.lists(st.floats(width=32), min_size=1))
def test_bytes_round_trip_to_the_bit_with_nan_and_infinity(values: list[float]) -> None:
    vector = np.array(values, dtype=np.float32)
    assert bytes(vector_bytes(vector_from_bytes(bytes(vector_bytes(vector))))) == vector.tobytes()


def test_from_bytes_writes_go_to_a_bytearray_and_not_to_bytes() -> None:
    buffer = bytearray(8)
    vector_from_bytes(buffer)[1] = 1.0
    assert buffer.hex() == "000000000000803f"
    assert not vector_from_bytes(bytes(8)).flags.writeable


def test_from_bytes_of_a_broken_length_is_refused() -> None:
    with pytest.raises(LayoutError, match="length must be a multiple of 4 bytes, got 7"):
        vector_from_bytes(bytes(7))


@given(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=5))
def test_parse_gives_the_layout_of_its_json_back(parts: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
    layout = Layout.of(state_of([((2,), torch.float32), *parts]))
    assert Layout.parse(layout.json) == layout


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", "must be a list of name, shape and dtype, got: Expecting value", id="nothing"),
        pytest.param("[" * 100_000, "must be a list of name, shape and dtype, got: ", id="deep"),
        pytest.param('{"a":1}', "must be a list of name, shape and dtype, got: ", id="no-list"),
        pytest.param('[["a",[1]]]', "must be a list of name, shape and dtype, got: ", id="short"),
        pytest.param('[[1,[1],"float32"]]', "a row must have a name", id="name"),
        pytest.param('[["a",[-1],"float32"]]', "a row must have a name, a shape of whole numbers", id="negative"),
        pytest.param('[["a",[true],"float32"]]', "a row must have a name, a shape of whole numbers", id="truth"),
        pytest.param('[["a",[1e3],"float32"]]', "a row must have a name, a shape of whole numbers", id="fraction"),
        pytest.param('[["a",[1],"int64"]]', "a row must have .* and a floating dtype", id="integers"),
        pytest.param('[["a",[1],[]]]', "a row must have .* and a floating dtype", id="dtype"),
        pytest.param('[["a",[0],"float32"]]', "must be canonical JSON with coordinates", id="empty"),
        pytest.param('[["a",[1],"float32"],["a",[2],"float32"]]', "no name twice, got another one", id="twice"),
        pytest.param('[["a", [1], "float32"]]', "must be canonical JSON", id="spaces"),
    ],
)
def test_parse_what_is_no_layout_raises(text: str, problem: str) -> None:
    with pytest.raises(LayoutError, match=problem):
        Layout.parse(text)
