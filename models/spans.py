"""Span corruption: what T5 is pre-trained on. Spans of a text go into gaps, and the answer is what was in them.

    text     n n n N N n n N      n: kept, N: a gap
    inputs   n n n <0> n n <1>    each gap is one sentinel
    answer   <0> N N <1> N        the same the other way round: each part that was kept is one sentinel

Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 21(140), 2020,
section 3.1.4 and figure 2. https://arxiv.org/abs/1910.10683
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Spans:
    """The gaps of texts of one length. Where they are is drawn, how many there are is not: so a batch has one shape.

    Attributes:
        length: Codes of a text.
        noise: Part of the codes that goes into gaps.
        span: Mean length of a gap.
        first: The first sentinel; the others follow.
    """

    length: int
    noise: float
    span: float
    first: int

    @property
    def noise_count(self) -> int:
        """Codes that go into gaps."""
        return max(min(self.length - 1, max(1, round(self.noise * self.length))), 0)

    @property
    def count(self) -> int:
        """Gaps; 0 of texts that are too short for one."""
        most = min(self.noise_count, self.length - self.noise_count)
        return min(most, max(1, round(self.noise_count / self.span)))

    def corrupt(self, codes: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs, (batch, length - noise_count + count), and answers, (batch, noise_count + count).

        Args:
            codes: int64 (batch, length).
            draws: Uniform from 0 to 1, (batch, length, 2): where gaps, and where kept parts are cut from one another.
        """
        kept = self._parts(draws[:, :, 1], self.length - self.noise_count)
        gaps = self._parts(draws[:, :, 0], self.noise_count)
        ends = torch.stack([kept, gaps], dim=2).flatten(1).cumsum(1)  # (batch, 2 * count): kept, gap, kept, gap ...
        places = torch.arange(self.length, device=codes.device).expand(len(codes), -1).contiguous()
        part = torch.searchsorted(ends, places, right=True)  # (batch, length)
        return self._replaced(codes, part, 1), self._replaced(codes, part, 0)

    def _parts(self, draws: Tensor, total: int) -> Tensor:
        """Cut `total` codes into `count` parts of 1 or more, each way as likely as the others; return their lengths, (batch, count)."""
        cuts = draws[:, : total - 1].topk(self.count - 1).indices.sort(dim=1).values + 1
        edges = [cuts.new_zeros(len(cuts), 1), cuts, cuts.new_full((len(cuts), 1), total)]
        return torch.cat(edges, dim=1).diff(dim=1)

    def _replaced(self, codes: Tensor, part: Tensor, odd: int) -> Tensor:
        """Put one sentinel in the place of each odd part, or of each even one."""
        is_replaced = part % 2 == odd
        is_first = torch.ones_like(is_replaced)
        is_first[:, 1:] = part.diff(dim=1) != 0
        values = torch.where(is_replaced, self.first + part // 2, codes)
        return values[~is_replaced | is_first].view(len(codes), -1)
