"""The server step without torch is to the bit that with torch, for every learner that is said to need none."""

import numpy as np
import pytest

from models import MODELS
from models.examples import example_of
from server.model import Model, ModelShop
from server.plain import PlainShop
from wire.spec import RunSpec, ServerSpec

PLAIN = [name for name, model in MODELS.items() if not model.needs_torch]


def spec_of(name: str) -> RunSpec:
    """Return a learner's example with the default server step."""
    return example_of(name).spec.model_copy(update={"server": ServerSpec()})


def test_learners_that_need_torch_are_those_with_a_server_step_of_their_own_or_a_base() -> None:
    needing = {"rbf_network", "bayesian_network", "ddpm", "score_matching", "evolution", "genetic"}
    assert set(MODELS) - set(PLAIN) == needing | {"hf_causal_lm", "hf_sequence_classifier"}


@pytest.mark.parametrize("name", PLAIN)
def test_next_is_to_the_bit_that_with_torch(name: str) -> None:
    shop = ModelShop(spec_of(name))
    model = shop.initial()
    generator = np.random.default_rng(1)
    scales = 10.0 ** generator.integers(-12, 3, model.layout.size)
    mean = (generator.normal(size=model.layout.size) * scales).astype(np.float32)
    # Zeros of either sign, on either side.
    vector = model.vector.copy()
    vector[:8] = [0.0, -0.0, 0.0, -0.0, 1.0, -0.0, 3e-45, 1e30]
    mean[:8] = [0.0, -0.0, -0.0, 0.0, -0.0, 1.0, -1e-45, 3e38]
    model = Model.of(vector, model.layout, {}, model.constants)
    expected = shop.next(model, mean.copy(), 3, 1)
    found = PlainShop(model.layout).next(model, mean.copy(), 3, 1)
    assert found.sha256 == expected.sha256
    assert (found.layout, found.slots) == (expected.layout, expected.slots)
    assert found.constants == expected.constants
    assert shop.contribution_layout == model.layout
    assert np.array_equal(model.vector, vector)
