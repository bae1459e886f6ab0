"""The bearer tokens of the REST API. They lie in the store, hashed, so that every process that serves it has the same at once."""

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from server.errors import StoreError, TokenError
from server.records import Role, TokenRecord
from server.store import Store

log = logging.getLogger(__name__)

NAME_LENGTH = 64
MOST_DAYS = 36_500
USE_SECONDS = 60.0
"""Time in which the use of a token is noted once."""
UNKNOWN = "A valid bearer token must be given, got none or another one."

_DAY_SECONDS = 86_400.0


async def create_token(store: Store, name: str, role: Role, days: int | None = None) -> tuple[TokenRecord, str]:
    """Make a token and return it with its secret, which is nowhere else from now on.

    Args:
        store: Where it is kept.
        name: Tells it from others, 1 to 64 printable characters.
        role: What its bearer may do.
        days: How long it holds; None for ever.

    Raises:
        TokenError: The name or the days break a rule. Nothing was stored.
        ConflictError: There is a token of that name.
    """
    if not 1 <= len(name) <= NAME_LENGTH or not name.isprintable():
        raise TokenError(f"Token: name must be 1 to {NAME_LENGTH} printable characters, got {name[:80]!r}.")
    if days is not None and not 1 <= days <= MOST_DAYS:
        raise TokenError(f"Token {name!r}: days must be 1 to {MOST_DAYS}, got {days}.")
    secret, now = secrets.token_urlsafe(32), time.time()
    expires_time = None if days is None else now + days * _DAY_SECONDS
    token = TokenRecord(
        name=name, role=role, sha256=_hash(secret.encode()), created_time=now, expires_time=expires_time
    )
    await store.add_token(token)
    return token, secret


def bearer(tokens: Sequence[TokenRecord], secret: bytes, now: float) -> TokenRecord:
    """Return the one of `tokens` whose secret is shown. `now` is UTC seconds since the epoch.

    Raises:
        TokenError: It is of none of them, or of one that has run out.
    """
    shown, found = _hash(secret), None
    for token in tokens:
        # Each is compared, and to its end: the time tells nothing.
        if hmac.compare_digest(token.sha256, shown):
            found = token
    if found is None:
        raise TokenError(UNKNOWN)
    if found.expires_time is not None and found.expires_time <= now:
        end = datetime.fromtimestamp(found.expires_time, UTC).strftime("%Y-%m-%d %H:%M")
        raise TokenError(f"Token {found.name!r}: must not have expired, it did on {end} UTC. Ask for a new one.")
    return found


async def note_use(store: Store, token: TokenRecord, now: float) -> None:
    """Note that a token was used, once a minute. A store that cannot be written is no reason to turn its bearer away."""
    if token.last_used_time is not None and now < token.last_used_time + USE_SECONDS:
        return
    try:
        await store.note_token_use(token.name, now)
    except StoreError as error:
        log.warning("token %r: its use could not be noted: %s", token.name, error)


def _hash(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()
