"""Optimizers by name: every optimizer of torch.optim, for clients and for the server step.

Source of the server step: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2 (the mean is a pseudo-gradient).
https://arxiv.org/abs/2003.00295
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from wire.errors import LearnerError
from wire.memory import keep_start_from_collector
from wire.spec import Named
from wire.tensors import State

_IMPLEMENTATION = frozenset({"params", "foreach", "fused", "capturable", "differentiable"})
"""Arguments that choose how torch computes, not what: they are no business of a spec."""


_LBFGS_LISTS = ("old_dirs", "old_stps", "ro")
"""What L-BFGS keeps as lists: its history of steps and of changes of the gradient. Others of its lists are only scratch."""


class Descent:
    """SGD without momentum or decay, to the bit as torch.optim's, whose first use imports torch's compiler and takes a second."""

    def __init__(self, parameters: Iterable[Tensor], lr: float = 1e-3) -> None:
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        """Empty: a step leaves nothing for the next one."""
        self._parameters = list(parameters)
        self._learning_rate = lr

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self, closure: Callable[[], object] | None = None) -> None:
        """Move against the gradients, which `closure` computes if it is given."""
        if closure is not None:
            closure()
        moved = [parameter for parameter in self._parameters if parameter.grad is not None]
        grads = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        with torch.no_grad():
            torch._foreach_add_(moved, grads, alpha=-self._learning_rate)


Optimizer = torch.optim.Optimizer | Descent


@cache
def optimizer_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Return the optimizers that can be named in a spec: the class's name in lower case."""
    classes = (value for value in vars(torch.optim).values() if inspect.isclass(value))
    optimizers = (value for value in classes if issubclass(value, torch.optim.Optimizer))
    return {value.__name__.lower(): value for value in optimizers if value is not torch.optim.Optimizer}


@cache
def _defaults(name: str) -> dict[str, object]:
    signature = inspect.signature(optimizer_classes()[name]).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in signature if parameter.name not in _IMPLEMENTATION}
    return {"learning_rate" if key == "lr" else key: default for key, default in defaults.items()}


def build_optimizer(named: Named, parameters: Iterable[Tensor]) -> Optimizer:
    """Build the optimizer that a spec names.

    Args:
        named: Name and parameters; `learning_rate` stands for `lr`.
        parameters: What it will change.

    Raises:
        LearnerError: The name or a parameter is unknown, a value has the wrong type, or torch refuses it.
    """
    if (optimizer_class := optimizer_classes().get(named.name)) is None:
        known = ", ".join(sorted(optimizer_classes()))
        raise LearnerError(f"Optimizer: name must be one of {known}, got {named.name!r}.")
    arguments = dict(named.parameters)
    _check_arguments(named.name, arguments, _defaults(named.name))
    is_plain = named.name == "sgd" and arguments.keys() <= {"learning_rate"}
    if "learning_rate" in arguments:
        arguments["lr"] = arguments.pop("learning_rate")
    parameters = list(parameters)
    build = partial(Descent if is_plain else optimizer_class, parameters)
    try:
        return build(**arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = f"{error}".rstrip(".")
        if (key := _refused(build, arguments)) is None:
            raise LearnerError(f"Optimizer {named.name}: {reason}.") from error
        name = "learning_rate" if key == "lr" else key
        rule = f"{name} must be what torch takes, got {arguments[key]!r}"
        raise LearnerError(f"Optimizer {named.name}: {rule}: {reason}.") from error


def _refused(build: Callable[..., Optimizer], arguments: Mapping[str, Any]) -> str | None:
    """Return the argument without which torch takes the others, or None if there is no single one."""
    for key in arguments:
        try:
            build(**{other: value for other, value in arguments.items() if other != key})
        except (ValueError, TypeError, RuntimeError):
            continue
        return key
    return None


def check_optimizer(named: Named, is_server: bool) -> None:
    """Check an optimizer's name and parameters on tensors of its own, shaped like a layer's.

    Raises:
        LearnerError: As `build_optimizer`, or it cannot serve here.
    """
    build_optimizer(named, [torch.zeros(2, 2, requires_grad=True), torch.zeros(2, requires_grad=True)])
    if named.name == "sparseadam":
        raise LearnerError("Optimizer sparseadam: must not need sparse gradients.")
    if (
        is_server
        and named.name == "lbfgs"
        and (found := {"max_iter", "max_eval", "line_search_fn"} & named.parameters.keys())
    ):
        raise LearnerError(
            f"Optimizer lbfgs: {min(found)} must be left out of a server step, which has one gradient and no loss to search along."
        )


def _check_arguments(name: str, arguments: Mapping[str, object], defaults: Mapping[str, object]) -> None:
    if unknown := sorted(set(arguments) - set(defaults)):
        known = ", ".join(sorted(defaults))
        raise LearnerError(f"Optimizer {name}: parameters must be among {known}, got {unknown[0]!r}.")
    for key, value in arguments.items():
        if (rule := _rule_broken(value, defaults[key])) is not None:
            raise LearnerError(f"Optimizer {name}: {key} must be {rule}, got {value!r}.")


def _rule_broken(value: object, default: object) -> str | None:
    """Return what `value` should have been, judged by the default that torch gives it, or None when it is that.

    No number whose default is at least 0 means anything below: rates, decays, momenta, tolerances and counts.
    """
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, (int, float)):
        if not _is_number(value):
            return "a number"
        return "at least 0" if _is_below(value, default) else None
    if isinstance(default, tuple):
        if not isinstance(value, list) or len(value) != len(default):
            return f"a list of {len(default)} numbers"
        if not all(item is None or _is_number(item) for item in value):
            return f"a list of {len(default)} numbers"
        return "numbers of at least 0" if any(map(_is_below, value, default)) else None
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_below(value: Any, default: Any) -> bool:
    """Tell whether `value` is below 0 where `default` is not; None is neither."""
    return value is not None and default is not None and value < 0 <= default


