"""Errors of simulations.

ChoralError
├── PartitionError    data cannot be dealt to clients as asked
└── SimulationError   a simulation cannot start, or go on, as asked
    └── WorkerLostError   a worker of an engine died

SpecError (wire)
└── UnsuitedEngineError   an engine cannot train a spec
"""

from wire.errors import ChoralError, SpecError


class PartitionError(ChoralError):
    """Data cannot be dealt to clients as asked. Nothing was changed."""


class SimulationError(ChoralError):
    """A simulation cannot start, or go on, as asked. Its folder was left as it was."""


class UnsuitedEngineError(SpecError):
    """An engine cannot train a spec as the serial one would. Nothing was started.

    Attributes:
        reason: Why, in a few words.
    """

    def __init__(self, engine: str, reason: str) -> None:
        super().__init__(f"Run spec: the {engine} engine cannot train it: {reason}. Take processes or serial.")
        self.reason = reason


class WorkerLostError(SimulationError):
    """A worker of an engine died. What it was at must be done again."""
