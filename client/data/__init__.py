"""Local data of an edge client: from one text to the examples that it trains on and those it holds out.

What cannot be used is refused here, before the client joins a federation, as a `models.DataError` that names the file and
the row.
"""

from client.data.source import DataSource, load, load_keys, load_local, parse_source
from client.data.split import LocalData, split

__all__ = ["DataSource", "LocalData", "load", "load_keys", "load_local", "parse_source", "split"]
