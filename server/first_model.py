"""A run's first model as a client brings it, to a coordinator that has no torch to draw it with: one file, admitted whole or not at all."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from server.errors import ContributionRefused, StoreError
from server.model import Model, model_of
from wire.errors import LayoutError
from wire.federation_pb2 import RefusalReason, VectorEncoding
from wire.saved import LAYOUT_KEY
from wire.tensors import Layout

MEMORY_PARTS = 4
"""A run takes the memory of so many models at least: what arrives, the model, its successor and the sum."""


class FirstModel:
    """Takes the place of a round's sum, for one file that becomes the first model. Not safe for concurrent use.

    Attributes:
        model: What was taken; None before.
    """

    encoding = VectorEncoding.VECTOR_ENCODING_SAFETENSORS
    is_exact = False

    def __init__(self) -> None:
        # Here, because clients, which import this too, need not have it.
        import psutil

        self.byte_count: int = psutil.virtual_memory().available // MEMORY_PARTS
        self.model: Model | None = None

    @property
    def size(self) -> int:
        """Most coordinates."""
        return self.byte_count // 4

    def vector_in(self, buffer: memoryview) -> npt.NDArray[Any]:
        """Return the file that lies in a buffer, without a copy."""
        return np.frombuffer(buffer, dtype=np.uint8)

    def add(self, data: npt.NDArray[Any], weight: int) -> None:
        """Take the file.

        Raises:
            ContributionRefused: It is no model, or one with a number that is not finite. Nothing was taken.
        """
        try:
            model = _model_in(data.tobytes())
        except (LayoutError, StoreError) as error:
            raise ContributionRefused(RefusalReason.REFUSAL_REASON_WRONG_LAYOUT, str(error)) from error
        if not np.isfinite(model.vector).all():
            raise ContributionRefused(
                RefusalReason.REFUSAL_REASON_NOT_FINITE, "every number of a first model must be finite, got others"
            )
        self.model = model


def _model_in(data: bytes) -> Model:
    """Return the model in a file. Raises `LayoutError` or `StoreError`."""
    try:
        tensors = load(data)
    except (SafetensorError, KeyError) as error:
        raise LayoutError(f"First model: must be a safetensors file of numpy's types, got: {error}.") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    layout = Layout.parse((header.get("__metadata__") or {}).get(LAYOUT_KEY, ""))
    model = model_of(tensors, layout, "First model")
    odd = [name for name, constant in model.constants.items() if constant.dtype.kind not in "iub"]
    if odd or model.slots:
        name = next(iter([*odd, *model.slots]))
        raise LayoutError(
            f"First model: what is not in the layout must be integers or truth values, got {name!r:.200}."
        )
    return model
