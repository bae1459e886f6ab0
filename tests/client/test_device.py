from collections.abc import Iterator

import pytest
import torch

from client.device import choose_device, set_threads
from wire.errors import ChoralError


@pytest.fixture
def threads() -> Iterator[int]:
    count = torch.get_num_threads()
    yield count
    torch.set_num_threads(count)


def test_choose_device_auto_is_the_fastest_of_this_machine() -> None:
    if torch.cuda.is_available():
        assert choose_device("auto") == torch.device("cuda")
    elif torch.backends.mps.is_available():
        assert choose_device("auto") == torch.device("mps")
    else:
        assert choose_device("auto") == torch.device("cpu")


def test_choose_device_default_is_auto() -> None:
    assert choose_device() == choose_device("auto")


def test_choose_device_cpu_is_the_cpu() -> None:
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("wanted", ["abacus", "", "cuda:99", "cpu:x"])
def test_choose_device_unknown_is_refused_with_its_name(wanted: str) -> None:
    with pytest.raises(
        ChoralError, match=rf"^Device: must be auto or a device of this machine, got '{wanted}': \S"
    ) as caught:
        choose_device(wanted)
    assert "\n" not in str(caught.value)


def test_set_threads_takes_the_count(threads: int) -> None:
    assert set_threads(2) == 2
    assert torch.get_num_threads() == 2


def test_set_threads_without_a_count_changes_nothing(threads: int) -> None:
    assert set_threads(None) == threads
    assert torch.get_num_threads() == threads
