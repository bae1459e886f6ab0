"""The variational autoencoder against torch.distributions, a likelihood that can be integrated, and probabilistic PCA."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal, kl_divergence
from torch.nn import functional

from models import DataError, Examples, build_learner, check_spec
from models.learner import Sampler, SampleRequest
from models.vae import VAE, VAEParameters, divergences
from server.checkpoints import checkpoint_path
from server.model import read_checkpoint
from simulation.reasons import reason_against
from simulation.serial import run_serially
from tests.models.digits import digits, independent_pixels, trained, unlabelled
from tests.server.cohorts import blocks, opened
from wire.spec import Named, RunSpec, read_spec
from wire.tensors import Layout

SPEC = Path(__file__).parents[2] / "models" / "specs" / "vae.yaml"
ADAM: dict[str, object] = {"batch_size": 16, "optimizer": {"name": "adam", "learning_rate": 0.003}}


def made(**parameters: Any) -> VAE:
    return VAE(VAEParameters(**parameters), torch.device("cpu"))


def log_density(distribution: Distribution, values: Tensor) -> Tensor:
    found: Tensor = distribution.log_prob(values)
    return found


def test_divergence_is_the_closed_form_of_torch_distributions() -> None:
    torch.manual_seed(1)
    mean, log_variance = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    posterior = Normal(mean, (log_variance / 2).exp())
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergences(mean, log_variance), expected)
    assert divergences(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 0


@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian"])
def test_terms_and_importance_weight_are_those_of_torch_distributions(decoder: str) -> None:
    learner = made(inputs=[6], hidden=[5], latent=2, decoder=decoder)
    module = learner._module
    if module.log_variance is not None:
        module.log_variance.data.fill_(-0.7)
    inputs = torch.rand(4, 6).round()
    mean, log_variance = module.encode(inputs)
    posterior = Normal(mean, (log_variance / 2).exp())
    torch.manual_seed(3)
    latent = posterior.loc + posterior.scale * torch.randn_like(mean)
    outputs = module.decoder(latent)
    given = Bernoulli(logits=outputs) if decoder == "bernoulli" else Normal(outputs, math.exp(-0.35))
    log_likelihood = log_density(given, inputs).sum(1)
    torch.manual_seed(3)
    terms = module(inputs)
    torch.testing.assert_close(terms[:, 0], -log_likelihood)
    torch.testing.assert_close(terms[:, 1], kl_divergence(posterior, Normal(0.0, 1.0)).sum(1))
    torch.manual_seed(3)
    joint = log_likelihood + log_density(Normal(0.0, 1.0), latent).sum(1)
    expected = joint - log_density(posterior, latent).sum(1)
    torch.testing.assert_close(module.log_weights(inputs), expected, rtol=1e-4, atol=1e-4)


def test_gradient_passes_through_the_draw_as_finite_differences_say() -> None:
    learner = made(inputs=[6], hidden=[4], latent=2)
    batch = unlabelled(torch.rand(32, 6))

    def loss() -> Tensor:
        torch.manual_seed(5)
        return learner.batch_loss(batch)

    loss().backward()  # type: ignore[no-untyped-call]
    parameters = dict(learner._module.named_parameters())
    for name, place in (("encoder.0.weight", (1, 2)), ("encoder.2.weight", (0, 1)), ("encoder.2.bias", (3,))):
        parameter, step = parameters[name], 1e-2
        assert parameter.grad is not None
        with torch.no_grad():
            parameter[place] += step
            above = loss()
            parameter[place] -= 2 * step
            below = loss()
            parameter[place] += step
        assert parameter.grad[place].item() == pytest.approx(float(above - below) / (2 * step), rel=0.02, abs=1e-4)


def test_elbo_is_below_the_importance_weighted_estimate_which_reaches_the_likelihood() -> None:
    # With one latent number, the likelihood is an integral that a sum over a fine grid gives.
    torch.manual_seed(2)
    prototypes = torch.tensor([[0.9, 0.9, 0.1, 0.1, 0.8], [0.1, 0.2, 0.9, 0.9, 0.1]])
    data = unlabelled(prototypes[torch.randint(2, (400,))].bernoulli())
    shape = {"inputs": [5], "hidden": [8], "latent": 1}
    state = trained(made(**shape), data, **ADAM, epochs=10)
    learner = made(**shape)
    learner._load(state)
    grid = torch.linspace(-8, 8, 4001)
    with torch.no_grad():
        outputs = learner._module.decoder(grid[:, None])  # (grid, 5)
    log_given = data.inputs @ functional.logsigmoid(outputs).T + (1 - data.inputs) @ functional.logsigmoid(-outputs).T
    log_prior = log_density(Normal(0.0, 1.0), grid) + math.log(16 / 4000)
    likelihood = float(torch.logsumexp(log_given.double() + log_prior, dim=1).mean())

    found = {count: made(**shape, importance_samples=count).evaluate(state, data).metrics for count in (1, 10, 1000)}
    # An ELBO of 400 single draws, so a little noise.
    assert found[1]["elbo"] < likelihood - 0.005
    assert found[1]["elbo"] == pytest.approx(found[1]["log_likelihood"], abs=0.05)
    assert found[1]["log_likelihood"] < found[10]["log_likelihood"] < found[1000]["log_likelihood"] + 1e-3
    assert found[1000]["log_likelihood"] == pytest.approx(likelihood, abs=2e-3)


def test_loss_is_minus_the_elbo_which_is_the_sum_of_its_terms(images: Examples) -> None:
    learner = made(inputs=[1, 8, 8])
    metrics = learner.evaluate(learner.init(1), images).metrics
    assert set(metrics) == {"loss", "elbo", "reconstruction", "kl"}
    assert metrics["loss"] == pytest.approx(-metrics["elbo"])
    assert metrics["loss"] == pytest.approx(metrics["reconstruction"] + metrics["kl"])
    wanted = made(inputs=[1, 8, 8], importance_samples=2).evaluate(learner.init(1), images).metrics
    assert set(wanted) == {*metrics, "log_likelihood"}
    assert wanted["log_likelihood"] > wanted["elbo"]


def test_linear_gaussian_decoder_reaches_probabilistic_pca() -> None:
    # Whose likelihood is the most that a linear decoder with one variance can have (Tipping and Bishop 1999).
    generator = np.random.default_rng(1)
    data = generator.normal(size=(1500, 2)) @ generator.normal(size=(2, 8)) + 0.5 * generator.normal(size=(1500, 8))
    best = PCA(n_components=2).fit(data).score(data)
    learner = made(inputs=[8], hidden=[], latent=2, decoder="gaussian")
    inputs = unlabelled(torch.from_numpy(data).float())
    state = trained(learner, inputs, epochs=40, batch_size=64, optimizer={"name": "adam", "learning_rate": 0.01})
    elbo = learner.evaluate(state, inputs).metrics["elbo"]
    assert best - 0.2 < elbo < best + 0.05
    assert float(state["log_variance"].exp()) == pytest.approx(0.25, rel=0.1)


def test_fit_of_digits_beats_independent_pixels_on_unseen_blocks() -> None:
    data, unseen = digits(*range(11)), digits(11, 12, 13)
    learner = made(inputs=[1, 8, 8], hidden=[128])
    metrics = learner.evaluate(trained(learner, data, **ADAM, epochs=12), unseen).metrics
    assert metrics["elbo"] > -25.2 > independent_pixels(data.inputs, unseen.inputs) + 1
    assert metrics["kl"] > 1


@pytest.mark.slow
def test_fit_of_digits_to_the_end_reaches_the_reference() -> None:
    """Reference: -23.9 nats, of one split. Over four seeds a plain loop of torch has -24.1 to -24.3 here, and this -24.2 to -24.3."""
    learner = made(inputs=[1, 8, 8], hidden=[128])
    metrics = learner.evaluate(trained(learner, digits(*range(11)), **ADAM, epochs=100), digits(11, 12, 13)).metrics
    assert metrics["elbo"] > -24.4
    assert metrics["kl"] > 3


async def test_federation_learns_more_than_a_client_alone(tmp_path: Path) -> None:
    configured = spec(rounds=8, epochs=4)
    sites, unseen = blocks(0, 1, 2, 3), digits(11, 12, 13)
    async with opened(tmp_path) as store:
        await run_serially(configured, sites, store, tmp_path / "run")
    learner = build_learner(configured.learner)
    layout = Layout.of(learner.init(0))
    state = layout.views(read_checkpoint(checkpoint_path(tmp_path / "run", 8), layout).vector)
    federated = learner.evaluate(state, unseen).metrics["elbo"]
    assert isinstance(learner, VAE)
    alone = learner.evaluate(trained(learner, sites["site-0"].training, **ADAM, epochs=32), unseen).metrics["elbo"]
    assert federated > alone + 0.5
    assert federated > independent_pixels(sites["site-0"].training.inputs, unseen.inputs)


def spec(rounds: int, epochs: int) -> RunSpec:
    document = read_spec(SPEC).model_dump(mode="json")
    document |= {"rounds": rounds, "cohort": {"size": 4}, "local": {**ADAM, "epochs": epochs}}
    return RunSpec.model_validate(document)


def test_decoder_has_the_encoders_layers_in_the_other_order() -> None:
    state = made(inputs=[6], hidden=[5, 4], latent=3).init(1)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if name.endswith("weight")}
    assert list(shapes.values()) == [(5, 6), (4, 5), (6, 4), (4, 3), (5, 4), (6, 5)]


def test_engine_of_many_clients_leaves_draws_to_the_serial_one() -> None:
    assert reason_against(read_spec(SPEC), torch.device("cpu"))


def test_spec_names_what_the_zoo_has() -> None:
    check_spec(read_spec(SPEC))


@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian"])
def test_sample_is_seeded_and_like_the_inputs(decoder: str) -> None:
    data = digits(0, 1, 2)
    learner = made(inputs=[1, 8, 8], hidden=[64], decoder=decoder)
    state = trained(learner, data, **ADAM, epochs=15)
    assert isinstance(learner, Sampler)
    before = torch.get_rng_state()
    first, again, other = (
        learner.sample(state, SampleRequest(200, torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (200, 1, 8, 8)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # The samples' mean is about that of the data, and they differ about as much from one another.
    assert torch.corrcoef(torch.stack([first.mean(0).flatten(), data.inputs.mean(0).flatten()]))[0, 1] > 0.95
    assert 0.15 < float(first.std(0).mean() / data.inputs.std(0).mean()) < 1.2
    if decoder == "bernoulli":
        learner.check(unlabelled(first))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        pytest.param(
            torch.zeros(2, 63),
            r"^Learner vae: examples must have shape \(64,\) float32, got \(63,\) float32",
            id="shape",
        ),
        pytest.param(
            torch.full((2, 64), 16.0),
            r"^Learner vae: values must be 0 to 1 for a bernoulli decoder, got 16\. Scale them, or take gaussian\.$",
            id="range",
        ),
        pytest.param(torch.full((2, 64), math.nan), r"must be 0 to 1 for a bernoulli decoder, got nan\.", id="nan"),
    ],
)
def test_check_refuses_what_the_decoder_cannot_give(inputs: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_learner(Named(name="vae")).check(unlabelled(inputs))


def test_check_takes_any_values_for_a_gaussian_decoder() -> None:
    made(decoder="gaussian").check(unlabelled(torch.full((2, 64), 16.0)))
