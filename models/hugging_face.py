"""Models of the package `transformers`, from a folder that lies on each machine: fine-tuned in full, or by LoRA with `peft`.

Data are bytes of text, as for the models of our own, and the base's tokenizer reads them when they are trained on: so any base can take any
text, and data sources, partitions and checks need to know no tokens. With LoRA only the adapters and a classifier's new head are trained
and travel, with features only the new head; the base's own tensors stay as they are to the bit.

A base must have safetensors weights and code that is part of transformers: pickled weights and code of its own are never read.

Source: Wolf et al., "Transformers: State-of-the-Art Natural Language Processing", EMNLP 2020. https://arxiv.org/abs/1910.03771
Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. https://arxiv.org/abs/2106.09685
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models import tasks
from models.bases import BaseName, find_base
from models.classifier import ClassifierParameters, MeasuresClasses
from models.gradient import GradientLearner, GradientParameters
from models.language import check_no_targets, check_windows, drawn, perplexity
from models.learner import PADDING, Examples, SampleRequest
from models.lora import LoRAParameters
from models.memory import longest
from models.text_features import FeatureClassifier
from wire.errors import LearnerError
from wire.spec import LocalSpec
from wire.tensors import State


class HuggingFaceParameters(GradientParameters):
    """What both learners take."""

    base: BaseName
    """Name of the base: a folder with config.json, safetensors weights and a tokenizer, on the coordinator and on each client."""
    window: int = Field(default=256, ge=1, le=1 << 16)
    """Most bytes of a text."""
    lora: LoRAParameters | None = None
    """Train a low-rank correction only; `targets` are names of dense layers, such as query and value in a BERT and c_attn in a GPT-2."""

    # They have a base of their own, of which nothing can be drawn anew.
    needs_base = ("reset",)


class HuggingFaceClassifierParameters(HuggingFaceParameters, ClassifierParameters):
    """Parameters of the learner `hf_sequence_classifier`."""

    classes: int = Field(default=2, ge=2)
    """Number of classes."""
    features: bool = False
    """Leave the base as it is and train a dense layer on the mean of its last hidden states, which are made once for each text."""

    @model_validator(mode="after")
    def _leaves_base(self) -> Self:
        if self.features and self.lora is not None:
            raise ValueError("features must be false with lora, which changes them, got true")
        return self


class HuggingFaceLearner(GradientLearner):
    """A network of transformers on texts."""

    parameters: HuggingFaceParameters
    has_new_head = False
    """Whether the network has layers that its base has not, which are trained with the adapters."""

    def build(self) -> nn.Module:
        """Return the base's network, with its weights where there is memory for them, adapted if `lora` is given.

        Raises:
            LearnerError: The base is not there, is another one, or cannot be read.
        """
        transformers = _transformers()
        is_real = torch.get_default_device().type != "meta"
        # Only where weights are read: a digest takes as long as reading them.
        folder = find_base(self.parameters.base, self.parameters.base_sha256 if is_real else None)
        subject = f"Base {self.parameters.base}"
        if not folder.is_dir() or (folder / "adapter_config.json").exists():
            raise LearnerError(f"{subject}: must be a folder with a whole model of transformers, got {folder.name}.")
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **local, **self.options())
            kind = self.kind(transformers)
            if not is_real:
                module: nn.Module = kind.from_config(config, trust_remote_code=False, dtype=torch.float32)
            else:
                module, report = kind.from_pretrained(
                    folder, config=config, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **local
                )
                self._check_missing(module, report["missing_keys"])
        except (OSError, ValueError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise LearnerError(f"{subject}: must be readable by transformers, got: {reason:.300}") from error
        if (most := getattr(config, "max_position_embeddings", None)) and self.parameters.window + 2 > most:
            raise LearnerError(f"{subject}: window must be at most {most - 2}, got {self.parameters.window}.")
        if self.parameters.lora is not None:
            self._adapt(module, self.parameters.lora)
        return self.headed(module)

    @abstractmethod
    def kind(self, transformers: Any) -> Any:
        """Return the auto class of the network."""

    def options(self) -> Mapping[str, object]:
        """Return what the configuration is to have beside what the base says."""
        return {}

    def headed(self, module: nn.Module) -> nn.Module:
        """Return the network with a head of ours, if it is to have one."""
        return module

    @property
    def keeps_base(self) -> bool:
        """Whether the base's own tensors stay as they are."""
        return self.parameters.lora is not None

    def frozen_names(self) -> frozenset[str]:
        """Return all that is not trained, and second names of tensors that have two: those travel once."""
        own = {name for name, parameter in self._module.named_parameters() if parameter.requires_grad}
        own |= set() if self.keeps_base else {name for name, _ in self._module.named_buffers()}
        return super().frozen_names() | frozenset(self._module.state_dict().keys() - own)

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer, read when it is first needed."""
        folder = find_base(self.parameters.base)
        try:
            return _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise LearnerError(f"Base {self.parameters.base}: must have a tokenizer, got: {reason:.300}") from error

    def _token(self, *kinds: str) -> int:
        """Return the first of these special tokens, such as "eos", that the tokenizer has."""
        for kind in kinds:
            if (found := getattr(self.tokenizer, f"{kind}_token_id")) is not None:
                return int(found)
        raise LearnerError(f"Base {self.parameters.base}: tokenizer must have a token {' or '.join(kinds)}, got none.")

    def logits(self, tokens: Tensor) -> Tensor:
        """Run the network on int64 (batch, time) with `PADDING` at the end."""
        is_token = tokens != PADDING
        config: Any = self._module.config
        filled = tokens.masked_fill(~is_token, config.pad_token_id or 0)
        logits: Tensor = self._module(input_ids=filled, attention_mask=is_token.long()).logits
        return logits

    def padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return rows of tokens as one tensor, int64 (batch, time), with `PADDING` at the end."""
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[PADDING] * (longest - len(row))] for row in rows], device=self._device)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy over all targets that are not padding."""
        return tasks.code_loss(outputs, targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Accuracy."""
        is_target = targets != PADDING
        return {"accuracy": (outputs.argmax(dim=-1) == targets)[is_target].double().mean()}

    def is_of_base(self, module: nn.Module, name: str) -> bool:
        """Tell whether a tensor must come from the base where that stays as it is."""
        return name.startswith(f"{module.base_model_prefix}.")

    def _check_missing(self, module: nn.Module, names: Iterable[str]) -> None:
        """Check that nothing is missing that would stay as it was drawn."""
        missing = sorted(name for name in names if self.is_of_base(module, name))
        if self.keeps_base and missing:
            raise ValueError(f"tensor {missing[0]} is missing, as are {len(missing) - 1} others")

    def _adapt(self, module: nn.Module, lora: LoRAParameters) -> None:
        """Put adapters into the layers that are targets, and let only them and a new head learn."""
        from peft import LoraConfig, inject_adapter_in_model
        from transformers.pytorch_utils import Conv1D

        layers = {
            name.rpartition(".")[2]: part
            for name, part in module.named_modules()
            if isinstance(part, nn.Linear | Conv1D)
        }
        if unknown := sorted(set(lora.targets) - set(layers)):
            known = ", ".join(sorted(layers))
            raise LearnerError(f"Base {self.parameters.base}: lora.targets must be among {known}, got {unknown[0]!r}.")
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type] # only ever divided by the rank
            target_modules=lora.targets,
            fan_in_fan_out=isinstance(layers[lora.targets[0]], Conv1D),
        )
        inject_adapter_in_model(config, module)
        for name, parameter in module.named_parameters():
            if self.has_new_head and not name.startswith(f"{module.base_model_prefix}."):
                parameter.requires_grad_(True)


