"""Decoding against brute force: a toy with 3 symbols whose sequences can all be written down."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from models.decoding import Carried, Search, beam_search, greedy
from models.learner import PADDING

SYMBOLS = 3
LONGEST = 4
WHOLE_WIDTH = SYMBOLS**LONGEST
"""As many beginnings as there are: a beam of that width loses none."""


class Toy:
    """The next symbol depends on the last two: a table of logits for each of several sources, drawn from a seed."""

    def __init__(self, seed: int, sources: int = 5) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = (sources, SYMBOLS + 1, SYMBOLS + 1, SYMBOLS + 1)
        self.tables = torch.randn(*size, generator=generator, dtype=torch.float64).mul(1.5).float()
        self.carried: Carried = (torch.arange(sources), torch.full((sources,), SYMBOLS))

    def advance(self, codes: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        sources, before = carried
        return self.tables[sources, before, codes], (sources, codes)

    def log_likelihood(self, source: int, sequence: Sequence[int]) -> float:
        """Return log P of a sequence, with its end unless it is as long as may be."""
        outputs = [*sequence, SYMBOLS] if len(sequence) < LONGEST else [*sequence]
        before, last, total = SYMBOLS, SYMBOLS, 0.0
        for code in outputs:
            total += float(self.tables[source, before, last].log_softmax(dim=0)[code])
            before, last = last, code
        return total

    def best(self, source: int, length_power: float) -> list[int]:
        """Return the best of all sequences, tried one by one."""
        lengths = range(LONGEST + 1)
        every = [list(codes) for length in lengths for codes in itertools.product(range(SYMBOLS), repeat=length)]
        return max(every, key=lambda codes: self.rank(source, codes, length_power))

    def rank(self, source: int, codes: list[int], length_power: float) -> float:
        symbols = min(len(codes) + 1, LONGEST)
        return self.log_likelihood(source, codes) / float(symbols**length_power)


def plain(codes: Tensor) -> list[list[int]]:
    return [[code for code in row if code != PADDING] for row in codes.tolist()]


@pytest.mark.parametrize("length_power", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_beam_search_as_wide_as_can_be_finds_the_best_of_all(seed: int, length_power: float) -> None:
    toy = Toy(seed)
    found = beam_search(toy.advance, toy.carried, Search(SYMBOLS, LONGEST, WHOLE_WIDTH, length_power))
    assert plain(found) == [toy.best(source, length_power) for source in range(5)]


def slow_beam(toy: Toy, source: int, width: int, length_power: float) -> list[int]:
    """Beam search over lists: beginnings and whether they have ended, ranked anew in each step."""
    beam: list[tuple[float, list[int], bool]] = [(0.0, [], False)]
    for _ in range(LONGEST):
        longer = [item for item in beam if item[2]]
        for total, codes, has_ended in beam:
            if not has_ended:
                context = [SYMBOLS, SYMBOLS, *codes][-2:]
                steps = toy.tables[source, context[0], context[1]].log_softmax(dim=0).tolist()
                longer += [(total + steps[code], [*codes, code], False) for code in range(SYMBOLS)]
                longer.append((total + steps[SYMBOLS], codes, True))
        beam = sorted(longer, key=lambda item: -item[0] / (len(item[1]) + item[2]) ** length_power)[:width]
    return beam[0][1]


@pytest.mark.parametrize("length_power", [0.0, 1.0])
@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_beam_search_keeps_what_a_plain_beam_keeps(width: int, length_power: float) -> None:
    for seed in range(6):
        toy = Toy(seed)
        found = beam_search(toy.advance, toy.carried, Search(SYMBOLS, LONGEST, width, length_power))
        assert plain(found) == [slow_beam(toy, source, width, length_power) for source in range(5)]


def test_greedy_takes_the_likeliest_code_each_time() -> None:
    found_by_hand = []
    toy = Toy(3)
    for source in range(5):
        codes: list[int] = []
        while len(codes) < LONGEST:
            context = [SYMBOLS, SYMBOLS, *codes][-2:]
            code = int(toy.tables[source, context[0], context[1]].argmax())
            if code == SYMBOLS:
                break
            codes.append(code)
        found_by_hand.append(codes)
    search = Search(SYMBOLS, LONGEST)
    assert plain(greedy(toy.advance, toy.carried, search)) == found_by_hand
    assert plain(beam_search(toy.advance, toy.carried, search)) == found_by_hand


def test_wider_beams_find_what_greedy_search_misses() -> None:
    gains: list[float] = []
    for seed in range(6):
        toy = Toy(seed)
        narrow = plain(greedy(toy.advance, toy.carried, Search(SYMBOLS, LONGEST)))
        wide = plain(beam_search(toy.advance, toy.carried, Search(SYMBOLS, LONGEST, 4)))
        gains += [toy.log_likelihood(row, wide[row]) - toy.log_likelihood(row, narrow[row]) for row in range(5)]
    assert sum(gain > 1e-6 for gain in gains) > 3
    assert math.fsum(gains) > 0


def test_length_power_prefers_longer_sequences() -> None:
    lengths = []
    for length_power in (0.0, 1.0):
        found = [
            plain(beam_search(toy.advance, toy.carried, Search(SYMBOLS, LONGEST, 8, length_power)))
            for toy in map(Toy, range(6))
        ]
        lengths.append(sum(len(codes) for rows in found for codes in rows))
    assert lengths[0] < lengths[1]


def test_decoding_ends_as_soon_as_all_sequences_have() -> None:
    calls: list[int] = []

    def advance(codes: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        calls.append(len(codes))
        logits = torch.full((len(codes), SYMBOLS + 1), -9.0)
        logits[:, SYMBOLS if len(calls) > 1 else 2] = 9.0
        return logits, carried

    assert greedy(advance, (torch.zeros(2),), Search(SYMBOLS, 50)).tolist() == [[2, PADDING]] * 2
    assert calls == [2, 2]
