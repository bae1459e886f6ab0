"""GPT against another one with the same weights, and on Shakespeare."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.text import perplexity

from client.data import LocalData
from models import DataError, Examples, LearnerError, build_learner
from models.gpt import GPT, GPTParameters
from models.language import drawn
from models.learner import Sampler, SampleRequest
from simulation.serial import run_serially
from tests.models.text import ROLES, adam, joined, plays, role, trained, unigram_bits, windows
from tests.server.cohorts import opened
from wire.spec import Named, validate_spec
from wire.tensors import Layout

CPU = torch.device("cpu")


def gpt(**parameters: object) -> GPT:
    return GPT(GPTParameters.model_validate(parameters), CPU)


def codes(*shape: int, below: int = 256) -> torch.Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(3))


def test_changing_a_later_code_changes_no_earlier_logit_to_the_bit() -> None:
    module = gpt(window=20).build()
    inputs = codes(2, 20)
    logits = module(inputs)
    for place in range(20):
        changed = inputs.clone()
        changed[:, place] = (changed[:, place] + 1) % 256
        found = module(changed)
        assert torch.equal(found[:, :place], logits[:, :place])
        assert not torch.equal(found[:, place], logits[:, place])


def test_logits_equal_those_of_transformers_gpt2_with_the_same_weights() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    state = gpt(window=12, width=24, heads=3, layers=2).init(5)
    module = gpt(window=12, width=24, heads=3, layers=2).build()
    module.load_state_dict(dict(state))
    config = GPT2Config(
        vocab_size=256,
        n_positions=12,
        n_embd=24,
        n_layer=2,
        n_head=3,
        activation_function="gelu",
        bos_token_id=0,
        eos_token_id=0,
    )
    theirs = GPT2LMHeadModel(config).eval()
    renamed = {
        "transformer.wte.weight": state["codes.weight"],
        "transformer.wpe.weight": state["positions.weight"],
        "transformer.ln_f.weight": state["norm.weight"],
        "transformer.ln_f.bias": state["norm.bias"],
    }
    for layer in range(2):
        own, other = f"blocks.{layer}.", f"transformer.h.{layer}."
        for kind in ("weight", "bias"):
            # Their dense layers are transposed, and those of query, key and value are one.
            parts = [state[f"{own}attention.{part}.{kind}"] for part in ("query", "key", "value")]
            renamed[f"{other}attn.c_attn.{kind}"] = torch.cat(parts).t()
            renamed[f"{other}attn.c_proj.{kind}"] = state[f"{own}attention.output.{kind}"].t()
            renamed[f"{other}mlp.c_fc.{kind}"] = state[f"{own}feed_forward.expand.{kind}"].t()
            renamed[f"{other}mlp.c_proj.{kind}"] = state[f"{own}feed_forward.contract.{kind}"].t()
            renamed[f"{other}ln_1.{kind}"] = state[f"{own}attention_norm.{kind}"]
            renamed[f"{other}ln_2.{kind}"] = state[f"{own}feed_forward_norm.{kind}"]
    assert theirs.load_state_dict(renamed, strict=False).missing_keys == ["lm_head.weight"]
    inputs = codes(2, 12)
    torch.testing.assert_close(module(inputs), theirs(inputs).logits, rtol=1e-4, atol=1e-6)


def test_state_has_the_embedding_once_and_the_numbers_counted_by_hand() -> None:
    state = gpt(window=80, width=96, heads=4, layers=3).init(1)
    block = 4 * (96 * 96 + 96) + (96 * 384 + 384) + (384 * 96 + 96) + 2 * 2 * 96
    assert Layout.of(state).size == 256 * 96 + 80 * 96 + 3 * block + 2 * 96 == 367_968
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


def test_new_model_finds_all_codes_about_as_likely() -> None:
    learner = gpt()
    loss = learner.evaluate(learner.init(1), Examples(codes(64, 80), codes(64, 80).flip(0))).metrics["loss"]
    assert loss == pytest.approx(math.log(256), abs=0.05)


def test_evaluate_reports_what_torchmetrics_finds() -> None:
    learner = gpt(layers=1)
    # Weights large enough that codes are not all as likely.
    state = {name: 5 * tensor for name, tensor in learner.init(1).items()}
    data = Examples(codes(8, 80), codes(8, 80).flip(0))
    module = learner.build()
    module.load_state_dict(state)
    logits = module(data.inputs).detach()
    metrics = learner.evaluate(state, data).metrics
    assert metrics["perplexity"] == pytest.approx(float(perplexity(logits, data.targets)), rel=1e-5)
    assert metrics["bits_per_character"] == pytest.approx(math.log2(metrics["perplexity"]))
    assert metrics["accuracy"] == float((logits.argmax(2) == data.targets).double().mean())


def test_evaluate_of_a_model_that_has_diverged_is_finite_where_the_loss_is() -> None:
    learner = gpt()
    state = {name: 1e4 * torch.ones_like(tensor) for name, tensor in learner.init(1).items()}
    state["codes.weight"][::2] *= -1
    metrics = learner.evaluate(state, Examples(codes(2, 80), codes(2, 80).flip(0))).metrics
    assert metrics["loss"] > 700
    assert metrics["perplexity"] == math.exp(700)


def sampled(count: int = 2, seed: int = 1, **request: object) -> torch.Tensor:
    learner = gpt(window=8)
    wanted = SampleRequest(count, torch.Generator().manual_seed(seed), **request)  # type: ignore[arg-type]
    return learner.sample({name: 5 * tensor for name, tensor in learner.init(1).items()}, wanted)


def test_sample_writes_on_from_the_prompt_beyond_the_window() -> None:
    prompt = torch.tensor([84, 111])
    before = torch.get_rng_state()
    found = sampled(3, prompt=prompt, length=20)
    assert found.shape == (3, 22)
    assert found.dtype == torch.int64
    assert torch.equal(found[:, :2], prompt.expand(3, 2))
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found, sampled(3, prompt=prompt, length=20))
    assert not torch.equal(found, sampled(3, seed=2, prompt=prompt, length=20))
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(gpt(), Sampler)


@pytest.mark.parametrize("prompt", [[], [84], [84, 111]])
def test_sample_of_low_temperature_is_the_likeliest_text_after_a_new_line(prompt: list[int]) -> None:
    learner = gpt(window=8)
    module = learner.build()
    module.load_state_dict({name: 5 * tensor for name, tensor in learner.init(1).items()})
    expected = [10, *prompt]
    for _ in range(12):
        expected.append(int(module(torch.tensor([expected[-8:]]))[0, -1].argmax()))
    found = sampled(1, prompt=torch.tensor(prompt, dtype=torch.int64) if prompt else None, length=12, temperature=1e-4)
    assert found.tolist() == [expected[1:]]


def test_sample_of_a_small_vocabulary_stays_in_it() -> None:
    learner = gpt(vocabulary=4)
    found = learner.sample(learner.init(1), SampleRequest(2, torch.Generator(), length=30))
    assert set(found.flatten().tolist()) == {0, 1, 2, 3}


def test_sample_of_a_prompt_beyond_the_vocabulary_is_refused() -> None:
    learner = gpt(vocabulary=8)
    request = SampleRequest(1, torch.Generator(), torch.tensor([1, 9]))
    with pytest.raises(DataError, match=r"^Learner gpt: codes of the prompt must be 0 to 7, got 9 in example 1\.$"):
        learner.sample(learner.init(5), request)


def test_sample_is_computed_in_the_precision_that_is_asked_for() -> None:
    seen = set()
    for precision in ("float32", "bfloat16"):
        learner = gpt(window=8, precision=precision)
        learner._module.register_forward_hook(lambda module, inputs, logits: seen.add(logits.dtype))
        learner.sample(learner.init(1), SampleRequest(1, torch.Generator(), length=2))
    assert seen == {torch.float32, torch.bfloat16}


def test_drawn_codes_are_as_frequent_as_the_softmax_says() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    found = drawn(logits.repeat(40_000, 1), 2.0, torch.Generator().manual_seed(1)).bincount(minlength=4) / 40_000
    expected = (logits / 2).softmax(0)
    # Four standard deviations of a count.
    assert ((found - expected).abs() < 4 * (expected / 40_000).sqrt()).all()


async def test_federation_of_roles_beats_letter_frequencies(tmp_path: Path) -> None:
    sites: dict[str, LocalData] = {name.partition("/")[0]: role(name) for name in ROLES}
    spec = validate_spec(
        {
            "name": "roles",
            "seed": 1,
            "learner": {"name": "gpt", "width": 32, "layers": 1},
            "rounds": 6,
            "cohort": {"size": 2},
            "local": {
                "epochs": 1,
                "batch_size": 8,
                "optimizer": {"name": "adam", "learning_rate": 0.01},
                "clip_norm": 1.0,
            },
            "evaluate": {"every": 6},
        }
    )
    async with opened(tmp_path) as store:
        run = await run_serially(spec, sites, store, tmp_path / "run")
        metrics = (await store.rounds(run.run_id))[-1].metrics
    floor = unigram_bits(
        torch.cat([site.training.inputs for site in sites.values()]),
        torch.cat([site.held_out.targets for site in sites.values()]),
    )
    assert 4.3 < floor < 4.8
    assert metrics["bits_per_character"] < floor - 0.4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_comedies_are_learned_to_the_reference() -> None:
    """3 layers of 96: 3.02 bits per character after 300 steps of a reference of our own; the last play is held out."""
    *training, held_out = plays("comedies").values()
    learner = gpt(width=96, layers=3)
    data = joined(*(windows(text) for text in training))
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))[: 300 * 32]
    state = trained(learner, learner.init(1), data.select(rows), batch_size=32, optimizer=adam(2e-3), clip_norm=1.0)
    assert learner.evaluate(state, windows(held_out)).metrics["bits_per_character"] < 3.1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"width": 66}, r"^Learner gpt: width must be a multiple of heads \(4\), got 66\.$"),
        ({"lora": {"rank": 0}}, r"lora\.rank must be greater than or equal to 1, got 0\."),
        ({"lora": {"targets": []}}, r"lora\.targets must have at least 1 item"),
        ({"lora": {}}, r"^Learner gpt: lora must come with initialize_from, got none\.$"),
    ],
)
def test_parameter_that_breaks_a_rule_is_refused(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        build_learner(Named(name="gpt", **parameters))


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (
            codes(2, 81),
            codes(2, 81),
            r"^Learner gpt: examples must be windows of 1 to 80 codes, got shape \(81,\)\. Take a larger",
        ),
        (codes(2), codes(2), r"windows of 1 to 80 codes, got shape \(\)\."),
        (
            codes(2, 8),
            codes(2),
            r"^Learner gpt: targets must be the code after each of the inputs, got shape \(\) for inputs of \(8,\)",
        ),
        (codes(2, 8), codes(2, 8) + 256, r"^Learner gpt: targets must be 0 to 255, got \d+ in example 0\."),
        (codes(2, 8).float(), codes(2, 8), r"^Learner gpt: codes must be int64, got float32\."),
    ],
)
def test_data_of_another_kind_is_refused(inputs: torch.Tensor, targets: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        gpt().check(Examples(inputs, targets))


def test_bfloat16_comes_near_float32() -> None:
    data = Examples(codes(8, 80), codes(8, 80).flip(0))
    losses = [gpt(precision=kind).evaluate(gpt().init(1), data).metrics["loss"] for kind in ("float32", "bfloat16")]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.01)
