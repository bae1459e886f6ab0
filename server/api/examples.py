"""Examples of what the REST API answers, for its description."""

from typing import Any

from pydantic import BaseModel

from server.access.gate import Caller
from server.api.card import ModelCard
from server.api.clients import ClientDetail, ClientView
from server.api.curves import MetricCurves
from server.api.runs import SPEC, RunView, Sound
from server.api.summaries import ParticipationView
from server.api.timeline import TimelineRow
from server.catalogue import LearnerDetail, LearnerView
from server.monitoring.now import Health
from server.records import EventRecord, RoundRecord, RoundSummary
from wire import RELEASE
from wire.protocol import PROTOCOL_VERSION
from wire.spec import validate_spec

_CLIENT = "5d1c9e7a0b3f48c2a6e4d7f1908b2c35"
_OTHER = "8c04b6f2d17e4a95a3b0e6c19d52f748"
_RUN = "3f2a9c0d1e4b"
_NOON = 1767225600.0
_SPEC = validate_spec(SPEC)
_MODEL = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

_CLIENT_VIEW = {
    "client_id": _CLIENT,
    "name": "ward-7",
    "device": "cpu",
    "learners": ["cnn", "mlp"],
    "data_kind": "csv",
    "example_count": 320,
    "held_out_count": 80,
    "release": RELEASE,
    "is_connected": True,
    "first_seen_time": _NOON - 86400,
    "last_seen_time": _NOON,
    "task_id": f"{_RUN}/3/0/train",
    "phase": "training",
    "fraction": 0.4,
}
_PARTICIPATION = {
    "run_id": _RUN,
    "client_id": _CLIENT,
    "asked": 20,
    "contributed": 19,
    "refused": {"not_finite": 1},
    "bytes": 7991400,
    "train_seconds": 61.5,
    "last_round": 20,
}
_CONTRIBUTION = {
    "client_id": _CLIENT,
    "weight": 320,
    "example_count": 320,
    "byte_count": 420600,
    "train_seconds": 3.25,
    "metrics": {"loss": 0.62},
}
_LEARNER = {
    "name": "mlp",
    "summary": "Multilayer perceptron that classifies vectors or small images.",
    "task": "classify",
    "data": "vectors, small images",
    "parameter_count": 4810,
    "needs": "",
    "needs_torch": False,
    "parameters": {"classes": {"type": "integer, at least 2", "default": 10, "meaning": "Number of classes."}},
}

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
    RunView: {
        "run_id": _RUN,
        "spec": _SPEC.model_dump(mode="json"),
        "state": "running",
        "submitted_time": _NOON - 9,
        "reason": "",
        "round_number": 2,
        "model_sha256": _MODEL,
        "code_version": RELEASE,
        "metrics": {"accuracy": 0.81, "train_loss": 0.62},
        "started_time": _NOON - 8,
        "ended_time": None,
        "phase": "train",
        "status": "round 3: train: waiting for 1 of 2 updates, 41 s left",
        "waiting": {"for": "updates", "have": 1, "need": 2, "seconds_left": 41.0, "until_time": _NOON + 41},
    },
    Sound: {"valid": True},
    ModelCard: {
        "run_id": _RUN,
        "name": "digits-cnn",
        "state": "finished",
        "spec": _SPEC.model_dump(mode="json"),
        "spec_sha256": _SPEC.sha256,
        "privacy": _SPEC.privacy.model_dump(mode="json"),
        "sites": [
            {"client_id": _CLIENT, "name": "ward-7", "data_kind": "csv", "example_count": 320, "rounds": 19},
        ],
        "rounds": 20,
        "metrics": {"accuracy": 0.97, "train_loss": 0.08},
        "model_sha256": _MODEL,
        "code_version": RELEASE,
        "started_time": _NOON - 8,
        "ended_time": _NOON + 60,
    },
    ClientView: _CLIENT_VIEW,
    ClientDetail: {
        **_CLIENT_VIEW,
        "runs": [_PARTICIPATION],
        "contributions": [{**_CONTRIBUTION, "run_id": _RUN, "round_number": 20}],
        "refusals": [
            {
                "client_id": _CLIENT,
                "reason": "not_finite",
                "detail": "must be finite, got nan at coordinate 7",
                "kind": "train",
                "run_id": _RUN,
                "round_number": 2,
            }
        ],
    },
    Caller: {"name": "grafana", "role": "viewer"},
    LearnerView: _LEARNER,
    LearnerDetail: {
        **_LEARNER,
        "explanation": "h_0 = x,  h_i = dropout(act(norm(W_i h_{i-1} + b_i))),  outputs = W h_n + b",
        "parameters_schema": {"type": "object", "properties": {"classes": {"type": "integer", "minimum": 2}}},
        "example": {
            "name": "mlp-digits",
            "learner": {"name": "mlp", "inputs": [1, 8, 8]},
            "rounds": 20,
            "cohort": {"size": 14},
        },
        "command": "choral simulate models/specs/mlp.yaml --data digits --partition by-key",
    },
    ParticipationView: {**_PARTICIPATION, "name": "ward-7"},
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
        "contributions": [_CONTRIBUTION],
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
        "model_sha256": _MODEL,
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
