"""What a client must not forget of the sessions of secure aggregation that it took part in, even if it is killed.

A coordinator that could make a client take part twice in one round could open two sums that differ by that client's vector alone. So the
client notes each session before it answers the offer, and each opening before it gives what opens the sum.

Source: CSA-1 (docs/secure-aggregation.md), section "Client".
"""

import sqlite3
from pathlib import Path

from privacy.errors import AbortCode, SecureAggregationError, SessionAbortedError
from privacy.secagg.audit import SignedUpload
from privacy.secagg.session import SessionParameters

_TABLES = """
CREATE TABLE IF NOT EXISTS sessions (
    federation TEXT, task TEXT, round INTEGER, attempt INTEGER, opened_round INTEGER, PRIMARY KEY (federation, task)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uploads (
    session TEXT PRIMARY KEY, task TEXT, round INTEGER, attempt INTEGER, parameters TEXT, nonce TEXT, roster_hash TEXT, sharers TEXT,
    byte_count INTEGER, sha256 TEXT, signature TEXT
) WITHOUT ROWID;
"""


class Journal:
    """Notes in one file, or in memory. Used by one thread at a time."""

    def __init__(self, path: Path | None = None) -> None:
        """Open the file, which is made if it does not exist; without a path, notes last as long as this object.

        Raises:
            SecureAggregationError: The file cannot be opened.
        """
        self._name = f"Journal {path}" if path else "Journal"
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA synchronous = FULL")
            self._file.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise self._error(error) from error

    def begin(self, parameters: SessionParameters) -> None:
        """Note a session.

        Raises:
            SessionAbortedError: It is not later than every session of its task, or its round was opened. Nothing was noted.
            SecureAggregationError: It could not be noted.
        """
        purpose = parameters.purpose
        key, now = (purpose.federation, purpose.task), (purpose.round_number, purpose.attempt)
        try:
            row = self._file.execute(
                "SELECT round, attempt, opened_round FROM sessions WHERE federation = ? AND task = ?", key
            ).fetchone()
            *last, opened_round = row or (0, -1, 0)
            if tuple(last) == now:
                raise SessionAbortedError(
                    AbortCode.LOST, "a session that was begun before this client was started again cannot go on"
                )
            if now < tuple(last):
                raise SessionAbortedError(
                    AbortCode.REPLAY,
                    f"round and attempt must be later than {last[0]} and {last[1]}, which were seen, got {now[0]} and {now[1]}",
                )
            if purpose.round_number <= opened_round:
                raise SessionAbortedError(
                    AbortCode.OPENED, f"a round must be opened once, round {purpose.round_number} was opened before"
                )
            self._file.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, ?) ON CONFLICT (federation, task) "
                "DO UPDATE SET round = excluded.round, attempt = excluded.attempt",
                (*key, *now, opened_round),
            )
        except sqlite3.Error as error:
            raise self._error(error) from error

    def reveal(self, parameters: SessionParameters) -> None:
        """Note that the round of a session is about to be opened. Raises `SecureAggregationError` when that could not be noted."""
        purpose = parameters.purpose
        try:
            self._file.execute(
                "UPDATE sessions SET opened_round = ? WHERE federation = ? AND task = ?",
                (purpose.round_number, purpose.federation, purpose.task),
            )
        except sqlite3.Error as error:
            raise self._error(error) from error

    def note_upload(self, parameters: SessionParameters, upload: SignedUpload) -> None:
        """Note what this client has signed of its masked vector. Raises `SecureAggregationError` when that could not be noted."""
        purpose, terms = parameters.purpose, upload.terms
        signed = (terms.parameters, terms.nonce, terms.roster_hash, terms.sharers)
        values = [terms.session_id.hex(), purpose.task, purpose.round_number, purpose.attempt]
        values += [*(part.hex() for part in signed), terms.byte_count, upload.sha256.hex(), upload.signature.hex()]
        try:
            self._file.execute(f"INSERT OR REPLACE INTO uploads VALUES ({', '.join('?' * len(values))})", values)
        except sqlite3.Error as error:
            raise self._error(error) from error

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def _error(self, error: Exception) -> SecureAggregationError:
        return SecureAggregationError(f"{self._name}: must be readable and writable, got: {error}.")
