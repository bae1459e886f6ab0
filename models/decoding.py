"""Decoding: find the sequence of codes that a model thinks most likely, one code after another.

Greedy search takes the likeliest code each time. Beam search keeps the `width` best beginnings, ranked by

    log P(y_1 .. y_n | x) / n^length_power

where n counts the end as well, and extends each by every code; with a beam as wide as there are beginnings it finds the best of all.

Sources: Sutskever, Vinyals and Le, "Sequence to Sequence Learning with Neural Networks", NeurIPS 2014, section 3.2 (beam search).
https://arxiv.org/abs/1409.3215
Wu et al., "Google's Neural Machine Translation System", 2016, section 7 (length normalisation). https://arxiv.org/abs/1609.08144
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.learner import PADDING

Carried = tuple[Tensor, ...]
"""What a model carries from one code to the next, each tensor (rows, ...)."""

Advance = Callable[[Tensor, Carried], tuple[Tensor, Carried]]
"""Takes the last code of each row, int64 (rows,), and what is carried; returns the next logits, (rows, codes + 1), and what to carry."""


@dataclass(frozen=True, slots=True)
class Search:
    """How to search.

    Attributes:
        boundary: The code that stands before the first one and ends a sequence: the last of the logits.
        longest: Most codes of a sequence, without its end; one of that length need not end.
        width: Beginnings that are kept, 1 or more.
        length_power: 0 ranks by likelihood, which favours short sequences; 1 by the likelihood of a code.
    """

    boundary: int
    longest: int
    width: int = 1
    length_power: float = 0.0


@torch.no_grad()
def greedy(advance: Advance, carried: Carried, search: Search) -> Tensor:
    """Return the codes that are likeliest one by one, int64 (batch, time): sequences without their ends, padded.

    Args:
        advance: One step of the model.
        carried: What its first step needs, tensors (batch, ...), at least one.
        search: Boundary and longest sequence.
    """
    last = torch.full((len(carried[0]),), search.boundary, device=carried[0].device)
    has_ended = torch.zeros_like(last, dtype=torch.bool)
    found: list[Tensor] = []
    while len(found) < search.longest and not has_ended.all():
        logits, carried = advance(last, carried)
        last = logits.argmax(dim=1)
        has_ended |= last == search.boundary
        found.append(last.masked_fill(has_ended, PADDING))
    return torch.stack(found, dim=1)


@torch.no_grad()
def beam_search(advance: Advance, carried: Carried, search: Search) -> Tensor:
    """Return the best sequences that the beam comes upon, int64 (batch, time), without their ends, padded.

    A sequence that has ended keeps its place in the beam until others rank above it.

    Args:
        advance: One step of the model.
        carried: What its first step needs, tensors (batch, ...), at least one.
        search: Boundary, longest sequence, width and ranking.
    """
    width, batch, device = search.width, len(carried[0]), carried[0].device
    first = torch.arange(batch, device=device).unsqueeze(1) * width  # (batch, 1): the first row of each beam
    carried = tuple(tensor.repeat_interleave(width, dim=0) for tensor in carried)  # (batch * width, ...)
    # All rows of a beam begin alike, so the first stands for the others.
    likelihoods = torch.full((batch, width), -math.inf, device=device)
    likelihoods[:, 0] = 0.0
    lengths = torch.zeros(batch, width, device=device)
    has_ended = torch.zeros(batch, width, dtype=torch.bool, device=device)
    last = torch.full((batch, width), search.boundary, device=device)
    found = torch.empty(batch, width, 0, dtype=torch.int64, device=device)
    while found.shape[2] < search.longest and not has_ended.all():
        logits, carried = advance(last.flatten(), carried)
        steps = functional.log_softmax(logits.float(), dim=1).view(batch, width, -1)  # (batch, width, codes + 1)
        # What has ended goes on by its end alone, at no cost.
        steps = steps.masked_fill(has_ended.unsqueeze(2), -math.inf)
        steps[..., search.boundary].masked_fill_(has_ended, 0.0)
        lengths = lengths + ~has_ended
        totals = likelihoods.unsqueeze(2) + steps
        ranks = totals / lengths.unsqueeze(2) ** search.length_power
        best = ranks.flatten(1).topk(width, dim=1).indices  # (batch, width)
        parents, last = best // steps.shape[2], best % steps.shape[2]
        likelihoods = totals.flatten(1).gather(1, best)
        lengths, has_ended = lengths.gather(1, parents), last == search.boundary
        rows = first + parents  # (batch, width)
        found = torch.cat([found.flatten(0, 1)[rows], last.masked_fill(has_ended, PADDING).unsqueeze(2)], dim=2)
        carried = tuple(tensor[rows.flatten()] for tensor in carried)
    return found[:, 0]
