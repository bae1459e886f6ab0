"""What language models share: codes to predict, some of them none, and how well that went.

Accuracy and perplexity are not torchmetrics', for the reasons in tasks.py: perplexity is exp of the mean loss over all batches.
"""

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from models import tasks
from models.errors import unsuited
from models.gradient import GradientLearner
from models.learner import PADDING, Examples, SampleRequest


class LanguageModel(GradientLearner):
    """Trains a module whose outputs are logits (batch, time, vocabulary) to predict int64 codes (batch, time), but no `PADDING`."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy over all codes that are to be predicted."""
        return tasks.code_loss(outputs, targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Top-1 accuracy over all codes that are to be predicted."""
        is_wanted = targets != PADDING
        return {"accuracy": (outputs.argmax(dim=2) == targets)[is_wanted].double().mean()}

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        """Add perplexity, exp(loss), and bits per character, loss / log 2."""
        loss = means["loss"]
        return means | {"bits_per_character": loss / math.log(2), "perplexity": perplexity(loss)}


def perplexity(loss: float) -> float:
    """Return exp(loss); above a loss of 700 that of 700, because there is no float for more."""
    return math.exp(min(loss, 700.0))


def check_windows(learner: str, codes: Tensor, vocabulary: int, longest: int, is_padded: bool = False) -> None:
    """Check that `codes` are int64 (examples, time), 0 to vocabulary - 1, and not longer than `longest`. Raises `DataError`.

    Those that may be padded may end in `PADDING`, after at least one code.
    """
    if codes.dim() != 2 or not 1 <= codes.shape[1] <= longest:
        rule = f"Learner {learner}: examples must be windows of 1 to {longest} codes"
        raise unsuited(
            rule,
            f"shape {tuple(codes.shape[1:])}",
            "Take a larger window for the learner, or a smaller one for the data.",
        )
    if is_padded and codes.dtype == torch.int64:
        is_end = codes == PADDING
        if is_end[:, 0].any() or (is_end[:, :-1] & ~is_end[:, 1:]).any():
            raise unsuited(
                f"Learner {learner}: padding ({PADDING}) must follow the codes, of which there is one or more",
                "other places",
            )
        codes = codes.masked_fill(is_end, 0)
    tasks.check_codes(learner, "codes", codes, vocabulary)


def own_draws(codes: Tensor, count: int) -> Tensor:
    """Return draws that follow from each example's codes alone, uniform from 0 to 1, (batch, time, count).

    Args:
        codes: int64 (batch, time).
        count: Draws for each code.
    """
    seeds = [int.from_bytes(hashlib.sha256(row.tobytes()).digest()[:8], "little") >> 1 for row in codes.cpu().numpy()]
    draws = [torch.rand(codes.shape[1], count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws).to(codes.device)


def drawn(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Draw a code a row, int64 (batch,), from softmax(logits / temperature); logits are (batch, vocabulary)."""
    logits = logits.float().cpu()
    # Their largest becomes 0, so that no temperature makes them infinite.
    odds = ((logits - logits.amax(dim=1, keepdim=True)) / temperature).softmax(dim=1)
    return torch.multinomial(odds, 1, generator=generator).squeeze(1)


def prompt_of(learner: str, request: SampleRequest, count: int) -> Tensor:
    """Return what texts begin with, int64 (time,), perhaps of no time. Raises `DataError` if not all codes are 0 to count - 1."""
    prompt = torch.zeros(0, dtype=torch.int64) if request.prompt is None else request.prompt
    tasks.check_codes(learner, "codes of the prompt", prompt, count)
    return prompt


def check_next_codes(learner: str, data: Examples, vocabulary: int, longest: int) -> None:
    """Check that inputs and targets are windows of codes. Raises `DataError`."""
    check_windows(learner, data.inputs, vocabulary, longest)
    if data.targets.shape != data.inputs.shape:
        rule = f"Learner {learner}: targets must be the code after each of the inputs"
        raise unsuited(rule, f"shape {tuple(data.targets.shape[1:])} for inputs of {data.example_shape}")
    tasks.check_codes(learner, "targets", data.targets, vocabulary)


def check_no_targets(learner: str, data: Examples) -> None:
    """Check that targets, which a learner makes itself, are none, classes or codes all the same. Raises `DataError`."""
    if data.targets.dim() > 2:
        raise unsuited(
            f"Learner {learner}: targets must be codes, classes or none", f"shape {tuple(data.targets.shape[1:])}"
        )
