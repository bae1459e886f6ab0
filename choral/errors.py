"""Errors of the command line.

ChoralError
├── OutputError       a file cannot be written
└── PictureError      a picture cannot be drawn as asked
"""

from wire.errors import ChoralError


class OutputError(ChoralError):
    """A file cannot be written."""


class PictureError(ChoralError):
    """A picture cannot be drawn as asked. No file was written."""
