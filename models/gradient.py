"""Learners that train by gradient descent: a subclass gives a `torch.nn.Module` and a loss on a batch.

The contribution is the change of the parameters, w_k - w (McMahan et al. 2017, Algorithm 1, rewritten as a delta).

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
https://arxiv.org/abs/1602.05629
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import vmap

from models.bases import BaseName
from models.batch_norm import gather_statistics, statistics_of
from models.errors import unsuited
from models.learner import Contribution, Examples, Report
from models.local_step import lowering
from models.memory import KeptForBackward, step_bytes
from models.optimizers import ServerOptimizer
from models.own import name_of
from models.random_stream import RandomStream
from models.transfer import chosen, read_tensors, taken_over
from wire.errors import LearnerError
from wire.evaluation import Evaluation
from wire.memory import VectorPool
from wire.spec import LocalSpec
from wire.tensors import Layout, State, Vector
from wire.validation import Strict

EVALUATION_BATCH_SIZE = 256

Step = Callable[[Examples], Tensor]
"""Takes one step of training on a batch and returns its mean loss, a scalar without a gradient."""


class GradientParameters(Strict):
    """What every learner that trains by gradient descent takes, beside parameters of its own."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """What layers compute in, by torch.autocast; parameters and their updates are float32 in either case."""
    statistics: Literal["averaged", "local"] = "averaged"
    """Means and variances of batch norm: averaged like parameters, or each client's own, which never leave it (batch_norm.py)."""
    initialize_from: BaseName | None = None
    """A base, NAME.safetensors in the folder of bases of each machine: its tensors of the same names and shapes are taken over."""
    base_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """What the base's file must have, so that all machines begin with the same."""
    reset: list[str] = []
    """Patterns of tensors that are drawn anew and not taken over, such as "9.*" for a last layer."""
    freeze: list[str] = []
    """Patterns of tensors that stay as they were taken over: they are not trained, and they do not travel."""

    needs_base: ClassVar[tuple[str, ...]] = ("base_sha256", "reset", "freeze")
    """Parameters that mean nothing without a base."""

    @model_validator(mode="after")
    def _has_base(self) -> Self:
        for key in self.needs_base:
            if getattr(self, key) and self.initialize_from is None:
                raise ValueError(f"{key} must come with initialize_from, got none")
        return self


