"""The zoo: one file per family of learners, what a learner is, and the optimizers they use."""

from models.errors import DataError, TrainingStopped, unsuited
from models.learner import PADDING, Contribution, Examples, Learner, Timeline
from models.optimizers import ServerOptimizer, warm_up
from models.own import add_own
from models.zoo import MODELS, build_learner, check_spec, first_state, learners
from wire.errors import LearnerError
from wire.evaluation import Evaluation

__all__ = [
    "MODELS",
    "PADDING",
    "Contribution",
    "DataError",
    "Evaluation",
    "Examples",
    "Learner",
    "LearnerError",
    "ServerOptimizer",
    "Timeline",
    "TrainingStopped",
    "add_own",
    "build_learner",
    "check_spec",
    "first_state",
    "learners",
    "unsuited",
    "warm_up",
]
