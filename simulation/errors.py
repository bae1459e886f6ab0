"""Errors of simulations.

ChoralError
├── PartitionError    data cannot be dealt to clients as asked
└── SimulationError   a simulation cannot start, or go on, as asked
"""

from wire.errors import ChoralError


class PartitionError(ChoralError):
    """Data cannot be dealt to clients as asked. Nothing was changed."""


class SimulationError(ChoralError):
    """A simulation cannot start, or go on, as asked. Its folder was left as it was."""