def warm_up() -> None:
    """Take a step on a tensor of its own, and keep what is imported by now out of garbage collection.

    The first step of a process imports torch's compiler, which takes seconds, and leaves so many objects behind that a full collection
    would hold up an event loop for a second.
    """
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.zeros(1)
    torch.optim.SGD([parameter]).step()
    keep_start_from_collector()


class ServerOptimizer:
    """The server step: one optimizer over the model, with minus the mean for a gradient.

    With SGD and learning rate 1 the step is state + mean, which is FedAvg. Its own tensors (momentum and the like) are part of a
    checkpoint, so that a run that is taken up again goes on as if nothing had happened.
    """

    def __init__(self, named: Named, slots: State | None = None) -> None:
        """Prepare the step.

        Args:
            named: The optimizer.
            slots: What `slots` returned earlier, to go on from there.
        """
        self._named = named
        self._slots: dict[str, Tensor] = dict(slots or {})

    def step(self, state: State, mean: State) -> State:
        """Move `state` in place by one step and return it. `mean` is used up.

        Args:
            state: float32 tensors.
            mean: Tensors of the same names and shapes.
        """
        parameters = {name: state[name].requires_grad_() for name in mean}
        optimizer = build_optimizer(self._one_step, parameters.values())
        self._put_back(optimizer, parameters)
        for name, parameter in parameters.items():
            parameter.grad = mean[name].neg_()
        # L-BFGS asks for the loss, which is known on the clients alone: without a search along a line it has no use for it.
        optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type, return-value]
        self._slots = self._take_out(optimizer, parameters)
        return {name: parameter.detach() for name, parameter in parameters.items()}

    def slots(self) -> dict[str, Tensor]:
        """Return the optimizer's own tensors, named `SLOT/TENSOR`, or `SLOT.PLACE/TENSOR` in a list; numbers as tensors without axes."""
        return dict(self._slots)

    @property
    def _one_step(self) -> Named:
        """The optimizer, with a single iteration a step where it could take several."""
        return self._named.model_copy(update={"max_iter": 1}) if self._named.name == "lbfgs" else self._named

    def _put_back(self, optimizer: Optimizer, parameters: State) -> None:
        lists: dict[str, list[Tensor]] = {slot: [] for slot in _LBFGS_LISTS}
        for key, value in sorted(self._slots.items()):
            slot, _, name = key.partition("/")
            slot, _, place = slot.partition(".")
            if place:
                lists[slot].append(value)
            else:
                optimizer.state[parameters[name]][slot] = value
        if self._slots and self._named.name == "lbfgs":
            # All that it keeps lies with its first parameter.
            own: dict[str, Any] = optimizer.state[next(iter(parameters.values()))]
            own.update(lists)

    @staticmethod
    def _take_out(optimizer: Optimizer, parameters: State) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            for slot, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, list):
                    parts = enumerate(value) if slot in _LBFGS_LISTS else ()
                    found |= {f"{slot}.{place:06}/{name}": part.detach() for place, part in parts}
                elif value is not None:
                    found[f"{slot}/{name}"] = torch.as_tensor(value).detach()
        return found
