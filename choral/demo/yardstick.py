"""What the federated model is held against: one client alone and all data pooled, on the form blocks that nobody trained on.

All three are the same network, start from the same parameters, and see the same training digits, never those that clients hold out.
How each is trained was chosen for it alone (`choral.demo.plan`).
"""

from pathlib import Path

import torch

from choral.demo.plan import HELD_OUT, UNSEEN_BLOCKS, Plan
from client.data import LocalData, load_local
from client.training import Assignment, Trainer
from models import Examples
from models.learner import Report
from server.model import ModelShop, read_checkpoint
from wire.tensors import Vector


class Yardstick:
    """Trains and measures models in this process."""

    def __init__(self, plan: Plan) -> None:
        """Load the digits of the plan's clients and of the unseen form blocks."""
        self._spec = plan.central_spec
        self._start = ModelShop(self._spec).initial().vector
        self._trainer = Trainer(self._spec.learner, torch.device("cpu"))
        self._unseen = load_local(f"digits,blocks={'|'.join(map(str, UNSEEN_BLOCKS))}", 0.0, 0).training
        self._clients = [client_digits(block).training for block in range(plan.client_count)]

    @property
    def example_counts(self) -> list[int]:
        """Digits that each client trains on."""
        return [len(examples) for examples in self._clients]

    @property
    def unseen_count(self) -> int:
        """Digits of the unseen form blocks."""
        return len(self._unseen)

    def alone(self, client: int, report: Report) -> float:
        """Return the accuracy of a model that saw one client's digits."""
        return self._trained(self._clients[client], f"alone-{client}", report)

    def pooled(self, report: Report) -> float:
        """Return the accuracy of a model that saw all clients' digits in one place."""
        inputs = torch.cat([examples.inputs for examples in self._clients])
        targets = torch.cat([examples.targets for examples in self._clients])
        return self._trained(Examples(inputs, targets), "pooled", report)

    def measure(self, path: Path) -> float:
        """Return the accuracy of the model in a file. Raises `StoreError` when it is damaged or of another learner."""
        return self._accuracy(read_checkpoint(path, self._trainer.layout).vector)

    def _trained(self, training: Examples, purpose: str, report: Report) -> float:
        data = LocalData("digits", training, self._unseen)
        result = self._trainer.train(Assignment(self._spec, 1, purpose, self._start), data, report)
        return self._accuracy(self._start + result.vector)

    def _accuracy(self, vector: Vector) -> float:
        data = LocalData("digits", self._unseen, self._unseen)
        return self._trainer.evaluate(vector, data).metrics["accuracy"]


def client_digits(block: int) -> LocalData:
    """Return the digits of one client, split as `choral join` splits them."""
    return load_local(f"digits,blocks={block}", HELD_OUT, 0)
