from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GoodbyeReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GOODBYE_REASON_UNSPECIFIED: _ClassVar[GoodbyeReason]
    GOODBYE_REASON_SHUTDOWN: _ClassVar[GoodbyeReason]
    GOODBYE_REASON_SUPERSEDED: _ClassVar[GoodbyeReason]
    GOODBYE_REASON_SILENT: _ClassVar[GoodbyeReason]
    GOODBYE_REASON_REVOKED: _ClassVar[GoodbyeReason]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_DOWNLOADING: _ClassVar[Phase]
    PHASE_TRAINING: _ClassVar[Phase]
    PHASE_WAITING: _ClassVar[Phase]
    PHASE_UPLOADING: _ClassVar[Phase]
    PHASE_EVALUATING: _ClassVar[Phase]

class VectorEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VECTOR_ENCODING_UNSPECIFIED: _ClassVar[VectorEncoding]
    VECTOR_ENCODING_FLOAT32: _ClassVar[VectorEncoding]
    VECTOR_ENCODING_MASKED: _ClassVar[VectorEncoding]
    VECTOR_ENCODING_SAFETENSORS: _ClassVar[VectorEncoding]

class RefusalReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_REASON_UNSPECIFIED: _ClassVar[RefusalReason]
    REFUSAL_REASON_WRONG_RUN: _ClassVar[RefusalReason]
    REFUSAL_REASON_WRONG_ROUND: _ClassVar[RefusalReason]
    REFUSAL_REASON_WRONG_BASE: _ClassVar[RefusalReason]
    REFUSAL_REASON_WRONG_LAYOUT: _ClassVar[RefusalReason]
    REFUSAL_REASON_NOT_INVITED: _ClassVar[RefusalReason]
    REFUSAL_REASON_DUPLICATE: _ClassVar[RefusalReason]
    REFUSAL_REASON_NOT_FINITE: _ClassVar[RefusalReason]
    REFUSAL_REASON_OUT_OF_RANGE: _ClassVar[RefusalReason]
    REFUSAL_REASON_WRONG_SIZE: _ClassVar[RefusalReason]
    REFUSAL_REASON_TRUNCATED: _ClassVar[RefusalReason]
    REFUSAL_REASON_CORRUPTED: _ClassVar[RefusalReason]
    REFUSAL_REASON_TOO_SLOW: _ClassVar[RefusalReason]
    REFUSAL_REASON_WRONG_WEIGHT: _ClassVar[RefusalReason]
    REFUSAL_REASON_MALFORMED: _ClassVar[RefusalReason]
    REFUSAL_REASON_CLIENT_POLICY: _ClassVar[RefusalReason]
    REFUSAL_REASON_CLIENT_DATA: _ClassVar[RefusalReason]
    REFUSAL_REASON_CLIENT_ERROR: _ClassVar[RefusalReason]
    REFUSAL_REASON_TOO_LATE: _ClassVar[RefusalReason]
GOODBYE_REASON_UNSPECIFIED: GoodbyeReason
GOODBYE_REASON_SHUTDOWN: GoodbyeReason
GOODBYE_REASON_SUPERSEDED: GoodbyeReason
GOODBYE_REASON_SILENT: GoodbyeReason
GOODBYE_REASON_REVOKED: GoodbyeReason
PHASE_UNSPECIFIED: Phase
PHASE_DOWNLOADING: Phase
PHASE_TRAINING: Phase
PHASE_WAITING: Phase
PHASE_UPLOADING: Phase
PHASE_EVALUATING: Phase
VECTOR_ENCODING_UNSPECIFIED: VectorEncoding
VECTOR_ENCODING_FLOAT32: VectorEncoding
VECTOR_ENCODING_MASKED: VectorEncoding
VECTOR_ENCODING_SAFETENSORS: VectorEncoding
REFUSAL_REASON_UNSPECIFIED: RefusalReason
REFUSAL_REASON_WRONG_RUN: RefusalReason
REFUSAL_REASON_WRONG_ROUND: RefusalReason
REFUSAL_REASON_WRONG_BASE: RefusalReason
REFUSAL_REASON_WRONG_LAYOUT: RefusalReason
REFUSAL_REASON_NOT_INVITED: RefusalReason
REFUSAL_REASON_DUPLICATE: RefusalReason
REFUSAL_REASON_NOT_FINITE: RefusalReason
REFUSAL_REASON_OUT_OF_RANGE: RefusalReason
REFUSAL_REASON_WRONG_SIZE: RefusalReason
REFUSAL_REASON_TRUNCATED: RefusalReason
REFUSAL_REASON_CORRUPTED: RefusalReason
REFUSAL_REASON_TOO_SLOW: RefusalReason
REFUSAL_REASON_WRONG_WEIGHT: RefusalReason
REFUSAL_REASON_MALFORMED: RefusalReason
REFUSAL_REASON_CLIENT_POLICY: RefusalReason
REFUSAL_REASON_CLIENT_DATA: RefusalReason
REFUSAL_REASON_CLIENT_ERROR: RefusalReason
REFUSAL_REASON_TOO_LATE: RefusalReason

