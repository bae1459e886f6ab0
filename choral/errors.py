"""Errors of the command line.

ChoralError
└── PictureError      a picture cannot be drawn as asked
"""

from wire.errors import ChoralError


class PictureError(ChoralError):
    """A picture cannot be drawn as asked. No file was written."""
