"""Recurrent layers over sequences of many lengths: each is read to its own end, and not beyond."""

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def read(layer: nn.GRU, sequences: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Run a layer that is batch first over `sequences`, (batch, time, width), each of one of `lengths`, int64 (batch,), at least 1.

    Returns:
        Outputs (batch, time, width), 0 behind the ends, and the last hidden states, (layers * directions, batch, width).
    """
    packed = pack_padded_sequence(sequences, lengths.cpu(), batch_first=True, enforce_sorted=False)
    outputs, last = layer(packed)
    return pad_packed_sequence(outputs, batch_first=True, total_length=sequences.shape[1])[0], last
