"""Examples of what the REST API answers, for its description."""

from typing import Any

from pydantic import BaseModel

from server.api.summaries import ParticipationView
from server.api.timeline import TimelineRow
from server.curves import MetricCurves
from server.now import Health
from server.records import EventRecord, RoundRecord, RoundSummary
from wire.protocol import PROTOCOL_VERSION

_CLIENT = "5d1c9e7a0b3f48c2a6e4d7f1908b2c35"
_OTHER = "8c04b6f2d17e4a95a3b0e6c19d52f748"
_RUN = "3f2a9c0d1e4b"
_NOON = 1767225600.0

EXAMPLES: dict[type[BaseModel], dict[str, Any]] = {
    EventRecord: {
        "event_id": 7,
        "time": _NOON,
        "kind": "round_committed",
        "run_id": _RUN,
        "client_id": "",
        "detail": "round 2",
    },
    RoundSummary: {
        "number": 2,
        "attempt": 0,
        "started_time": _NOON,
        "ended_time": _NOON + 4.5,
        "selected": 10,
        "contributed": 9,
        "refused": {"not_finite": 1},
        "bytes": 3785400,
        "phase_seconds": {"select": 0.01, "train": 3.2, "apply": 0.05, "evaluate": 1.1, "commit": 0.02},
        "metrics": {"accuracy": 0.81, "train_loss": 0.62},
        "spread": {"accuracy": [0.74, 0.79, 0.81, 0.84, 0.88], "train_loss": [0.5, 0.58, 0.61, 0.66, 0.8]},
    },
    MetricCurves: {
        "rounds": [25, 50],
        "series": {"accuracy": {"mean": [0.72, 0.9], "low": [0.51, 0.83], "high": [0.85, None]}},
    },
    ParticipationView: {
        "run_id": _RUN,
        "client_id": _CLIENT,
        "asked": 20,
        "contributed": 19,
        "refused": {"not_finite": 1},
        "bytes": 7991400,
        "train_seconds": 61.5,
        "last_round": 20,
        "name": "ward-7",
    },
    TimelineRow: {
        "asked": _NOON,
        "downloaded": _NOON + 0.25,
        "trained": _NOON + 3.5,
        "uploaded": None,
        "ended": _NOON + 4.5,
        "client_id": _CLIENT,
        "name": "ward-7",
        "outcome": "lost",
        "reason": "",
        "detail": "",
        "evaluation_reason": "no_answer",
        "evaluation_detail": "nothing came of it in time",
    },
    RoundRecord: {
        "run_id": _RUN,
        "number": 2,
        "state": "committed",
        "attempt": 0,
        "selected": [_CLIENT, _OTHER],
        "contributions": [
            {
                "client_id": _CLIENT,
                "weight": 320,
                "example_count": 320,
                "byte_count": 420600,
                "train_seconds": 3.25,
                "metrics": {"loss": 0.62},
            }
        ],
        "example_count": 320,
        "session_count": 0,
        "is_opening": False,
        "audits": [],
        "refusals": [
            {"client_id": _OTHER, "reason": "not_finite", "detail": "must be finite, got nan at coordinate 7"}
        ],
        "evaluation_failures": [
            {"client_id": _CLIENT, "reason": "client_error", "detail": "RuntimeError: out of memory"}
        ],
        "moments": {
            _CLIENT: {
                "asked": _NOON,
                "downloaded": _NOON + 0.25,
                "trained": _NOON + 3.5,
                "uploaded": _NOON + 3.75,
                "ended": _NOON + 3.75,
            }
        },
        "metrics": {"refused_not_finite": 1.0, "train_loss": 0.62},
        "spread": {},
        "model_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "started_time": _NOON,
        "ended_time": _NOON + 4.5,
        "phase_seconds": {"select": 0.01, "train": 3.75, "apply": 0.05, "evaluate": 0.5, "commit": 0.02},
    },
    Health: {
        "status": "ok",
        "protocol_version": PROTOCOL_VERSION,
        "uptime_seconds": 86400.0,
        "client_count": 12,
        "longest_stall_seconds": 0.021,
        "rss_bytes": 312000000,
        "peak_rss_bytes": 402000000,
    },
}
