"""Errors of the edge client.

ChoralError
├── PolicyError          the site's policy forbids a task
├── RejectedError        the coordinator will not have this client; coming back does not help
├── ConnectionLostError  the connection broke; coming back helps
└── RoundClosedError     no open round of the coordinator asks for a task
"""

from wire.errors import ChoralError


class PolicyError(ChoralError):
    """The site's policy forbids a task, or cannot be read. Nothing was run."""


class RejectedError(ChoralError):
    """The coordinator will not have this client as it is; coming back does not help."""


class ConnectionLostError(ChoralError):
    """The connection to the coordinator broke or never came about; coming back helps."""


class RoundClosedError(ChoralError):
    """No open round asks for a task: it has closed, is settled, or is not open again yet after a restart. Nothing was changed."""
