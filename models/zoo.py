"""The zoo: learners by name, built from the parameters of a spec."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from pydantic import ValidationError

from models.autoencoder import Autoencoder, AutoencoderParameters
from models.bayesian_network import BayesianNetwork, BayesianNetworkParameters
from models.bert import BERT, BERTParameters
from models.cnn import CNN, CNNParameters
from models.conv_autoencoder import ConvAutoencoder, ConvAutoencoderParameters
from models.diffusion import DDPM, DDPMParameters
from models.evolution import EvolutionParameters, EvolutionStrategy, GeneticAlgorithm, GeneticParameters
from models.gan import GAN, GANParameters
from models.gpt import GPT, GPTParameters
from models.gradient import GradientLearner
from models.hugging_face import (
    HuggingFaceCausalLM,
    HuggingFaceClassifierParameters,
    HuggingFaceParameters,
    HuggingFaceSequenceClassifier,
)
from models.learner import Learner
from models.mlp import MLP, MLPParameters, MLPRegressor, MLPRegressorParameters
from models.neurons import Perceptron, PerceptronParameters
from models.optimizers import check_optimizer
from models.own import own_learners, parameters_of, site_names
from models.rbf import RBFNetwork, RBFNetworkParameters
from models.rbm import RBM, RBMParameters
from models.recurrent import GRU, LSTM, RNN, RecurrentParameters
from models.score import ScoreMatching, ScoreMatchingParameters
from models.seq2seq import Seq2Seq, Seq2SeqParameters
from models.settings import check_settings
from models.t5 import T5, T5Parameters
from models.transformer import Transformer, TransformerParameters
from models.vae import VAE, VAEParameters
from wire.errors import LearnerError
from wire.seeds import derive_seed
from wire.spec import Named, RunSpec
from wire.tensors import State
from wire.validation import Strict, explain, findings


@dataclass(frozen=True, slots=True)
class Model:
    """One entry of the zoo: a learner's class and the model of its parameters."""

    learner: type[Any]
    parameters: type[Strict]

    @property
    def summary(self) -> str:
        """First line of the learner's docstring."""
        return (self.learner.__doc__ or "").strip().splitlines()[0]

    @property
    def explanation(self) -> str:
        """What the file says of its family: equations and source."""
        return (sys.modules[self.learner.__module__].__doc__ or "").strip()

    @property
    def task(self) -> str:
        """What it learns to do."""
        return str(getattr(self.learner, "task", ""))

    @property
    def needs_torch(self) -> bool:
        """Whether its coordinator must have torch: for a server step of its own, or for a base, which no client sends."""
        is_plain = self.learner.apply in (GradientLearner.apply, Perceptron.apply)
        base = self.parameters.model_fields.get("base")
        return not is_plain or (base is not None and base.is_required())

    @property
    def data(self) -> str:
        """What data suits it."""
        return str(getattr(self.learner, "data", ""))


MODELS: dict[str, Model] = {
    "perceptron": Model(Perceptron, PerceptronParameters),
    "mlp": Model(MLP, MLPParameters),
    "mlp_regressor": Model(MLPRegressor, MLPRegressorParameters),
    "rbf_network": Model(RBFNetwork, RBFNetworkParameters),
    "cnn": Model(CNN, CNNParameters),
    "autoencoder": Model(Autoencoder, AutoencoderParameters),
    "conv_autoencoder": Model(ConvAutoencoder, ConvAutoencoderParameters),
    "vae": Model(VAE, VAEParameters),
    "rbm": Model(RBM, RBMParameters),
    "bayesian_network": Model(BayesianNetwork, BayesianNetworkParameters),
    "gan": Model(GAN, GANParameters),
    "ddpm": Model(DDPM, DDPMParameters),
    "score_matching": Model(ScoreMatching, ScoreMatchingParameters),
    "rnn": Model(RNN, RecurrentParameters),
    "lstm": Model(LSTM, RecurrentParameters),
    "gru": Model(GRU, RecurrentParameters),
    "seq2seq": Model(Seq2Seq, Seq2SeqParameters),
    "transformer": Model(Transformer, TransformerParameters),
    "gpt": Model(GPT, GPTParameters),
    "bert": Model(BERT, BERTParameters),
    "t5": Model(T5, T5Parameters),
    "hf_causal_lm": Model(HuggingFaceCausalLM, HuggingFaceParameters),
    "hf_sequence_classifier": Model(HuggingFaceSequenceClassifier, HuggingFaceClassifierParameters),
    "evolution": Model(EvolutionStrategy, EvolutionParameters),
    "genetic": Model(GeneticAlgorithm, GeneticParameters),
}


def learners() -> dict[str, Model]:
    """Return all learners by name: the zoo's, those of installed packages and this site's own.

    Raises:
        LearnerError: One that is not the zoo's cannot be loaded, or has the name of another.
    """
    own = own_learners()
    _require_new(own)
    return MODELS | {name: Model(learner, parameters_of(learner)) for name, learner in own.items()}


def _require_new(names: Iterable[str]) -> None:
    if taken := sorted(MODELS.keys() & names):
        raise LearnerError(f"Learner {taken[0]}: name must not be that of a learner of the zoo. Rename the class.")


def build_learner(named: Named, device: torch.device | str = "cpu") -> Learner:
    """Build the learner that a spec names, on `device`.

    Raises:
        LearnerError: The name is unknown, or a learner of this site has one of the zoo's; a parameter breaks a rule; or the model is
            larger than torch or the machine can hold.
    """
    _require_new(site_names())
    # The zoo's come first: to look for others takes a moment, and they cannot take a name of the zoo's.
    if (model := MODELS.get(named.name) or (known := learners()).get(named.name)) is None:
        raise LearnerError(
            f"Learner: name must be one of {', '.join(sorted(known))}, got {named.name!r}.", "learner.name"
        )
    try:
        parameters = model.parameters.model_validate(named.parameters)
    except ValidationError as error:
        raise LearnerError(explain(error, f"Learner {named.name}"), findings=findings(error, "learner")) from error
    try:
        return cast(Learner, model.learner(parameters, torch.device(device)))
    except (RuntimeError, TypeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise LearnerError(f"Learner {named.name}: the model must fit into memory, got: {reason}", "learner") from error


def first_state(learner: Learner, spec: RunSpec) -> State:
    """Return the state in which a run begins, drawn from its seed alone: a client draws the same as a coordinator."""
    return learner.init(derive_seed(spec.seed, "init"))


def check_spec(spec: RunSpec) -> None:
    """Check what only the zoo knows: the learner's parameters, both optimizers, and whether the learner makes use of what is set.

    Raises:
        LearnerError: A name or parameter breaks a rule.
    """
    for key, optimizer, is_server in (
        ("local", spec.local.optimizer, False),
        ("server", spec.server.optimizer, True),
    ):
        try:
            check_optimizer(optimizer, is_server)
        except LearnerError as error:
            raise LearnerError(f"Run spec: {key}.optimizer: {error}", f"{key}.optimizer") from error
    with torch.device("meta"):
        check_settings(spec, build_learner(spec.learner, "meta"))
    if spec.evaluate.on == "coordinator" and spec.learner.parameters.get("statistics") == "local":
        raise LearnerError(
            "Run spec: evaluate.on must be 'clients' where the learner's statistics are local, got 'coordinator': "
            "nobody but a client has any.",
            "evaluate.on",
        )
