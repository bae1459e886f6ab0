"""What a site allows its client to do, whatever a coordinator asks: a small YAML file.

allowed_learners: [cnn, mlp]
minimum_cohort: 5
secure_aggregation: {required: true, minimum_cohort: 5, corrupt_fraction: 0.2}
"""

from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from client.errors import PolicyError
from privacy.secagg.party import Floor
from wire.document import parse_document
from wire.errors import SpecError
from wire.secure import MILLION, SecureAggregationSpec
from wire.spec import RunSpec
from wire.validation import Strict, explain


class SecureAggregationPolicy(Strict):
    """The least that a site asks of secure aggregation."""

    required: bool = False
    """Whether updates must be masked; runs that send them in the clear are refused."""
    minimum_cohort: int = Field(default=3, ge=2)
    """Fewest honest clients that a sum must be of."""
    corrupt_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Part of the clients that may conspire with the coordinator, at least."""
    allow_small_cohort: bool = False
    """Whether `minimum_cohort` may be 2: of two, each learns the other's update from the model."""

    @model_validator(mode="after")
    def _two(self) -> Self:
        if self.minimum_cohort == 2 and not self.allow_small_cohort:
            raise ValueError("minimum_cohort must be at least 3 without allow_small_cohort, got 2")
        return self


class Policy(Strict):
    """The rules of one site. Without a file, everything that is installed is allowed."""

    allowed_learners: list[str] | None = None
    """Learners that may run; all that are installed if not given."""
    minimum_cohort: int = Field(default=1, ge=1)
    """Fewest clients that a round must ask: in a small cohort, the mean says much about each. The coordinator's word is taken for it, but
    in secure aggregation, where so many must show that they take part."""

    secure_aggregation: SecureAggregationPolicy = SecureAggregationPolicy()

    @property
    def floor(self) -> Floor:
        """What sessions of secure aggregation must keep to."""
        least = self.secure_aggregation
        return Floor(least.minimum_cohort, round(least.corrupt_fraction * MILLION), self.minimum_cohort)

    def allows(self, learner: str) -> bool:
        """Tell whether a learner may run here."""
        return self.allowed_learners is None or learner in self.allowed_learners

    def check_run(self, spec: RunSpec) -> None:
        """Check what a task is part of.

        Raises:
            PolicyError: The policy forbids it; the message names the rule and the value.
        """
        if not self.allows(spec.learner.name):
            allowed = ", ".join(self.allowed_learners or ()) or "none"
            raise PolicyError(
                f"This site's policy: learner must be one of allowed_learners ({allowed}), got {spec.learner.name}."
            )
        if self.secure_aggregation.required and spec.secure is None:
            raise PolicyError(
                "This site's policy: privacy.secure_aggregation must be in the run spec, because secure_aggregation is required, "
                "got a run without it."
            )
        if spec.secure is not None:
            self._check_secure(spec.secure)

    def check(self, spec: RunSpec, cohort_size: int) -> None:
        """Check a task that touches the local data. Raises as `check_run`."""
        self.check_run(spec)
        if cohort_size < self.minimum_cohort:
            raise PolicyError(
                f"This site's policy: a round must ask at least minimum_cohort ({self.minimum_cohort}) clients, got {cohort_size}."
            )

    def _check_secure(self, found: SecureAggregationSpec) -> None:
        """Check what sessions check too, before anything is trained for them."""
        for key in ("minimum_cohort", "corrupt_fraction"):
            least, got = getattr(self.secure_aggregation, key), getattr(found, key)
            if got < least:
                raise PolicyError(
                    f"This site's policy: privacy.secure_aggregation.{key} must be at least secure_aggregation.{key} ({least:g}), "
                    f"got {got:g}."
                )


def read_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        PolicyError: The file cannot be read, or a key breaks a rule.
    """
    try:
        document = parse_document(path.read_text(encoding="utf-8"), f"Policy {path}")
        return Policy.model_validate(document if document is not None else {})
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"Policy {path}: must be a readable UTF-8 file, got: {error}.") from error
    except SpecError as error:
        raise PolicyError(str(error)) from error
    except ValidationError as error:
        raise PolicyError(explain(error, f"Policy {path}")) from error
