"""Errors of simulations.

ChoralError
├── PartitionError    data cannot be dealt to clients as asked
└── SimulationError   a simulation cannot start, or go on, as asked
    └── WorkerLostError   a worker of an engine died
"""

from wire.errors import ChoralError


class PartitionError(ChoralError):
    """Data cannot be dealt to clients as asked. Nothing was changed."""


class SimulationError(ChoralError):
    """A simulation cannot start, or go on, as asked. Its folder was left as it was."""


class WorkerLostError(SimulationError):
    """A worker of an engine died. What it was at must be done again."""
