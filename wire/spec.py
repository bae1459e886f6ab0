"""The run spec: one file that describes a run, the same for simulation, submission and the REST API.

Reading a spec checks everything that can be known without the zoo; `models.check_spec` adds the learner's and optimizers' own parameters.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from wire.document import parse_document
from wire.errors import SpecError
from wire.realism import SimulationSpec
from wire.schedule import ScheduleSpec
from wire.secure import PrivacySpec, SecureAggregationSpec
from wire.validation import Strict, explain, findings, shown

SPEC_BYTES = 256 << 10
"""Longest canonical JSON of a spec."""

MOST_EXAMPLES = 1_000_000
"""Most examples in a step."""

MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class Named(BaseModel):
    """Something chosen by name, with parameters of its own that the zoo checks."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, use_attribute_docstrings=True)

    name: str
    """Name, as `choral models` prints it."""

    @model_validator(mode="after")
    def _plain(self) -> Self:
        for key, value in self.parameters.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{key} must be plain data without NaN and infinity, got {shown(value)}") from error
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})

    @property
    def base(self) -> str | None:
        """The trained model that a learner starts from, which lies on each machine under this name; None for one that is drawn."""
        found = self.parameters.get("initialize_from") or self.parameters.get("base")
        return None if found is None else str(found)


class StopWhen(Strict):
    """Ends a run early, once an evaluation reaches a value."""

    metric: MetricName
    """Name of an evaluated metric, such as "accuracy"."""
    at_least: float | None = None
    """Stop when the metric is this or higher."""
    at_most: float | None = None
    """Stop when the metric is this or lower."""

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            found = "neither" if self.at_least is None else "both"
            raise ValueError(f"must have exactly one of at_least and at_most, got {found}")
        return self

    def is_reached(self, metrics: dict[str, float]) -> bool:
        """Tell whether `metrics` has the metric at its bound or beyond."""
        value = metrics.get(self.metric)
        if value is None:
            return False
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)


class CohortSpec(Strict):
    """Who takes part in a round, and when it closes."""

    size: int | None = Field(default=None, ge=1, le=100_000)
    """Contributions that a round needs. Give this or `fraction`."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """The same as a part of the clients that are present when the round starts, rounded up."""
    quorum: int | None = Field(default=None, ge=1)
    """Fewest contributions that a round may close with at its deadline. Default: `size`, or 1 with `fraction`."""
    over_selection: float = Field(default=1.0, ge=1, le=10)
    """Clients asked for each contribution needed. Above 1, a round closes as soon as `size` contributions are in."""
    deadline_seconds: float = Field(default=600.0, gt=0, le=30 * 86_400)
    """Longest time from asking to closing, seconds."""
    wait_seconds: float = Field(default=300.0, ge=0, le=30 * 86_400)
    """Longest wait for enough clients before a round, seconds. Then the run goes on with a quorum, or pauses."""
    return_seconds: float = Field(default=10.0, ge=0, le=86_400)
    """How long a round keeps the place of a client that has dropped off, seconds, once the quorum is in, or others could take the place."""
    retries: int = Field(default=2, ge=0, le=100)
    """How often a round without a quorum is started over before the run pauses."""

    @model_validator(mode="after")
    def _size_or_fraction(self) -> Self:
        if (self.size is None) == (self.fraction is None):
            found = "neither" if self.size is None else "both"
            raise ValueError(f"must have exactly one of size and fraction, got {found}")
        if self.size is not None and self.quorum is not None and self.quorum > self.size:
            raise ValueError(f"quorum must be at most size ({self.size}), got {self.quorum}")
        return self

    @property
    def fewest(self) -> int:
        """The quorum, with its default."""
        return self.quorum if self.quorum is not None else (self.size or 1)


Scheduled = TypeVar("Scheduled", "LocalSpec", "ServerSpec")


def _require_rate(part: Scheduled) -> Scheduled:
    if part.schedule is not None and "learning_rate" not in part.optimizer.parameters:
        raise ValueError("schedule must have an optimizer.learning_rate to multiply, got none")
    return part


def _all_examples(value: object) -> object:
    if isinstance(value, str) and value != "all":
        raise ValueError(f"must be a number of examples or 'all', got {shown(value)}")
    return MOST_EXAMPLES if value == "all" else value


class LocalSpec(Strict):
    """What a client does with the model in one round."""

    epochs: int = Field(default=1, ge=0, le=10_000)
    """Passes over the local data. 0 trains nothing, which measures the service itself."""
    batch_size: Annotated[int, Field(ge=1, le=MOST_EXAMPLES), BeforeValidator(_all_examples)] = 32
    """Examples in a step; `all` for every example of a client, which is gradient descent without sampling."""
    optimizer: Named = Named(name="sgd", learning_rate=0.1)
    """Any optimizer of torch.optim by its name in lower case, with its parameters; `learning_rate` is `lr`."""
    proximal_mu: float = Field(default=0.0, ge=0)
    """FedProx: adds mu/2 * ||w - w_global||^2 to the local loss (Li et al. 2020)."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest L2 norm of a step's gradient over all parameters; larger ones are scaled down."""
    schedule: ScheduleSpec | None = None
    """How the optimizer's learning rate changes from round to round."""

    _rate = model_validator(mode="after")(_require_rate)


