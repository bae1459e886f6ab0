"""Classes of texts from features of a base that stays as it is: what is trained, and travels, is one dense layer.

    u = mean over time of the base's last hidden states,    class ~ softmax(W u + b)

Source: Reimers and Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks", EMNLP 2019, section 3 (mean pooling) and
table 5 (a classifier on fixed features). https://arxiv.org/abs/1908.10084
"""

import torch
from torch import Tensor, nn


class FeatureClassifier(nn.Module):
    """A base of transformers that is never trained, and a dense layer on the features it makes of a text."""

    def __init__(self, base: nn.Module, width: int, classes: int) -> None:
        """Take over the base, whose hidden states have `width` numbers."""
        super().__init__()
        self.base = base.requires_grad_(False)
        self.classifier = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, width) to (batch, classes)."""
        logits: Tensor = self.classifier(features)
        return logits

    @torch.no_grad()
    def features(self, tokens: Tensor) -> Tensor:
        """Return the features of one text, float32 (width,), from its tokens, int64 (1, time), which have no padding."""
        hidden: Tensor = self.base(input_ids=tokens).last_hidden_state  # (1, time, width)
        return hidden[0].float().mean(dim=0)

    def pass_bytes(self, tokens: Tensor) -> int:
        """Estimate the bytes of the pass of one text: what goes into a layer, comes out and goes round it, each the largest there is."""
        largest = 0

        def note(module: nn.Module, inputs: object, output: object) -> None:
            nonlocal largest
            if isinstance(output, Tensor):
                largest = max(largest, output.nbytes)

        hooks = [part.register_forward_hook(note) for part in self.base.modules()]
        self.features(tokens)
        for hook in hooks:
            hook.remove()
        return 3 * largest