class HuggingFaceCausalLM(HuggingFaceLearner):
    """Any decoder of transformers on windows of text."""

    name = "hf_causal_lm"
    samples_text = True
    task = "predict the next token"
    data = "text"

    def kind(self, transformers: Any) -> Any:
        """Return the auto class for next tokens."""
        return transformers.AutoModelForCausalLM

    def check(self, data: Examples) -> None:
        """Check that inputs are texts as bytes; what comes after each byte is known from them."""
        check_windows(self.name, data.inputs, 256, self.parameters.window, is_padded=True)
        check_no_targets(self.name, data)

    def batch_loss(self, batch: Examples) -> Tensor:
        """Predict each token of the texts from those before it."""
        tokens = self._tokens(_texts(batch.inputs))
        return self.loss(self.logits(tokens)[:, :-1], tokens[:, 1:])

    def measure_batch(self, batch: Examples) -> Mapping[str, Tensor]:
        """Measure tokens, and the bits that a character takes: those can be compared between tokenizers."""
        texts = _texts(batch.inputs)
        tokens = self._tokens(texts)
        outputs, targets = self.logits(tokens)[:, :-1], tokens[:, 1:]
        counts = (targets != PADDING).sum(1)
        nats = tasks.code_loss(outputs, targets, reduction="none").sum(1)
        characters = torch.tensor([max(1, len(text)) for text in texts], device=self._device)
        # Means over each text, then over texts: so they are the same in any batch.
        return {
            "loss": (nats / counts).mean(),
            "accuracy": ((outputs.argmax(dim=2) == targets).sum(1) / counts).mean(),
            "bits_per_character": (nats / characters).mean() / math.log(2),
        }

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        """Add the perplexity of tokens."""
        return means | {"perplexity": perplexity(means["loss"])}

    @torch.no_grad()
    def sample(self, state: State, request: SampleRequest) -> Tensor:
        """Write on from the prompt, token by token; return prompt and text as bytes, int64 (count, time), perhaps padded."""
        self._load(state)
        self._module.eval()
        prompt = b"" if request.prompt is None else bytes(request.prompt.tolist())
        tokens = self._tokens([prompt.decode(errors="ignore")]).repeat(request.count, 1)
        start = tokens.shape[1]
        # A token is a byte or more; those that are more are cut.
        with self._autocast():
            for _ in range(request.length):
                logits = self.logits(tokens[:, -self.parameters.window :])[:, -1]
                token = drawn(logits, request.temperature, request.generator).to(self._device)
                tokens = torch.cat([tokens, token.unsqueeze(1)], dim=1)
        texts = [self.tokenizer.decode(row, skip_special_tokens=True).encode() for row in tokens[:, start:]]
        rows = [[*prompt, *text[: request.length]] for text in texts]
        return self.padded(rows).cpu()

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts after one that begins each of them."""
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return self.padded([[self._first, *row] for row in rows])

    @cached_property
    def _first(self) -> int:
        """The token before a text, from which its first one is predicted."""
        return self._token("bos", "eos", "cls")


class HuggingFaceSequenceClassifier(HuggingFaceLearner, MeasuresClasses):
    """Any model of transformers on texts with classes."""

    name = "hf_sequence_classifier"
    task = "classify"
    data = "texts with classes"

    parameters: HuggingFaceClassifierParameters
    has_new_head = True

    def kind(self, transformers: Any) -> Any:
        """Return the auto class for classes of texts, or for features the one without a head."""
        return transformers.AutoModel if self.parameters.features else transformers.AutoModelForSequenceClassification

    def options(self) -> Mapping[str, object]:
        """Return the number of classes."""
        return {"num_labels": self.parameters.classes}

    def headed(self, module: nn.Module) -> nn.Module:
        """Return the network, with a dense layer on its features if those are asked for."""
        config: Any = module.config
        if not self.parameters.features:
            if config.pad_token_id is None:
                # Decoders classify by what they say at the last token that is no padding, and must know it.
                config.pad_token_id = self._token("pad", "eos")
            if config.is_encoder_decoder:
                # They classify by what the decoder, which reads the text too, says at its end.
                config.eos_token_id = self._token("eos")
                if getattr(config, "decoder_start_token_id", None) is None:
                    config.decoder_start_token_id = config.pad_token_id
            return module
        if config.is_encoder_decoder:
            raise LearnerError(
                f"Base {self.parameters.base}: features must be of an encoder or a decoder, got a model of both."
            )
        return FeatureClassifier(module, config.hidden_size, self.parameters.classes)

    @property
    def keeps_base(self) -> bool:
        """Whether the base's own tensors stay as they are."""
        return self.parameters.features or super().keeps_base

    def is_of_base(self, module: nn.Module, name: str) -> bool:
        """Tell whether a tensor must come from the base: of the network without a head all but the pooler, which features do not pass."""
        return not name.startswith("pooler.") if self.parameters.features else super().is_of_base(module, name)

    def check(self, data: Examples) -> None:
        """Check that inputs are texts as bytes, perhaps padded, and targets classes."""
        check_windows(self.name, data.inputs, 256, self.parameters.window, is_padded=True)
        tasks.check_classes(self.name, data, self.parameters.classes)

    def step_bytes(self, data: Examples, local: LocalSpec) -> int:
        """Estimate what a step takes; with features also the pass of a text through the base, and the features of all. Raises as `fit`."""
        needed = super().step_bytes(data, local)
        if self.parameters.features:
            (text,) = _texts(longest(data, 1).inputs)
            needed += self._extractor.pass_bytes(self._alone(text)) + len(data) * self._features(text).nbytes
        return needed

    def batch_loss(self, batch: Examples) -> Tensor:
        """Classify the texts."""
        return self.loss(self.outputs(batch), batch.targets)

    def measure_batch(self, batch: Examples) -> Mapping[str, Tensor]:
        """Measure classes."""
        outputs = self.outputs(batch)
        return {"loss": self.loss(outputs, batch.targets), **self.measure(outputs, batch.targets)}

    def outputs(self, batch: Examples) -> Tensor:
        """Return the logits of texts, (batch, classes)."""
        texts = _texts(batch.inputs)
        if not self.parameters.features:
            return self.logits(self.padded([*map(self._ended, self.tokenizer(texts)["input_ids"])]))
        logits: Tensor = self._module(torch.stack([self._features(text) for text in texts]))
        return logits

    def _ended(self, tokens: list[int]) -> list[int]:
        """Return the tokens of a text, for an encoder and decoder with an end behind them and no other: there may be as much in a text."""
        config: Any = self._module.config
        if not config.is_encoder_decoder:
            return tokens
        end = config.eos_token_id
        return [*(token for token in tokens if token != end), end]

    def _features(self, text: str) -> Tensor:
        """Return the features of a text, (width,).

        They are made once, from the text alone: so they are the same to the bit in any batch, round and process. All that are kept take
        about as much memory as the texts themselves do.
        """
        if text not in self._known:
            self._known[text] = self._extractor.features(self._alone(text))
        return self._known[text]

    def _alone(self, text: str) -> Tensor:
        """Return the tokens of one text, (1, time)."""
        return self.padded([self.tokenizer(text)["input_ids"]])

    @property
    def _extractor(self) -> FeatureClassifier:
        return cast(FeatureClassifier, self._module)

    @cached_property
    def _known(self) -> dict[str, Tensor]:
        """The features of the texts so far."""
        return {}


def _texts(inputs: Tensor) -> list[str]:
    """Return texts of bytes, int64 (batch, time) with `PADDING`; a character that a window cuts is left out."""
    return [bytes(code for code in row if code != PADDING).decode(errors="ignore") for row in inputs.tolist()]


def _transformers() -> Any:
    """Import the package, which takes seconds, and keep it from writing on the screen."""
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers
