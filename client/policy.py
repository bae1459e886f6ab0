"""What a site allows its client to do, whatever a coordinator asks: a small YAML file.

allowed_learners: [cnn, mlp]
minimum_cohort: 5
"""

from pathlib import Path

from pydantic import Field, ValidationError

from client.errors import PolicyError
from wire.document import parse_document
from wire.errors import SpecError
from wire.spec import RunSpec
from wire.validation import Strict, explain


class Policy(Strict):
    """The rules of one site. Without a file, everything that is installed is allowed."""

    allowed_learners: list[str] | None = None
    """Learners that may run; all that are installed if not given."""
    minimum_cohort: int = Field(default=1, ge=1)
    """Fewest clients that a round must ask: in a small cohort, the mean says much about each. The coordinator's word is taken for it."""

    def allows(self, learner: str) -> bool:
        """Tell whether a learner may run here."""
        return self.allowed_learners is None or learner in self.allowed_learners

    def check(self, spec: RunSpec, cohort_size: int) -> None:
        """Check one task.

        Raises:
            PolicyError: The policy forbids it; the message names the rule and the value.
        """
        if not self.allows(spec.learner.name):
            allowed = ", ".join(self.allowed_learners or ()) or "none"
            raise PolicyError(
                f"This site's policy: learner must be one of allowed_learners ({allowed}), got {spec.learner.name}."
            )
        if cohort_size < self.minimum_cohort:
            raise PolicyError(
                f"This site's policy: a round must ask at least minimum_cohort ({self.minimum_cohort}) clients, got {cohort_size}."
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
