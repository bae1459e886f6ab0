"""What every learner must do, the zoo's and a user's own: the checks behind `choral models check`."""

from choral.conformance.case import Case, Nonconforming, case_of
from choral.conformance.checks import CHECKS

__all__ = ["CHECKS", "Case", "Nonconforming", "case_of"]
