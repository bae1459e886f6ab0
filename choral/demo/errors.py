"""Errors of the demo.

ChoralError
└── DemoError   the demo cannot go on; every process that it started is ended
"""

from wire.errors import ChoralError


class DemoError(ChoralError):
    """The demo cannot go on. Every process that it started is ended; files that it wrote stay."""
