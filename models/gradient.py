"""Learners that train by gradient descent: a subclass gives a `torch.nn.Module` and a loss on a batch.

The contribution is the change of the parameters, w_k - w (McMahan et al. 2017, Algorithm 1, rewritten as a delta). FedProx adds
mu/2 * ||w - w_global||^2 to the loss.

Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, equation 2. https://arxiv.org/abs/1812.06127
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import vmap

from models.errors import unsuited
from models.learner import Contribution, Evaluation, Examples, Report
from models.optimizers import Optimizer, ServerOptimizer, build_optimizer
from models.random_stream import RandomStream
from wire.memory import VectorPool
from wire.spec import LocalSpec
from wire.tensors import Layout, State, Vector

EVALUATION_BATCH_SIZE = 256


class GradientLearner(ABC):
    """Keeps one module on one device and trains it from whatever state a round hands in.

    `build`, `loss` and `measure` are pure: nothing but their arguments decides what they return, so that an engine may call the module on
    many clients' parameters at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Built where it will stay: on the meta device, which a coordinator uses, it takes no memory.
        with RandomStream(0).drawing(), device:
            # Channels last: torch's convolutions and pools are faster so. Other tensors than those of images stay as they are.
            self._module = self.build().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's annotations lack it alone
        self._layout = Layout.of(self._module.state_dict())
        self._vectors = VectorPool()
        self._needs_pairs = any(isinstance(part, nn.BatchNorm1d) for part in self._module.modules())
        self._buffers = frozenset(name for name, _ in self._module.named_buffers())

    @abstractmethod
    def build(self) -> nn.Module:
        """Return a new module, initialised from torch's global generator."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example, (batch,): `loss` is their mean."""
        return vmap(lambda output, target: self.loss(output[None], target[None]))(outputs, targets)

    def losses_and_gradient(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each example, (batch,), and the gradient of their sum by `weights`, (batch,), which is like the outputs."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            losses = self.losses(leaf, targets)
            # A scalar, because to a gradient for each loss torch would first import a library for symbolic shapes.
            (gradient,) = torch.autograd.grad(torch.dot(losses, weights), leaf)
        # A copy, because of a loss that is linear all gradients may lie in the same place.
        return losses.detach(), gradient.clone(memory_format=torch.contiguous_format)

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return means over a batch of what is reported beside the loss."""

    @abstractmethod
    def check(self, data: Examples) -> None:
        """Check that `data` suits this learner. Raises `DataError`."""

    def init(self, seed: int) -> State:
        """Return a new module's state, drawn from `seed` alone."""
        with RandomStream(seed).drawing():
            return {name: tensor.detach() for name, tensor in self.build().state_dict().items()}

    def fit(
        self, state: State, data: Examples, local: LocalSpec, generator: torch.Generator, report: Report
    ) -> Contribution:
        """Run `local.epochs` of minibatch descent and return the change of every floating tensor of the state.

        Raises:
            DataError: There are no examples, or batches of one where batch norm needs two. Nothing was changed.
        """
        fewest = 2 if self._needs_pairs else 1
        if (found := min(len(data), local.batch_size)) < fewest:
            raise unsuited(f"Training data: batches must have at least {fewest} examples", str(found))
        self._load(state)
        self._module.train()
        anchor = [parameter.detach().clone() for parameter in self._module.parameters()] if local.proximal_mu else []
        optimizer = build_optimizer(local.optimizer, self._module.parameters())
        losses: list[Tensor] = []
        stream = RandomStream(int(torch.randint(1 << 62, (), generator=generator)), self._device)
        for epoch in range(local.epochs):
            losses = []
            batches = self._batches(len(data), local.batch_size, generator)
            for rows in batches:
                batch = data.select(rows.to(self._device))
                with stream.drawing():
                    losses.append(self._step(optimizer, batch, local, anchor) * len(batch))
                report((epoch + len(losses) / len(batches)) / local.epochs)
        metrics = {"train_loss": float(torch.stack(losses).sum()) / len(data)} if losses else {}
        return Contribution(self._change_since(state), len(data), metrics)

    def apply(self, state: State, mean: State, server: ServerOptimizer) -> State:
        """Take the server step on the mean change of the parameters.

        Buffers, such as the statistics of batch norm, have no gradient: they move by their mean change itself.
        """
        trained = server.step(state, {name: change for name, change in mean.items() if name not in self._buffers})
        return {name: trained[name] if name in trained else state[name].add_(mean[name]) for name in mean}

    @torch.no_grad()
    def evaluate(self, state: State, data: Examples) -> Evaluation:
        """Return the means of the loss and of `measure` over `data`."""
        if len(data) == 0:
            return Evaluation(0, {})
        self._load(state)
        self._module.eval()
        totals: dict[str, Tensor] = {}
        for start in range(0, len(data), EVALUATION_BATCH_SIZE):
            rows = slice(start, start + EVALUATION_BATCH_SIZE)
            inputs, targets = data.inputs[rows], data.targets[rows]
            outputs = self._module(inputs)
            for name, mean in {"loss": self.loss(outputs, targets), **self.measure(outputs, targets)}.items():
                total = mean.double().cpu() * len(inputs)
                totals[name] = totals[name] + total if name in totals else total
        return Evaluation(len(data), {name: float(total) / len(data) for name, total in totals.items()})

    def _step(self, optimizer: Optimizer, batch: Examples, local: LocalSpec, anchor: list[Tensor]) -> Tensor:
        losses: list[Tensor] = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(self._module(batch.inputs), batch.targets)
            objective = loss
            if anchor:
                pairs = zip(self._module.parameters(), anchor, strict=True)
                distance = torch.stack([(parameter - start).square().sum() for parameter, start in pairs]).sum()
                objective = loss + 0.5 * local.proximal_mu * distance
            objective.backward()  # type: ignore[no-untyped-call]
            if local.clip_norm is not None:
                nn.utils.clip_grad_norm_(self._module.parameters(), local.clip_norm)
            losses.append(loss.detach())
            return objective.detach()

        # torch types the closure's result as a float, which would have to wait for the device in each step.
        optimizer.step(closure)  # type: ignore[arg-type]
        return losses[0]

    def _batches(self, count: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
        """Return a random order of 0 to count - 1 in batches."""
        order = torch.randperm(count, generator=generator)
        batches = [order[start : start + batch_size] for start in range(0, count, batch_size)]
        if self._needs_pairs and len(batches) > 1 and len(batches[-1]) == 1:
            # Batch norm has no statistics of a single example: it joins the batch before it.
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches

    def _load(self, state: State) -> None:
        own = self._module.state_dict()
        with torch.no_grad():
            for entry in self._layout.entries:
                own[entry.name].copy_(state[entry.name])

    def _change_since(self, state: State) -> Vector:
        change = self._layout.flatten(self._module.state_dict(), out=self._vectors.take(self._layout.size))
        for name, view in self._layout.views(change).items():
            view.sub_(state[name])
        return change