class JoinRequest(_message.Message):
    __slots__ = ("hello", "heartbeat", "progress", "task_failed", "evaluate_result", "advertise", "shares", "survivor_ack", "unmask")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    TASK_FAILED_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_RESULT_FIELD_NUMBER: _ClassVar[int]
    ADVERTISE_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    SURVIVOR_ACK_FIELD_NUMBER: _ClassVar[int]
    UNMASK_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    progress: Progress
    task_failed: TaskFailed
    evaluate_result: EvaluateResult
    advertise: Advertise
    shares: Shares
    survivor_ack: SurvivorAck
    unmask: Unmask
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., task_failed: _Optional[_Union[TaskFailed, _Mapping]] = ..., evaluate_result: _Optional[_Union[EvaluateResult, _Mapping]] = ..., advertise: _Optional[_Union[Advertise, _Mapping]] = ..., shares: _Optional[_Union[Shares, _Mapping]] = ..., survivor_ack: _Optional[_Union[SurvivorAck, _Mapping]] = ..., unmask: _Optional[_Union[Unmask, _Mapping]] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("challenge", "welcome", "heartbeat", "task", "cancel_task", "goodbye", "roster", "delivery", "survivors", "ack_bundle")
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CANCEL_TASK_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    ACK_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    challenge: Challenge
    welcome: Welcome
    heartbeat: Heartbeat
    task: Task
    cancel_task: CancelTask
    goodbye: Goodbye
    roster: Roster
    delivery: Delivery
    survivors: Survivors
    ack_bundle: AckBundle
    def __init__(self, challenge: _Optional[_Union[Challenge, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., task: _Optional[_Union[Task, _Mapping]] = ..., cancel_task: _Optional[_Union[CancelTask, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., roster: _Optional[_Union[Roster, _Mapping]] = ..., delivery: _Optional[_Union[Delivery, _Mapping]] = ..., survivors: _Optional[_Union[Survivors, _Mapping]] = ..., ack_bundle: _Optional[_Union[AckBundle, _Mapping]] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("protocol_version", "nonce")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    nonce: bytes
    def __init__(self, protocol_version: _Optional[int] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "public_key", "signature", "name", "capabilities", "data", "release")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    public_key: bytes
    signature: bytes
    name: str
    capabilities: Capabilities
    data: DataSummary
    release: str
    def __init__(self, protocol_version: _Optional[int] = ..., public_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., name: _Optional[str] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ..., data: _Optional[_Union[DataSummary, _Mapping]] = ..., release: _Optional[str] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("learners", "device", "thread_count")
    LEARNERS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    THREAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    learners: _containers.RepeatedScalarFieldContainer[str]
    device: str
    thread_count: int
    def __init__(self, learners: _Optional[_Iterable[str]] = ..., device: _Optional[str] = ..., thread_count: _Optional[int] = ...) -> None: ...

class DataSummary(_message.Message):
    __slots__ = ("kind", "example_count", "held_out_count", "example_shape")
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_COUNT_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    example_count: int
    held_out_count: int
    example_shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kind: _Optional[str] = ..., example_count: _Optional[int] = ..., held_out_count: _Optional[int] = ..., example_shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("client_id", "session_token")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    session_token: bytes
    def __init__(self, client_id: _Optional[str] = ..., session_token: _Optional[bytes] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason", "detail")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    reason: GoodbyeReason
    detail: str
    def __init__(self, reason: _Optional[_Union[GoodbyeReason, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("task_id", "run_id", "round", "attempt", "spec_json", "base", "cohort_size", "train", "evaluate", "first_model", "offer")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    COHORT_SIZE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    FIRST_MODEL_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    run_id: str
    round: int
    attempt: int
    spec_json: str
    base: ModelReference
    cohort_size: int
    train: TrainTask
    evaluate: EvaluateTask
    first_model: FirstModelTask
    offer: SessionOffer
    def __init__(self, task_id: _Optional[str] = ..., run_id: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., spec_json: _Optional[str] = ..., base: _Optional[_Union[ModelReference, _Mapping]] = ..., cohort_size: _Optional[int] = ..., train: _Optional[_Union[TrainTask, _Mapping]] = ..., evaluate: _Optional[_Union[EvaluateTask, _Mapping]] = ..., first_model: _Optional[_Union[FirstModelTask, _Mapping]] = ..., offer: _Optional[_Union[SessionOffer, _Mapping]] = ...) -> None: ...

class ModelReference(_message.Message):
    __slots__ = ("sha256", "layout_sha256", "total_bytes")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_SHA256_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    layout_sha256: bytes
    total_bytes: int
    def __init__(self, sha256: _Optional[bytes] = ..., layout_sha256: _Optional[bytes] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class TrainTask(_message.Message):
    __slots__ = ("coordinate_bound", "weight_cap")
    COORDINATE_BOUND_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_CAP_FIELD_NUMBER: _ClassVar[int]
    coordinate_bound: float
    weight_cap: int
    def __init__(self, coordinate_bound: _Optional[float] = ..., weight_cap: _Optional[int] = ...) -> None: ...

class EvaluateTask(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FirstModelTask(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CancelTask(_message.Message):
    __slots__ = ("task_id", "reason")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    reason: str
    def __init__(self, task_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("task_id", "phase", "fraction")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    phase: Phase
    fraction: float
    def __init__(self, task_id: _Optional[str] = ..., phase: _Optional[_Union[Phase, str]] = ..., fraction: _Optional[float] = ...) -> None: ...

class TaskFailed(_message.Message):
    __slots__ = ("task_id", "reason", "detail")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    reason: RefusalReason
    detail: str
    def __init__(self, task_id: _Optional[str] = ..., reason: _Optional[_Union[RefusalReason, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class EvaluateResult(_message.Message):
    __slots__ = ("task_id", "example_count", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    example_count: int
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, task_id: _Optional[str] = ..., example_count: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("session_token", "sha256", "offset")
    SESSION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    session_token: bytes
    sha256: bytes
    offset: int
    def __init__(self, session_token: _Optional[bytes] = ..., sha256: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class DownloadResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("header", "slice")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    slice: Slice
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., slice: _Optional[_Union[Slice, _Mapping]] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("session_token", "task_id", "run_id", "round", "base_sha256", "layout_sha256", "encoding", "total_bytes", "sha256", "weight", "example_count", "metrics", "train_seconds")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SESSION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BASE_SHA256_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_SHA256_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    session_token: bytes
    task_id: str
    run_id: str
    round: int
    base_sha256: bytes
    layout_sha256: bytes
    encoding: VectorEncoding
    total_bytes: int
    sha256: bytes
    weight: int
    example_count: int
    metrics: _containers.ScalarMap[str, float]
    train_seconds: float
    def __init__(self, session_token: _Optional[bytes] = ..., task_id: _Optional[str] = ..., run_id: _Optional[str] = ..., round: _Optional[int] = ..., base_sha256: _Optional[bytes] = ..., layout_sha256: _Optional[bytes] = ..., encoding: _Optional[_Union[VectorEncoding, str]] = ..., total_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ..., weight: _Optional[int] = ..., example_count: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., train_seconds: _Optional[float] = ...) -> None: ...

class Slice(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadResponse(_message.Message):
    __slots__ = ("grant", "verdict")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    grant: UploadGrant
    verdict: UploadVerdict
    def __init__(self, grant: _Optional[_Union[UploadGrant, _Mapping]] = ..., verdict: _Optional[_Union[UploadVerdict, _Mapping]] = ...) -> None: ...

class UploadGrant(_message.Message):
    __slots__ = ("offset",)
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    offset: int
    def __init__(self, offset: _Optional[int] = ...) -> None: ...

class UploadVerdict(_message.Message):
    __slots__ = ("reason", "detail")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    reason: RefusalReason
    detail: str
    def __init__(self, reason: _Optional[_Union[RefusalReason, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class SessionOffer(_message.Message):
    __slots__ = ("federation", "attempt", "nonce", "signature")
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    federation: str
    attempt: int
    nonce: bytes
    signature: bytes
    def __init__(self, federation: _Optional[str] = ..., attempt: _Optional[int] = ..., nonce: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Advertise(_message.Message):
    __slots__ = ("session_id", "client_id", "public_key", "certificate", "encryption_key", "mask_key", "seed_commitment", "signature")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    ENCRYPTION_KEY_FIELD_NUMBER: _ClassVar[int]
    MASK_KEY_FIELD_NUMBER: _ClassVar[int]
    SEED_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    client_id: bytes
    public_key: bytes
    certificate: bytes
    encryption_key: bytes
    mask_key: bytes
    seed_commitment: bytes
    signature: bytes
    def __init__(self, session_id: _Optional[bytes] = ..., client_id: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., certificate: _Optional[bytes] = ..., encryption_key: _Optional[bytes] = ..., mask_key: _Optional[bytes] = ..., seed_commitment: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Roster(_message.Message):
    __slots__ = ("session_id", "members", "signature")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    members: _containers.RepeatedCompositeFieldContainer[Advertise]
    signature: bytes
    def __init__(self, session_id: _Optional[bytes] = ..., members: _Optional[_Iterable[_Union[Advertise, _Mapping]]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Packet(_message.Message):
    __slots__ = ("index", "nonce", "ciphertext")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    index: int
    nonce: bytes
    ciphertext: bytes
    def __init__(self, index: _Optional[int] = ..., nonce: _Optional[bytes] = ..., ciphertext: _Optional[bytes] = ...) -> None: ...

class Shares(_message.Message):
    __slots__ = ("session_id", "packets", "signature")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PACKETS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    packets: _containers.RepeatedCompositeFieldContainer[Packet]
    signature: bytes
    def __init__(self, session_id: _Optional[bytes] = ..., packets: _Optional[_Iterable[_Union[Packet, _Mapping]]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Delivery(_message.Message):
    __slots__ = ("session_id", "sharers", "packets")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SHARERS_FIELD_NUMBER: _ClassVar[int]
    PACKETS_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    sharers: bytes
    packets: _containers.RepeatedCompositeFieldContainer[Packet]
    def __init__(self, session_id: _Optional[bytes] = ..., sharers: _Optional[bytes] = ..., packets: _Optional[_Iterable[_Union[Packet, _Mapping]]] = ...) -> None: ...

class Survivors(_message.Message):
    __slots__ = ("session_id", "survivors", "signature")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    survivors: bytes
    signature: bytes
    def __init__(self, session_id: _Optional[bytes] = ..., survivors: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SurvivorAck(_message.Message):
    __slots__ = ("session_id", "signature")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    signature: bytes
    def __init__(self, session_id: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("index", "signature")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    index: int
    signature: bytes
    def __init__(self, index: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class AckBundle(_message.Message):
    __slots__ = ("session_id", "acks")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ACKS_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    acks: _containers.RepeatedCompositeFieldContainer[Ack]
    def __init__(self, session_id: _Optional[bytes] = ..., acks: _Optional[_Iterable[_Union[Ack, _Mapping]]] = ...) -> None: ...

class HeldShare(_message.Message):
    __slots__ = ("index", "share")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    index: int
    share: bytes
    def __init__(self, index: _Optional[int] = ..., share: _Optional[bytes] = ...) -> None: ...

class Unmask(_message.Message):
    __slots__ = ("session_id", "own_seed", "seed_shares", "key_shares", "missing", "signature")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    OWN_SEED_FIELD_NUMBER: _ClassVar[int]
    SEED_SHARES_FIELD_NUMBER: _ClassVar[int]
    KEY_SHARES_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    own_seed: bytes
    seed_shares: _containers.RepeatedCompositeFieldContainer[HeldShare]
    key_shares: _containers.RepeatedCompositeFieldContainer[HeldShare]
    missing: _containers.RepeatedScalarFieldContainer[int]
    signature: bytes
    def __init__(self, session_id: _Optional[bytes] = ..., own_seed: _Optional[bytes] = ..., seed_shares: _Optional[_Iterable[_Union[HeldShare, _Mapping]]] = ..., key_shares: _Optional[_Iterable[_Union[HeldShare, _Mapping]]] = ..., missing: _Optional[_Iterable[int]] = ..., signature: _Optional[bytes] = ...) -> None: ...
