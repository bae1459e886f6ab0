"""Memory that tensors take, counted to the byte: of all that torch makes while a context is open, what is alive at a time."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's has no annotations
    """Counts the bytes of new tensors, each memory once however many views it has, from the operation that makes it until it is freed.

    What a kernel takes and frees within one operation is not seen.

    Attributes:
        most: Bytes that were alive at a time, at most.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._bytes = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        operation: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count what it makes."""
        named = named or {}
        given = {tensor.untyped_storage()._cdata for tensor in _tensors([*arguments, *named.values()])}
        made = operation(*arguments, **named)
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._alive:
                self._begin(storage)
        return made

    def _begin(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()

        def end(reference: "weakref.ref[torch.UntypedStorage]") -> None:
            del self._alive[place]
            self._bytes -= size

        self._alive[place] = weakref.ref(storage, end)
        self._bytes += size
        self.most = max(self.most, self._bytes)


def _tensors(found: object) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    return [tensor for part in found for tensor in _tensors(part)] if isinstance(found, list | tuple) else []
