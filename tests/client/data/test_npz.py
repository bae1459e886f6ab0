import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.data import load, load_keys, parse_source
from models.errors import DataError

GOOD = np.array([[1, 2], [3, 4]])


def save(folder: Path, **arrays: Any) -> Path:
    path = folder / "site.npz"
    np.savez(path, **arrays)
    return path


def test_load_npz_integers_become_float32_and_targets_int64(tmp_path: Path) -> None:
    path = save(tmp_path, x=GOOD.astype(np.uint8), y=np.array([0, 1], dtype=">i2"))
    examples = load(parse_source(f"npz:{path}"))
    assert (examples.inputs.dtype, examples.targets.dtype) == (torch.float32, torch.int64)
    assert examples.inputs.tolist() == [[1, 2], [3, 4]]
    assert examples.targets.tolist() == [0, 1]


def test_load_npz_codes_and_names_are_taken_as_asked(tmp_path: Path) -> None:
    path = save(tmp_path, text=GOOD, following=GOOD + 1.0)
    examples = load(parse_source(f"npz:{path},inputs=text,targets=following,codes=true"))
    assert examples.inputs.dtype == torch.int64
    assert examples.targets.tolist() == [[2, 3], [4, 5]]


def test_load_npz_keeps_the_shape_of_inputs_in_fortran_order(tmp_path: Path) -> None:
    values = np.arange(24.0).reshape(2, 1, 3, 4)
    path = save(tmp_path, x=np.asfortranarray(values), y=np.array([True, False]))
    examples = load(parse_source(f"npz:{path}"))
    np.testing.assert_array_equal(examples.inputs.numpy(), values)
    assert examples.targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        pytest.param(np.array([0, 1]), [[0], [1]], id="one"),
        pytest.param(np.array([[0.5], [1.5]]), [[0.5], [1.5]], id="column"),
        pytest.param(np.arange(4.0).reshape(2, 2), [[0, 1], [2, 3]], id="several"),
    ],
)
def test_load_npz_values_are_float32_with_an_axis_of_their_own(
    tmp_path: Path, targets: npt.NDArray[Any], expected: list[list[float]]
) -> None:
    examples = load(parse_source(f"npz:{save(tmp_path, x=GOOD, y=targets)},values=true"))
    assert examples.targets.dtype == torch.float32
    assert examples.targets.tolist() == expected


def test_load_npz_unlabelled_needs_no_targets(tmp_path: Path) -> None:
    source = parse_source(f"npz:{save(tmp_path, x=GOOD, k=[5, 6])},unlabelled=true,ragged=true,key=k")
    examples = load(source)
    assert (examples.targets.dtype, examples.targets.shape) == (torch.int64, (2, 0))
    assert load_keys(source).tolist() == [5, 6]


def test_load_npz_ragged_sequences_end_in_nan_or_padding(tmp_path: Path) -> None:
    sequences = np.array([[[1, 2], [3, 4]], [[5, 6], [np.nan, np.nan]]])
    tags = [[7, 8], [9, -1]]
    path = save(tmp_path, x=sequences, y=tags)
    examples = load(parse_source(f"npz:{path},ragged=true"))
    np.testing.assert_array_equal(examples.inputs.numpy(), sequences)
    assert examples.targets.tolist() == tags
    codes = load(parse_source(f"npz:{path},ragged=true,codes=true,inputs=y"))
    assert codes.inputs.tolist() == tags
    values = load(parse_source(f"npz:{path},ragged=true,values=true,targets=x"))
    np.testing.assert_array_equal(values.targets.numpy(), sequences)


def test_load_npz_ragged_classes_are_one_an_example(tmp_path: Path) -> None:
    path = save(tmp_path, x=[[1, np.nan], [2, 3]], y=[0, 1])
    assert load(parse_source(f"npz:{path},ragged=true")).targets.tolist() == [0, 1]


@pytest.mark.parametrize("options", ["", ",codes=true"])
def test_load_npz_ragged_sequences_without_steps_are_refused(tmp_path: Path, options: str) -> None:
    path = save(tmp_path, x=GOOD[:, :0], y=[0, 1])
    with pytest.raises(DataError, match=r"row 0 .* sequence must have at least 1 step"):
        load(parse_source(f"npz:{path},ragged=true{options}"))


@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    holes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=3),
    codes=st.booleans(),
)
def test_load_npz_ragged_any_padding_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], holes: list[tuple[int, int]], codes: bool
) -> None:
    inputs = np.where(np.arange(4) < np.array(lengths)[:, None], 1.0, -1 if codes else np.nan)
    for row, step in holes:
        inputs[row % len(lengths), step] = inputs[0, 3]
    path = save(tmp_path_factory.getbasetemp(), x=inputs, y=np.zeros(len(lengths)))
    source = parse_source(f"npz:{path},ragged=true,codes={codes}")
    found = [row.tolist().count(1.0) for row in inputs]
    if all(count and (row[:count] == 1).all() for row, count in zip(inputs, found, strict=True)):
        np.testing.assert_array_equal(load(source).inputs.numpy(), inputs)
        return
    with pytest.raises(DataError, match=r"row \d+ \(the first is 0\): (sequence|-1|NaN) must"):
        load(source)


