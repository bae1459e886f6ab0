"""Numbers that both sides of the contract must agree on, and the gRPC settings that follow from them."""

import ipaddress

PROTOCOL_VERSION = 1

SLICE_BYTES = 1 << 20
"""Largest payload of one message of a transfer, in bytes."""

MESSAGE_LIMIT_BYTES = SLICE_BYTES + (64 << 10)
"""Largest message that either side accepts, in bytes: one slice and its envelope, or a task with its spec."""

HEARTBEAT_SECONDS = 5.0
"""A side that has sent nothing for this long sends a heartbeat: proxies count an HTTP/2 stream without data as idle."""

SILENCE_SECONDS = 15.0
"""A side that has heard nothing for this long takes the session for dead."""

HELLO_SECONDS = 10.0
"""Time that a new stream has for its first message."""

STALL_SECONDS = 60.0
"""Longest time in which a transfer may move fewer than `STALL_BYTES`; then it is ended, and its place goes to another."""

STALL_BYTES = 256 << 10
"""Bytes that a transfer must move in every `STALL_SECONDS`, unless it ends before."""

_KEEPALIVE_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 8_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

_SIZE_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
)

CLIENT_OPTIONS: tuple[tuple[str, int], ...] = (
    *_KEEPALIVE_OPTIONS,
    *_SIZE_OPTIONS,
    # Each channel has a connection of its own: gRPC would hand the one of the last session on, which may be dead without a sign.
    ("grpc.use_local_subchannel_pool", 1),
    # The agent has its own backoff; gRPC's must not hold a reconnect back after a coordinator's restart.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
"""Channel options of a client."""

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *_KEEPALIVE_OPTIONS,
    *_SIZE_OPTIONS,
    # A client pings every 10 s; without these a server answers the third ping with GOAWAY "too many pings".
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # Two coordinators on one port would each get half of the clients.
    ("grpc.so_reuseport", 0),
)
"""Server options of a coordinator."""


def is_loopback(address: str) -> bool:
    """Tell whether an address, host and port, can be reached from this machine alone. Plain text needs no permission there.

    A name other than localhost is none, whatever it looks like: a resolver may send it anywhere.
    """
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
