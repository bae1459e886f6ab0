"""The script of `benchmarks/pfl_simulation.py`: federated averaging as pfl-research's image benchmarks set it up.

It runs where pfl-research is installed and Choral need not be.
"""

# Where this file is checked pfl may be missing, and its classes with it.
# mypy: disable-error-code="misc"

import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.peer_result import process_seconds, summarize
from benchmarks.simulation_workloads import WORKLOADS, Workload

if len(sys.argv) > 3:
    # Read by pfl when it is imported.
    os.environ["PFL_WORKER_RANK"], os.environ["PFL_WORKER_ADDRESSES"] = sys.argv[3:]
    # As torchrun, the other way to start several of them, has it.
    torch.set_num_threads(1)

from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel


class Trainee(nn.Module):
    """A model with the loss and the metrics that pfl asks for.

    It has no metrics: pfl evaluates the users of its first round whatever the settings, and so this takes no time.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.steps = 0

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross entropy of a batch."""
        self.steps += 1
        return F.cross_entropy(self.model(inputs), targets)

    def metrics(self, inputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        """Return nothing."""
        return {}


class RoundEnds(TrainingProcessCallback):
    """Notes the end of each round, by `process_seconds`."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Note the time, and go on."""
        self.ends.append(process_seconds())
        return False, Metrics()


def run(workload: Workload, rounds: int) -> list[float]:
    """Run the simulation and return the end of each round, by `process_seconds`.

    Raises:
        RuntimeError: This process, if it is the only one, took other steps than the workload has. The simulation has ended.
    """
    # pfl draws its users from numpy's global generator, which all processes must seed alike.
    np.random.seed(0)
    torch.manual_seed(0)
    users = dict(enumerate(workload.clients()))
    data = FederatedDataset.from_slices(users, get_user_sampler("random", range(workload.client_count)))
    trainee = Trainee(workload.build()).train()
    ends = RoundEnds()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds,
            train_cohort_size=workload.cohort_size,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]),
        PyTorchModel(
            model=trainee,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(trainee.parameters(), lr=1.0),
        ),
        NNTrainHyperParams(
            local_learning_rate=workload.learning_rate,
            local_num_epochs=workload.epochs,
            local_batch_size=workload.batch_size,
        ),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[ends],
    )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    elif trainee.steps != rounds * workload.steps_per_round:
        raise RuntimeError(
            f"pfl: steps must be {workload.steps_per_round} a round, got {trainee.steps} in {rounds} rounds."
        )
    return ends.ends


def main() -> None:
    """Run the workload and the number of rounds that the command line gives, and print the figures.

    With two arguments more, this is one of several processes: its rank, and the addresses of all of them.
    """
    workload, rounds = WORKLOADS[sys.argv[1]], int(sys.argv[2])
    print(summarize(run(workload, rounds), workload.steps_per_round).json, flush=True)
