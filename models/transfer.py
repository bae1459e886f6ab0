"""Transfer learning: a run that begins with the tensors of a model that is trained already, all or some of which it then trains.

Feature extraction freezes what is taken over and trains a new last layer; fine-tuning trains everything from there.

Source: Yosinski, Clune, Bengio and Lipson, "How transferable are features in deep neural networks?", NeurIPS 2014.
https://arxiv.org/abs/1411.1792
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.bases import find_base
from wire.errors import LearnerError
from wire.saved import OPTIMIZER_PREFIX


def read_tensors(name: str, sha256: str | None) -> Mapping[str, Tensor]:
    """Return the tensors of a base that is a file.

    Args:
        name: The base.
        sha256: What its file must have; None to take any.

    Raises:
        LearnerError: There is no such base, it is another than is wanted, or no safetensors file.
    """
    path = find_base(name, sha256)
    if path.is_dir():
        raise LearnerError(f"Base {name}: must be a file {name}.safetensors to initialize from, got a folder.")
    return _loaded(path, name)


def chosen(patterns: Sequence[str], names: Iterable[str], what: str) -> frozenset[str]:
    """Return the names that a pattern matches, such as "0.*".

    Args:
        patterns: The patterns.
        names: Of the model's tensors.
        what: Whose patterns they are, such as "Learner mlp: freeze", for the error.

    Raises:
        LearnerError: A pattern matches none.
    """
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise LearnerError(f"{what} must match tensors of the model, got {pattern!r}. They are {', '.join(names)}.")
    return frozenset(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def taken_over(own: Mapping[str, Tensor], base: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Return the tensors of a base that have a place in a model: the same name and shape.

    Args:
        own: The model's tensors that may be taken over.
        base: The base's.
        what: What names the base, such as "Learner mlp: initialize_from", for the error.

    Raises:
        LearnerError: None has a place.
    """
    found = {name: base[name] for name, tensor in own.items() if name in base and base[name].shape == tensor.shape}
    if not any(tensor.is_floating_point() for tensor in found.values()):
        raise LearnerError(
            f"{what} must have tensors of the model's names and shapes, got {_listed(base)}. "
            f"The model has {_listed(own)}."
        )
    return found


def _loaded(path: Path, name: str) -> Mapping[str, Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise LearnerError(f"Base {name}: must be a readable safetensors file, got: {error}.") from error
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(OPTIMIZER_PREFIX)}


def _listed(tensors: Mapping[str, Tensor]) -> str:
    shown = [f"{name} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:6]]
    return ", ".join(shown) + (", ..." if len(tensors) > len(shown) else "")
