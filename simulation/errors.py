"""Errors of simulations.

ChoralError
└── PartitionError   data cannot be dealt to clients as asked
"""

from wire.errors import ChoralError


class PartitionError(ChoralError):
    """Data cannot be dealt to clients as asked. Nothing was changed."""