class ServerSpec(Strict):
    """What the coordinator does with the mean of the contributions."""

    optimizer: Named = Named(name="sgd", learning_rate=1.0)
    """Steps on minus the mean. SGD with 1.0 is FedAvg, with momentum FedAvgM; Adam and Adagrad are FedAdam and FedAdagrad."""
    schedule: ScheduleSpec | None = None
    """How its learning rate changes from round to round."""

    _rate = model_validator(mode="after")(_require_rate)


class EvaluateSpec(Strict):
    """When and where the model is evaluated, always on data that was not trained on."""

    every: int = Field(default=1, ge=0)
    """Rounds between evaluations; the last round is always evaluated. 0: never."""
    on: Literal["clients", "coordinator"] = "clients"
    """`clients`: each on its held-out part, means weighted by examples. `coordinator`: on data of its own."""


class LimitsSpec(Strict):
    """What a contribution may be. The finer the bounds, the finer the grid that it is rounded to."""

    coordinate_bound: float = Field(default=128.0, ge=2.0**-40, le=2.0**40)
    """Largest magnitude of one coordinate of a contribution."""
    weight_cap: int = Field(default=1 << 20, ge=1, le=1 << 29)
    """Largest weight; clients with more examples count as if they had this many."""


class RunSpec(Strict):
    """One run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """A name for people: letters, digits, dot, dash and underscore."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Every random draw of the run follows from it."""
    learner: Named
    """The model and its parameters; `choral models` lists them."""
    rounds: int = Field(ge=1, le=1_000_000)
    """Rounds to run."""
    stop_when: StopWhen | None = None
    cohort: CohortSpec
    local: LocalSpec = LocalSpec()
    server: ServerSpec = ServerSpec()
    weight_by: Literal["examples", "quality"] = "examples"
    """`examples`: n. `quality`: n * exp(-5 * loss), where loss is that of the client's trained model on its held-out data."""
    evaluate: EvaluateSpec = EvaluateSpec()
    limits: LimitsSpec = LimitsSpec()
    privacy: PrivacySpec = PrivacySpec()
    simulation: SimulationSpec | None = None
    """How simulated clients behave; a deployed coordinator ignores it."""

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.stop_when is not None and self.evaluate.every == 0:
            raise ValueError("stop_when must have evaluations to look at: evaluate.every must be at least 1, got 0")
        most_clients = int((self.cohort.size or 100_000) * self.cohort.over_selection) + 1
        if most_clients * self.limits.weight_cap * self.limits.coordinate_bound >= 2.0**62:
            raise ValueError(
                "limits.coordinate_bound * limits.weight_cap * clients must be below 2**62, "
                f"got {self.limits.coordinate_bound} * {self.limits.weight_cap} * {most_clients}"
            )
        return self

    @property
    def secure(self) -> SecureAggregationSpec | None:
        """How updates are masked, or nothing where they travel in the clear."""
        return self.privacy.secure_aggregation

    @property
    def weight_cap(self) -> int:
        """Largest weight of a contribution."""
        return self.secure.weight_cap if self.secure else self.limits.weight_cap

    def local_in(self, round_number: int) -> LocalSpec:
        """Return what a client does in a round: `local` with the learning rate of that round."""
        return _at_round(self.local, round_number, self.rounds)

    def server_in(self, round_number: int) -> ServerSpec:
        """Return what the coordinator does in a round: `server` with the learning rate of that round."""
        return _at_round(self.server, round_number, self.rounds)

    def canonical_json(self) -> str:
        """Return the spec as JSON with sorted keys: equal specs give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()


def _at_round(part: Scheduled, round_number: int, round_count: int) -> Scheduled:
    if part.schedule is None:
        return part
    rate = part.optimizer.parameters["learning_rate"] * part.schedule.factor(round_number, round_count)
    optimizer = part.optimizer.model_copy(update={"learning_rate": rate})
    return part.model_copy(update={"optimizer": optimizer})


def parse_spec(text: str, source: str = "Run spec") -> RunSpec:
    """Read a spec from YAML or JSON text.

    Args:
        text: The spec; JSON is YAML too.
        source: What to call it in errors, such as its path.

    Raises:
        SpecError: The text is not YAML, or a key, type or combination breaks a rule; each problem is named with its key and value.
    """
    return validate_spec(parse_document(text, source), source)


def validate_spec(document: object, source: str = "Run spec") -> RunSpec:
    """Build a spec from parsed YAML or JSON. Raises as `parse_spec`."""
    if not isinstance(document, dict):
        raise SpecError(f"{source}: must be a mapping of keys to values, got {type(document).__name__}.")
    try:
        # Through JSON, so that a spec means the same in a file, in a request and in a task.
        spec = RunSpec.model_validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        raise SpecError(explain(error, source), findings=findings(error)) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError(f"{source}: must be plain mappings, lists, text and numbers: {error}.") from error
    if (byte_count := len(spec.canonical_json())) > SPEC_BYTES:
        raise SpecError(f"{source}: must have at most {SPEC_BYTES} bytes as JSON, got {byte_count}.")
    return spec


def read_spec(path: Path) -> RunSpec:
    """Read a spec file. Raises `SpecError` as `parse_spec`, and when the file cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: must be a readable UTF-8 file: {error}") from error
    return parse_spec(text, str(path))