class GradientLearner(ABC):
    """Keeps one module on one device and trains it from whatever state a round hands in.

    `build`, `loss` and `measure` are pure: nothing but their arguments decides what they return, so that an engine may call the module on
    many clients' parameters at once. A learner that needs more overrides `batch_loss` and `measure_batch`, or `begin`, and is then trained
    one client at a time.
    """

    name: ClassVar[str]
    """As in a spec, for errors. A class that says none has its own name in small letters, as a user's learner has."""

    task: ClassVar[str] = ""
    """What it learns to do, in a word or two, such as "classify"."""

    data: ClassVar[str] = ""
    """What data suits it, in a few words, such as "images"."""

    parameters: GradientParameters

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = name_of(cls.__name__)

    def __init__(self, parameters: GradientParameters, device: torch.device) -> None:
        self.parameters = parameters
        self._device = device
        base = parameters.initialize_from
        self._base = read_tensors(base, parameters.base_sha256) if base is not None else {}
        # Built where it will stay: on the meta device, which a coordinator uses, it takes no memory.
        with RandomStream(0, device).drawing(), device:
            # Channels last: torch's convolutions and pools are faster so. Other tensors than those of images stay as they are.
            self._module = self._begun(self.build()).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's annotations lack it alone
        self._frozen = self.frozen_names()
        if self._base and (absent := sorted(self._frozen - self._taken)):
            raise LearnerError(
                f"{self._subject}: what is frozen must come from initialize_from, got none for {absent[0]!r}."
            )
        is_local = parameters.statistics == "local"
        self._own_statistics = statistics_of(self._module, self._frozen) if is_local else frozenset()
        if is_local and not self._own_statistics:
            raise LearnerError(
                f"{self._subject}: statistics must be averaged in a model without batch norm to train, got 'local'."
            )
        self._trained, self._resting = self._freeze()
        if not self._trained:
            raise LearnerError(
                f"{self._subject}: at least one parameter must be trained, got {len(self._frozen)} tensors frozen."
            )
        self._layout = Layout.of(self._travelling(self._module))
        self._vectors = VectorPool()
        self._needs_pairs = any(
            isinstance(part, nn.BatchNorm1d) for part in self._module.modules() if part not in self._resting
        )
        self._buffers = frozenset(name for name, _ in self._module.named_buffers())

    @abstractmethod
    def build(self) -> nn.Module:
        """Return a new module, initialised from torch's global generator."""

    def frozen_names(self) -> frozenset[str]:
        """Return the names in the module's state dict that are neither trained nor travel: those that `freeze` names.

        Called once, when the module is built. Every machine of a run must find the same values there, as in a base that all have.
        """
        return chosen(self.parameters.freeze, self._module.state_dict(), f"{self._subject}: freeze")

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example, (batch,): `loss` is their mean."""
        return vmap(lambda output, target: self.loss(output[None], target[None]))(outputs, targets)

    def losses_and_gradient(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each example, (batch,), and the gradient of their sum by `weights`, (batch,), which is like the outputs."""
        # Copies, because autograd takes no tensors from inference mode.
        with torch.inference_mode(False), torch.enable_grad():
            leaf = outputs.detach().clone().requires_grad_()
            losses = self.losses(leaf, targets.clone())
            # A scalar, because to a gradient for each loss torch would first import a library for symbolic shapes.
            (gradient,) = torch.autograd.grad(torch.dot(losses, weights.clone()), leaf)
        # A copy, because of a loss that is linear all gradients may lie in the same place.
        return losses.detach(), gradient.clone(memory_format=torch.contiguous_format)

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return means over a batch of what is reported beside the loss."""

    @abstractmethod
    def check(self, data: Examples) -> None:
        """Check that `data` suits this learner. Raises `DataError`."""

    def batch_loss(self, batch: Examples) -> Tensor:
        """Return the mean loss of a batch in training, a scalar. Draws from torch's global generator, which follows from the run's seed."""
        return self.loss(self._module(batch.inputs), batch.targets)

    def measure_batch(self, batch: Examples) -> Mapping[str, Tensor]:
        """Return the means over a batch of all that an evaluation reports, `loss` among them."""
        outputs = self._module(batch.inputs)
        return {"loss": self.loss(outputs, batch.targets), **self.measure(outputs, batch.targets)}

    def weigh(self, batch: Examples) -> int:
        """Return how many things the means of `measure_batch` are over: the examples, or for sequences of many lengths their codes."""
        return len(batch)

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        """Return what an evaluation reports, from its means: for what is not a mean itself, such as a perplexity."""
        return means

    @property
    def whole_measures(self) -> Sequence[str]:
        """Names of what `measure_whole` may report; where there are none, it is not asked."""
        return ()

    def measure_whole(self, data: Examples) -> Mapping[str, float]:
        """Return what takes all examples of an evaluation at once, such as a rank: neither a mean nor made of means."""
        return {}

    @property
    def contribution_layout(self) -> Layout:
        """The layout of the state, without what is frozen."""
        return self._layout

    def init(self, seed: int) -> State:
        """Return a new module's state without what is frozen, drawn from `seed` alone."""
        with RandomStream(seed).drawing():
            return self._travelling(self._begun(self.build()))

    def fit(
        self, state: State, data: Examples, local: LocalSpec, generator: torch.Generator, report: Report
    ) -> Contribution:
        """Run `local.epochs` of minibatch descent and return the change of every floating tensor of the state.

        Raises:
            DataError: There are no examples, or batches of one where batch norm needs two. Nothing was changed.
        """
        self._check_batches(data, local)
        self._load(state)
        self._train()
        step = self.begin(local)
        losses: list[Tensor] = []
        stream = RandomStream(int(torch.randint(1 << 62, (), generator=generator)), self._device)
        for epoch in range(local.epochs):
            losses = []
            batches = self._batches(len(data), local.batch_size, generator)
            for rows in batches:
                batch = data.select(rows.to(self._device))
                with stream.drawing(), self._autocast():
                    losses.append(step(batch) * len(batch))
                report((epoch + len(losses) / len(batches)) / local.epochs)
        metrics = {"train_loss": float(torch.stack(losses).sum()) / len(data)} if losses else {}
        return Contribution(self._change_since(state), len(data), metrics)

    def step_bytes(self, data: Examples, local: LocalSpec) -> int:
        """Estimate from steps on a few examples what one on a batch takes. The module is left as it was. Raises as `fit`."""
        self._check_batches(data, local)
        trained = sum(parameter.nbytes for parameter in self._trained)
        free = local.model_copy(update={"proximal_mu": 0.0})
        return step_bytes(trained, data, local, partial(self._pass_bytes, free))

    def _pass_bytes(self, local: LocalSpec, batch: Examples) -> int:
        """Return the bytes of both passes of a step of the module as it is, which is then put back."""
        own = self._module.state_dict()
        before = {name: tensor.clone() for name, tensor in own.items()}
        kept = KeptForBackward([*own.values(), batch.inputs, batch.targets])
        self._train()
        with RandomStream(0, self._device).drawing(), self._autocast(), kept.watching():
            self.begin(local)(batch)
        self._module.zero_grad()
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(before[name])
        return kept.most + 2 * kept.largest

    def begin(self, local: LocalSpec) -> Step:
        """Return what takes the steps of one fit, with whatever it keeps from one to the next."""
        lower = lowering(self._trained, local)
        return lambda batch: lower(lambda: self.batch_loss(batch))

    def apply(self, state: State, mean: State, server: ServerOptimizer, weight_total: int) -> State:
        """Take the server step on the mean change of the parameters.

        Buffers, such as the statistics of batch norm, have no gradient: they move by their mean change itself.
        """
        trained = server.step(state, {name: change for name, change in mean.items() if name not in self._buffers})
        return {name: trained[name] if name in trained else state[name].add_(mean[name]) for name in mean}

    @torch.no_grad()
    def evaluate(self, state: State, data: Examples, training: Examples | None = None) -> Evaluation:
        """Return the means over `data` of all that `measure_batch` reports, and what `measure_whole` says of it."""
        if len(data) == 0:
            return Evaluation(0, {})
        self._rest(state, training)
        totals: dict[str, Tensor] = {}
        weight_total = 0
        with RandomStream(0, self._device).drawing(), self._autocast():
            for batch in _evaluation_batches(data):
                weight = self.weigh(batch)
                weight_total += weight
                for name, mean in self.measure_batch(batch).items():
                    total = mean.double().cpu() * weight
                    totals[name] = totals[name] + total if name in totals else total
            whole = self.measure_whole(data) if self.whole_measures else {}
        means = self.finish({name: float(total) / weight_total for name, total in totals.items()})
        return Evaluation(len(data), {**means, **whole})

    def outputs_of(self, data: Examples) -> Tensor:
        """Return what the module puts out for all examples, float32 (examples, ...) on the CPU. For `measure_whole`."""
        return torch.cat([self.outputs(batch).float().cpu() for batch in _evaluation_batches(data)])

    def outputs(self, batch: Examples) -> Tensor:
        """Return what the module puts out for a batch. For `outputs_of`."""
        outputs: Tensor = self._module(batch.inputs)
        return outputs

    @property
    def _subject(self) -> str:
        """What errors begin with."""
        return f"Learner {self.name}"

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        is_wanted = self.parameters.precision == "bfloat16"
        if not is_wanted:
            return contextlib.nullcontext()
        # Weights are cast anew each time: a step may change them and compute again.
        return torch.autocast(self._device.type, torch.bfloat16, cache_enabled=False)

    def _batches(self, count: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
        """Return a random order of 0 to count - 1 in batches."""
        order = torch.randperm(count, generator=generator)
        batches = [order[start : start + batch_size] for start in range(0, count, batch_size)]
        if self._needs_pairs and len(batches) > 1 and len(batches[-1]) == 1:
            # Batch norm has no statistics of a single example: it joins the batch before it.
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches

    def _check_batches(self, data: Examples, local: LocalSpec) -> None:
        fewest = 2 if self._needs_pairs else 1
        if (found := min(len(data), local.batch_size)) < fewest:
            raise unsuited(f"Training data: batches must have at least {fewest} examples", str(found))

    def _train(self) -> None:
        """Make the module ready for training; what is frozen as a whole stays at rest."""
        self._module.train()
        for part in self._resting:
            part.eval()

    def _rest(self, state: State, training: Examples | None = None) -> None:
        """Load a state into the module and make it ready for what is not training. Arguments as `evaluate`."""
        self._load(state)
        self._module.eval()
        if self._own_statistics:
            self._gather_statistics(training)

    def _gather_statistics(self, training: Examples | None) -> None:
        if training is None:
            raise LearnerError(
                f"{self._subject}: statistics must be averaged where there is no training data, got 'local'."
            )
        fewest = 2 if self._needs_pairs else 1
        batches = (batch.inputs for batch in _evaluation_batches(training) if len(batch) >= fewest)
        gather_statistics(self._module, self._own_statistics, batches)

    def _begun(self, module: nn.Module) -> nn.Module:
        """Give a new module what it takes over from a base, and return it."""
        if self._base:
            own = module.state_dict()
            kept_out = chosen(self.parameters.reset, own, f"{self._subject}: reset")
            own_kept = {name: tensor for name, tensor in own.items() if name not in kept_out}
            found = taken_over(own_kept, self._base, f"{self._subject}: initialize_from")
            with torch.no_grad():
                for name, tensor in found.items():
                    own[name].copy_(tensor)
            self._taken = frozenset(found)
        return module

    def _travelling(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the part of a module's state dict that is neither frozen nor kept by each client."""
        stays = self._frozen | self._own_statistics
        return {name: tensor.detach() for name, tensor in module.state_dict().items() if name not in stays}

    def _freeze(self) -> tuple[list[nn.Parameter], frozenset[nn.Module]]:
        """Freeze what is named; return the parameters that are trained, and the modules that have nothing but frozen tensors.

        Those stay in evaluation mode: batch norm keeps its statistics, and features are the same each time.
        """
        for name, parameter in self._module.named_parameters():
            if name in self._frozen:
                parameter.requires_grad_(False)
        resting = []
        for prefix, part in self._module.named_modules():
            names = [f"{prefix}.{name}" if prefix else name for name in part.state_dict()]
            if names and self._frozen.issuperset(names):
                resting.append(part)
        return [parameter for parameter in self._module.parameters() if parameter.requires_grad], frozenset(resting)

    def _load(self, state: State) -> None:
        own = self._module.state_dict()
        with torch.no_grad():
            for entry in self._layout.entries:
                own[entry.name].copy_(state[entry.name])

    def _change_since(self, state: State) -> Vector:
        change = self._layout.flatten(self._travelling(self._module), out=self._vectors.take(self._layout.size))
        for name, view in self._layout.views(change).items():
            view.sub_(state[name])
        return change


def _evaluation_batches(data: Examples) -> Iterator[Examples]:
    for start in range(0, len(data), EVALUATION_BATCH_SIZE):
        rows = slice(start, start + EVALUATION_BATCH_SIZE)
        yield Examples(data.inputs[rows], data.targets[rows])
