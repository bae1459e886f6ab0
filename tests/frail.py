"""A learner of the user's own that fails where its parameters say, for tests of what is told of it."""

from typing import Any, Literal

from models import Evaluation, Examples
from models.mlp import MLP, MLPParameters
from wire.tensors import State


class FrailParameters(MLPParameters):
    """Parameters of the learner `frail`."""

    fails: Literal["fit", "apply", "evaluate"] = "fit"
    """What fails. The coordinator's step does so in the second round."""


class Frail(MLP):
    """The learner `mlp`, whose training, step or evaluation fails."""

    parameters: FrailParameters
    _steps = 0

    def fit(self, *arguments: Any) -> Any:
        """Train, or raise."""
        if self.parameters.fails == "fit":
            raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED, the device is gone")
        return super().fit(*arguments)

    def apply(self, *arguments: Any) -> State:
        """Take the server step, or raise."""
        self._steps += 1
        if self.parameters.fails == "apply" and self._steps == 2:
            raise RuntimeError("the server step needs 3 tensors, got 2")
        return super().apply(*arguments)

    def evaluate(self, state: State, data: Examples, training: Examples | None = None) -> Evaluation:
        """Measure the state, or raise."""
        if self.parameters.fails == "evaluate":
            raise RuntimeError("the held-out examples are gone")
        return super().evaluate(state, data, training)