NAN = np.nan


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        pytest.param(
            {"x": [[1, 2], [NAN, 3]]}, "", "NaN must stand at the end of a sequence alone, got a value", id="nan"
        ),
        pytest.param({"x": [[1, 2], [NAN, NAN]]}, "", "sequence must have at least 1 step, got NaN alone", id="empty"),
        pytest.param({"x": [[[1, 2]], [[3, NAN]]]}, "", "NaN must fill a step, got a part of one. Mend", id="part"),
        pytest.param({"x": [[1, 2], [np.inf, NAN]]}, "", "values must be finite in float32, got inf", id="infinite"),
        pytest.param({"x": [[1, 2], [-1, 3]]}, ",codes=true", "-1 must stand at the end of a sequence", id="codes"),
        pytest.param({"x": [[1, 2], [-1, -1]]}, ",codes=true", "sequence must have at least 1 step", id="no-codes"),
        pytest.param({"x": GOOD, "y": [[1, 2], [-1, 3]]}, "", "-1 must stand at the end of a sequence", id="targets"),
        pytest.param({"x": GOOD, "y": [1, NAN]}, ",values=true", "sequence must have at least 1 step", id="value"),
    ],
)
def test_load_npz_ragged_padding_elsewhere_is_refused(
    tmp_path: Path, arrays: dict[str, Any], options: str, message: str
) -> None:
    path = save(tmp_path, **{"y": np.arange(2), **arrays})
    name = "y" if "y" in arrays else "x"
    subject = re.escape(f"NPZ file {path}, array {name!r}, row 1 (the first is 0)")
    with pytest.raises(DataError, match=f"^{subject}: {re.escape(message)}"):
        load(parse_source(f"npz:{path},ragged=true{options}"))


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        pytest.param({"x": GOOD}, "", ": arrays must include 'y', got x. Name them with", id="no-targets"),
        pytest.param({"x": GOOD, "y": GOOD[0]}, ",inputs=z", ": arrays must include 'z', got x, y", id="no-inputs"),
        pytest.param(
            {"x": GOOD, "y": np.arange(3)}, "", ": inputs and targets must be equally many .* got 2 and 3", id="lengths"
        ),
        pytest.param(
            {"x": GOOD[:0], "y": np.arange(0)},
            "",
            ": inputs and targets must be .* at least 1, got 0 and 0",
            id="empty",
        ),
        pytest.param(
            {"x": GOOD[0], "y": GOOD[0]}, "", r": inputs must have the axes \(examples, ...\).* got \(2,\)", id="flat"
        ),
        pytest.param(
            {"x": GOOD, "y": np.array(1)}, "", r": .*targets \(examples,\) or more, .* and \(\)", id="one-target"
        ),
        pytest.param(
            {"x": GOOD * 1j, "y": GOOD[0]}, "", ", array 'x': values must be real numbers, got complex128", id="complex"
        ),
        pytest.param({"x": GOOD, "y": ["a", "b"]}, "", ", array 'y': values must be real numbers, got <U1", id="text"),
        pytest.param(
            {"x": [[1, 2], [3, np.nan]], "y": GOOD[0]},
            "",
            r", array 'x', row 1 \(the first is 0\): .* finite .* got nan",
            id="nan",
        ),
        pytest.param(
            {"x": [[1, 1e39], [3, 4]], "y": GOOD[0]}, "", r", array 'x', row 0 .* finite .* got 1e\+39", id="too-large"
        ),
        pytest.param(
            {"x": GOOD, "y": [0, 0.5]}, "", ", array 'y', row 1 .* must be whole numbers .* got 0.5", id="fraction"
        ),
        pytest.param(
            {"x": GOOD, "y": [np.inf, 1]}, "", ", array 'y', row 0 .* must be whole numbers .* got inf", id="inf"
        ),
        pytest.param(
            {"x": GOOD, "y": np.array([1, 2**63], dtype=np.uint64)},
            "",
            ", array 'y', row 1 .* within 64 bits",
            id="uint64",
        ),
        pytest.param(
            {"x": GOOD / 2, "y": GOOD[0]}, ",codes=true", ", array 'x', row 0 .* whole numbers .* got 0.5", id="codes"
        ),
    ],
)
def test_load_npz_unusable_arrays_are_refused(
    tmp_path: Path, arrays: dict[str, Any], options: str, message: str
) -> None:
    path = save(tmp_path, **arrays)
    with pytest.raises(DataError, match=f"^NPZ file {re.escape(str(path))}{message}"):
        load(parse_source(f"npz:{path}{options}"))


def test_load_npz_objects_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.array([[object()]], dtype=object).astype(str).astype(object), y=np.array([0]))
    with pytest.raises(
        DataError, match="must be a NumPy archive without objects, got an error: Object arrays cannot be loaded"
    ):
        load(parse_source(f"npz:{path}"))


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut off"])
def test_load_npz_other_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "site.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"NPZ file {re.escape(str(path))}: file must be a NumPy archive"):
        load(parse_source(f"npz:{path}"))


def test_load_npz_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.arange(2000.0).reshape(1000, 2), y=np.zeros(1000))
    content = bytearray(path.read_bytes())
    content[5000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"file must be a NumPy archive without objects, got .*CRC"):
        load(parse_source(f"npz:{path}"))


def test_load_npz_encrypted_archive_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, x=GOOD, y=GOOD[0])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"file must be a NumPy archive without objects, got .* encrypted"):
        load(parse_source(f"npz:{path}"))


def test_load_npz_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "site.npy", GOOD)
    with pytest.raises(DataError, match=r"must be an archive, got a single array. Save it with numpy.savez"):
        load(parse_source(f"npz:{tmp_path / 'site.npy'}"))
