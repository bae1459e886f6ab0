"""What the coordinator remembers: runs, rounds, events, clients and tokens, as values that a store keeps.

Times are UTC seconds since the epoch.
"""

from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from wire.spec import RunSpec


class Record(BaseModel):
    """A value that is stored whole. A change is a new value."""

    # A number that is infinite or none is read back as such, and not as null.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    def with_(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return self.model_copy(update=changes)


class RunState(StrEnum):
    """Where a run stands. `queued` and `running` runs are taken up again when a coordinator starts."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether the run has ended for good."""
        return self in (RunState.FINISHED, RunState.STOPPED, RunState.FAILED)


class RunRecord(Record):
    """One run, as of its last committed round."""

    run_id: str
    spec: RunSpec
    state: RunState
    submitted_time: float
    reason: str = ""
    """Why the run is paused, stopped or failed; one sentence, else empty."""
    round_number: int = 0
    """Last committed round; 0 before the first."""
    model_sha256: str = ""
    """Model after that round."""
    code_version: str = ""
    """Release of Choral that computed it; empty before the first round, and of runs of the earliest releases."""
    metrics: dict[str, float] = {}
    """The last known value of each, as of that round."""
    started_time: float | None = None
    ended_time: float | None = None


class ContributionRecord(Record):
    """One accepted contribution."""

    client_id: str
    weight: int
    example_count: int
    byte_count: int
    train_seconds: float
    metrics: dict[str, float] = {}


class RefusalRecord(Record):
    """One contribution that did not enter the sum, or one evaluation that there is not."""

    client_id: str
    reason: str
    """Lower-case name of a RefusalReason, such as "not_finite"; of an evaluation, also "no_answer"."""
    detail: str


class SignedUploadRecord(Record):
    """What one client has signed of the masked vector that it uploaded. Hexadecimal."""

    client_id: str
    public_key: str
    sha256: str
    """Of the masked vector."""
    signature: str


class AuditRecord(Record):
    """The signed uploads that went into the sum of one session, and what they are bound to. Bytes are hexadecimal."""

    kind: str
    """What clients did first: "train" or "evaluate"."""
    session_id: str
    parameters: str
    nonce: str
    roster_hash: str
    sharers: str
    byte_count: int
    """Length of each masked vector."""
    uploads: list[SignedUploadRecord]


class Moments(Record):
    """When one client of a round did what, UTC, to the millisecond; None for what it did not do, or did unseen."""

    asked: float | None = None
    downloaded: float | None = None
    """When it had the model, and began to train."""
    trained: float | None = None
    uploaded: float | None = None
    """When its contribution had arrived whole."""
    ended: float | None = None
    """When nothing more was waited for from it."""


class RoundState(StrEnum):
    """Where a round stands. A run has at most one open round, the one after its last committed."""

    OPEN = "open"
    COMMITTED = "committed"


class RoundRecord(Record):
    """One round. It is stored open before its clients are asked, and again when it is committed."""

    run_id: str
    number: int
    state: RoundState
    attempt: int = 0
    selected: list[str] = []
    """Clients that were asked, by identity."""
    contributions: list[ContributionRecord] = []
    """Those in the sum. Of masked ones, weight, examples and metrics are 0 and nothing: only their sums are known."""
    example_count: int = 0
    """Examples of all contributions together."""
    session_count: int = 0
    """Sessions of secure aggregation that were held, or begun, for this round."""
    is_opening: bool = False
    """Whether clients were asked to open a masked sum of this round."""
    audits: list[AuditRecord] = []
    """In audit mode, of each session of secure aggregation whose sum was closed, in all attempts."""
    refusals: list[RefusalRecord] = []
    """Of all attempts."""
    evaluation_failures: list[RefusalRecord] = []
    """Clients that were asked to evaluate the new model and did not, by identity; of an evaluation that was lost as a whole, those that
    said why."""
    moments: dict[str, Moments] = {}
    """What the clients of the last attempt did when; in a simulation, nothing."""
    metrics: dict[str, float] = {}
    """Means over the clients: evaluated ones by their name, those of training with the prefix "train_"."""
    spread: dict[str, list[float]] = {}
    """Of what was evaluated on clients: minimum, lower quartile, median, upper quartile, maximum over them. Of masked metrics, nothing."""
    model_sha256: str = ""
    started_time: float = 0.0
    ended_time: float | None = None
    phase_seconds: dict[str, float] = {}
    """Time by phase: select, train, apply, evaluate, commit; of the commit, the checkpoint alone. In a simulation, on its own clock, on
    which computing takes no time."""


class RoundSummary(Record):
    """What a committed round says in numbers, of a size that does not grow with its cohort."""

    number: int
    attempt: int
    started_time: float
    ended_time: float | None
    selected: int
    contributed: int
    refused: dict[str, int]
    """Refusals by reason."""
    bytes: int
    """Of the contributions in the sum."""
    phase_seconds: dict[str, float]
    metrics: dict[str, float]
    """Means over the clients."""
    spread: dict[str, list[float]]
    """Minimum, lower quartile, median, upper quartile, maximum over the clients. Of masked metrics, nothing."""


class Participation(Record):
    """What one client has done in the committed rounds of one run."""

    run_id: str
    client_id: str
    asked: int = 0
    """Rounds that it was asked to take part in."""
    contributed: int = 0
    """Rounds whose sum it is in."""
    refused: dict[str, int] = {}
    """Refusals by reason."""
    bytes: int = 0
    train_seconds: float = 0.0
    last_round: int = 0
    """The last that it was asked to take part in; 0 if there is none."""


class Role(StrEnum):
    """What the bearer of a token may do."""

    VIEWER = "viewer"
    """Look at everything."""
    OPERATOR = "operator"
    """Do everything."""


class TokenRecord(Record):
    """One bearer token of the REST API. Who holds it knows the secret; here is only its hash."""

    name: str
    role: Role
    sha256: str
    """Of the secret, which is random and long: no slower hash is needed."""
    created_time: float
    expires_time: float | None = None
    last_used_time: float | None = None
    """To the minute."""


class EventRecord(Record):
    """Something that happened, for people and for followers of a run."""

    event_id: int = 0
    """Ascending within a store; 0 until stored."""
    time: float
    kind: str
    """Such as "run_submitted", "round_committed", "client_joined"."""
    run_id: str = ""
    client_id: str = ""
    detail: str = ""


class ClientRecord(Record):
    """One client that has joined at least once."""

    client_id: str
    name: str
    device: str = ""
    learners: list[str] = []
    data_kind: str = ""
    example_count: int = 0
    held_out_count: int = 0
    release: str = ""
    is_connected: bool = False
    """Whether it had a session when this was stored. After a crash of the coordinator, such clients are expected back."""
    first_seen_time: float
    last_seen_time: float
