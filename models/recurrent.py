"""Long short-term memory as a next-character model: embedding, stacked LSTM, and a dense layer over the characters.

    c_t = f_t * c_{t-1} + i_t * tanh(W_c [h_{t-1}, x_t] + b_c),   h_t = o_t * tanh(c_t),   logits_t = W h_t + b

Source: Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997, with forget gates (Gers et al. 2000).
https://doi.org/10.1162/neco.1997.9.8.1735
"""

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor, nn

from models import tasks
from models.errors import unsuited
from models.gradient import GradientLearner, GradientParameters
from models.learner import Examples


class LSTMParameters(GradientParameters):
    """Parameters of the learner `lstm`."""

    vocabulary: int = Field(default=256, ge=2, le=1 << 20)
    """Number of codes; 256 for bytes of text."""
    embedding: int = Field(default=8, ge=1)
    """Width of a character's embedding."""
    hidden: int = Field(default=128, ge=1)
    """Width of the hidden state."""
    layers: int = Field(default=1, ge=1, le=16)
    """Stacked LSTM layers."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Part of the outputs that is dropped in training, between layers and before the last one."""


class NextCharacter(nn.Module):
    """Codes (batch, time) to logits (batch, vocabulary, time)."""

    def __init__(self, parameters: LSTMParameters) -> None:
        super().__init__()
        self.embedding = nn.Embedding(parameters.vocabulary, parameters.embedding)
        between = parameters.dropout if parameters.layers > 1 else 0.0
        self.lstm = nn.LSTM(
            parameters.embedding, parameters.hidden, parameters.layers, batch_first=True, dropout=between
        )
        self.dropout = nn.Dropout(parameters.dropout)
        self.dense = nn.Linear(parameters.hidden, parameters.vocabulary)

    def forward(self, codes: Tensor) -> Tensor:
        """Predict the code after each position."""
        outputs, _ = self.lstm(self.embedding(codes))  # (batch, time, hidden)
        logits: Tensor = self.dense(self.dropout(outputs))  # (batch, time, vocabulary)
        return logits.transpose(1, 2)  # (batch, vocabulary, time)


class LSTM(GradientLearner):
    """Next-character model on windows of text."""

    task = "predict the next character"
    data = "text"
    parameters: LSTMParameters

    def build(self) -> nn.Module:
        """Return the network."""
        return NextCharacter(self.parameters)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy over all positions."""
        return tasks.classification_loss(outputs, targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Accuracy and bits per character."""
        return tasks.next_code_measures(outputs, targets)

    def check(self, data: Examples) -> None:
        """Check that inputs and targets are windows of codes."""
        if data.inputs.dim() != 2 or data.targets.shape != data.inputs.shape:
            raise unsuited("Learner lstm: examples must be windows of text", f"shape {data.example_shape}")
        tasks.check_codes("lstm", "codes", data.inputs, self.parameters.vocabulary)
        tasks.check_codes("lstm", "codes", data.targets, self.parameters.vocabulary)
