"""One resident trainer and the data of all clients: what the serial engine has, and others in processes and Ray actors.

It calls the code that a deployed client calls, so that results are the same to the bit (law L2).
"""

import logging
from collections.abc import Mapping

import torch

from client.data import LocalData
from client.training import Assignment, Result, Trainer
from models import Evaluation, TrainingStopped
from models.errors import DataError
from models.learner import Report
from simulation.cohort import Refused
from wire.federation_pb2 import RefusalReason
from wire.spec import RunSpec
from wire.tensors import Vector

log = logging.getLogger(__name__)


class Worker:
    """Trains and evaluates one client at a time. Not safe for concurrent use."""

    def __init__(self, spec: RunSpec, sites: Mapping[str, LocalData], device: torch.device) -> None:
        """Build the learner. Raises `LearnerError` when the zoo does not have it."""
        self._spec = spec
        self._sites = sites
        self._device = device
        self._trainer = Trainer(spec.learner, device)

    def train(self, client_id: str, round_number: int, vector: Vector, report: Report) -> Result | Refused:
        """Train a client, or say as it would why it has nothing to bring: its failure is not the round's.

        Args:
            client_id: Who.
            round_number: 1 or more.
            vector: The round's model, left unchanged.
            report: Called with the done part; may raise `TrainingStopped`.

        Raises:
            TrainingStopped: `report` did.
        """
        assignment = Assignment(self._spec, round_number, client_id, vector)
        try:
            return self._trainer.train(assignment, self._data(client_id), report)
        except TrainingStopped:
            raise
        except DataError as error:
            return Refused(client_id, RefusalReason.REFUSAL_REASON_CLIENT_DATA, str(error))
        except Exception as error:
            log.exception("client %s: unexpected error", client_id)
            return _failed(client_id, error)

    def evaluate(self, client_id: str, vector: Vector) -> Evaluation | Refused:
        """Measure a model on a client's held-out examples, or say as the client would that it cannot."""
        try:
            return self._trainer.evaluate(vector, self._data(client_id))
        except Exception as error:
            log.exception("client %s: unexpected error", client_id)
            return _failed(client_id, error)

    def _data(self, client_id: str) -> LocalData:
        data = self._sites[client_id]
        return LocalData(data.kind, data.training.to(self._device), data.held_out.to(self._device))


def _failed(client_id: str, error: Exception) -> Refused:
    return Refused(client_id, RefusalReason.REFUSAL_REASON_CLIENT_ERROR, f"Unexpected {error!r}")
