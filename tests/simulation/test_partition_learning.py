"""What federations of digits that were dealt at random learn, by how unlike their clients are."""

from pathlib import Path

import pytest

import choral

SPEC = {
    "name": "dealt",
    "learner": {"name": "mlp", "inputs": [1, 8, 8], "hidden": []},
    "rounds": 20,
    "local": {"epochs": 5, "batch_size": 16, "optimizer": {"name": "sgd", "learning_rate": 0.5}},
    "evaluate": {"every": 20},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "clients", "least"),
    [
        ("iid", 5, 0.93),
        ("dirichlet,alpha=0.5", 5, 0.89),
        ("dirichlet,alpha=0.1", 5, 0.88),
        ("shards,per_client=2", 10, 0.89),
    ],
)
def test_softmax_regression_comes_near_its_reference_however_digits_are_dealt(
    tmp_path: Path, scheme: str, clients: int, least: float
) -> None:
    """References, one split each: 97.8, 97.3, 94.5 and 91.9 %; here 95.6, 93.1, 92.5 and 94.7 %.

    A plain loop of torch over four splits has 94.2 to 97.5, 90.8 to 95.6 and 90.3 to 92.2 % of the first three: the split decides.
    """
    spec = SPEC | {"seed": 0, "cohort": {"size": clients}}
    result = choral.simulate(spec, tmp_path, clients=clients, partition=scheme, engine="serial")
    assert result.rounds[-1].metrics["accuracy"] > least
