"""The zoo: one file per family of learners, what a learner is, and the optimizers they use."""

from models.errors import DataError, LearnerError, TrainingStopped, unsuited
from models.learner import Contribution, Evaluation, Examples, Learner
from models.optimizers import ServerOptimizer, warm_up
from models.zoo import MODELS, build_learner, check_spec

__all__ = [
    "MODELS",
    "Contribution",
    "DataError",
    "Evaluation",
    "Examples",
    "Learner",
    "LearnerError",
    "ServerOptimizer",
    "TrainingStopped",
    "build_learner",
    "check_spec",
    "unsuited",
    "warm_up",
]
