"""Sessions open to the exact sum of the survivors' vectors, whoever falls out at whichever stage, or to nothing (law L1)."""

import re

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import CipherContext

from privacy.errors import AbortCode, SecureAggregationError, SessionAbortedError
from privacy.secagg import masks
from privacy.secagg.client import ClientState
from privacy.secagg.coordinator import CoordinatorSession
from privacy.secagg.parameters import Parameters
from privacy.secagg.party import Floor
from privacy.secagg.session import SUITES, Purpose, SessionParameters, grid_of, session_id_of
from server.aggregation import WeightedMean
from tests.privacy.secagg.hostile import everything, secrets_of
from tests.privacy.secagg.sessions import STAGES, parameters, play, sum_of
from tests.privacy.secagg.test_primitives import VECTORS
from wire.secure import SecureAggregationSpec

BEFORE_THE_SUM = ("advertise", "shares", "upload")


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
@pytest.mark.parametrize("count", [2, 3, 5, 10, 20, 60])
def test_sum_is_exact(count: int, ring_bits: int) -> None:
    session, vectors = play(count, 300, ring_bits=ring_bits)
    head = session.run()
    assert (session.total == sum_of(vectors)).all()
    assert (head.count, head.weight_total) == (count, sum(number % 7 + 1 for number in range(count)))
    assert head.example_count == count * (count + 1) // 2
    assert not session.aborted
    assert not session.excluded


def test_masks_of_chacha20_come_off_the_sum_as_those_of_aes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def seen(key: bytes, cipher: masks.StreamCipher) -> CipherContext:
        used.append(cipher)
        return keystream(key, cipher)

    keystream = masks.keystream
    monkeypatch.setattr(masks, "keystream", seen)
    session, vectors = play(10, 300, cipher="chacha20", dropout_fraction=0.2)
    session.run(lambda at, number: at == "upload" and number in {3, 7})
    assert (session.total == sum_of([vector for number, vector in enumerate(vectors) if number not in {3, 7}])).all()
    assert set(used) == {"chacha20"}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("gone", [pytest.param({4}, id="one"), pytest.param({0, 5, 11}, id="most-that-is-tolerated")])
def test_sum_is_that_of_the_survivors(stage: str, gone: set[int]) -> None:
    session, vectors = play(12, 40, dropout_fraction=0.25)
    head = session.run(lambda at, number: at == stage and number in gone)
    summed = [vector for number, vector in enumerate(vectors) if stage not in BEFORE_THE_SUM or number not in gone]
    assert (session.total == sum_of(summed)).all()
    assert head.count == len(summed)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_one_dropout_too_many_opens_nothing(stage: str) -> None:
    """More are gone than `dropout_fraction` allows, or so many that what is left cannot open the sum."""
    session, _ = play(12, 40, dropout_fraction=0.25)
    threshold = parameters(12, dropout_fraction=0.25).graph(12).threshold
    gone = 4 if stage in BEFORE_THE_SUM else 12 - threshold + 1
    with pytest.raises(SessionAbortedError, match="must be at least") as abort:
        session.run(lambda at, number: at == stage and number < gone)
    assert abort.value.code is AbortCode.TOO_FEW
    kinds = {kind for kind, _, _ in session.received}
    if stage in ("shares", "upload"):
        assert not kinds & {"ack", "unmask"}


def test_too_few_advertisements_begin_no_session() -> None:
    session, _ = play(4, dropout_fraction=0.25)
    with pytest.raises(SecureAggregationError):
        session.run(lambda at, number: at == "advertise" and number > 0)


def test_roster_below_the_runs_quorum_is_refused_by_both_sides() -> None:
    """Five of ten would do for the parameters alone; the run spec, which all parties hold, lets a round close with six."""

    def fewer(at: str, number: int) -> bool:
        return at == "advertise" and number >= 5

    session, vectors = play(10, dropout_fraction=0.2)
    assert session.run(fewer).count == 5
    assert (session.total == sum_of(vectors[:5])).all()
    session, _ = play(10, dropout_fraction=0.2, quorum=6)
    with pytest.raises(SessionAbortedError, match="members must be at least 6, got 5"):
        session.run(fewer)
    # A coordinator that freezes all the same is told so by its clients.
    lying, _ = play(10, dropout_fraction=0.2, quorum=6)
    lying.advertise(fewer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CoordinatorSession, "fewest", 2)
        lying.share(lying.coordinator.freeze())
    assert {error.code for error in lying.aborted.values()} == {AbortCode.TOO_FEW}
    assert len(lying.aborted) == 5


def test_session_below_a_sites_own_least_is_refused_by_its_client() -> None:
    session, _ = play(6, dropout_fraction=0.2)
    session.clients[2].floor = Floor(minimum_cohort=2, minimum_members=7)
    session.advertise()
    session.share(session.coordinator.freeze())
    [(client_id, error)] = session.aborted.items()
    assert (client_id, error.code) == (session.clients[2].client_id, AbortCode.TOO_FEW)
    assert "members must be at least 7, got 6" in str(error)


def test_ring_graph_opens_to_the_sum_with_dropouts_of_every_kind() -> None:
    """Sixty clients in a ring of degree 20, of whom some fall out at each stage."""

    def ring(self: SessionParameters, count: int) -> Parameters:
        return Parameters(client_count=count, corrupt_count=0, missing_count=count // 10, degree=20, threshold=12)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SessionParameters, "graph", ring)
        session, vectors = play(60, 40, dropout_fraction=0.1)
        lost = {("shares", 3), ("upload", 9), ("upload", 30), ("ack", 31), ("unmask", 44)}
        head = session.run(lambda at, number: (at, number) in lost)
    summed = [vector for number, vector in enumerate(vectors) if number not in (3, 9, 30)]
    assert head.count == 57
    assert (session.total == sum_of(summed)).all()


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
def test_masked_mean_is_to_the_bit_that_of_the_plain_sum(ring_bits: int) -> None:
    """On one grid, at the bounds and within them, with clients at the weight's cap."""
    session, vectors = play(5, 200, ring_bits=ring_bits)
    grid, head = session.parameters.grid, session.parameters.head
    plain = WeightedMean(grid, 200)
    generator = np.random.default_rng(3)
    for number, vector in enumerate(vectors):
        values = generator.uniform(-4, 4, 200).astype(np.float32)
        values[:4] = 4.0, -4.0, 0.0, -0.0
        weight = 100 - 20 * number
        plain.add(values, weight)
        steps = grid.quantise(values, weight, out=np.empty(200))
        vector[0] = weight
        vector[head.size :] = steps.astype(np.int64).astype(vector.dtype)
    weight_total = session.run().weight_total
    signed = session.total[head.size :].view(f"<i{ring_bits // 8}").astype(np.int64)
    mean = np.empty(200, dtype=np.float32)
    grid.mean(signed, weight_total, out=mean)
    assert mean.tobytes() == plain.mean().tobytes()


def test_all_clients_at_the_bound_do_not_wrap_around() -> None:
    for count in (2, 7, 10):
        spec = SecureAggregationSpec(weight_cap=100, coordinate_bound=4.0)
        grid = grid_of(spec, count)
        steps = grid.quantise(np.array([4.0], dtype=np.float32), 100, out=np.empty(1))[0]
        assert 2**29 / count / 2 <= steps <= (2**31 - 1) / count


def test_metrics_travel_inside_and_come_out_as_means_over_examples() -> None:
    session, vectors = play(4, metrics=["loss", "accuracy"])
    head = session.parameters.head
    told = [
        (10, {"loss": 2.5, "accuracy": 0.5}),
        (30, {"loss": -1.5, "accuracy": 1.0}),
        (20, {"loss": float("nan"), "other": 3.0}),
        (0, {"loss": 7.0}),
    ]
    for vector, (examples, metrics) in zip(vectors, told, strict=True):
        head.write(vector, 1, examples, metrics)
    found = session.run()
    assert found.example_count == 60
    assert found.metrics == {"loss": (10 * 2.5 - 30 * 1.5) / 40, "accuracy": (10 * 0.5 + 30) / 40}


@pytest.mark.parametrize(
    ("ring_bits", "clients", "weight_cap", "message"),
    [
        pytest.param(16, 100, 656, r"below 2\*\*ring_bits \(2\*\*16\), got 100 \* 656", id="weights"),
        pytest.param(16, 1 << 15, 1, "clients must be at most", id="clients"),
        pytest.param(16, 100, 655, "", id="just-fits"),
    ],
)
def test_ring_that_is_too_small_is_named(ring_bits: int, clients: int, weight_cap: int, message: str) -> None:
    problem = parameters(clients, ring_bits=ring_bits, weight_cap=weight_cap).head.problem
    assert re.search(message, problem) if message else problem == ""


def test_parameters_are_the_bytes_of_the_vectors() -> None:
    spec = SecureAggregationSpec(
        minimum_cohort=6, weight_cap=1000, corrupt_fraction=0.1, dropout_fraction=0.1, metrics=[]
    )
    head_size = parameters(10, metrics=[]).head.size
    agreed = SessionParameters(Purpose("fed", "task", 7, 0, 10, 1000 - head_size, bytes(32)), spec)
    expected = VECTORS["params canon"]
    found = agreed.base(Parameters(client_count=10, corrupt_count=1, missing_count=1, degree=9, threshold=6))
    assert found.hex() == expected
    assert session_id_of(found, b"\x44" * 32).hex() == VECTORS["session_id nonce=44*32"]


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 6},
        {"round_number": 2},
        {"attempt": 1},
        {"digest": b"n" * 32},
        {"ring_bits": 64},
        {"coordinate_bound": 2.0},
        {"weight_cap": 99},
        {"minimum_cohort": 3},
        {"corrupt_fraction": 0.2},
        {"dropout_fraction": 0.2},
        {"metrics": ["loss"]},
        {"quorum": 4},
        {"cipher": "chacha20"},
        {"key_agreement": "x25519_mlkem768"},
        {"audit": True},
    ],
)
def test_every_parameter_changes_the_session(changes: dict[str, object]) -> None:
    other = parameters(10, **changes)  # type: ignore[arg-type]
    assert other.session_id(bytes(32)) != parameters(10).session_id(bytes(32))


@pytest.mark.parametrize("key_agreement", SUITES)
def test_no_secret_is_left_at_the_end(key_agreement: str) -> None:
    """Every 32 bytes that were secret are looked for in whatever the clients and the coordinator still hold."""
    session, _ = play(5, dropout_fraction=0.2, key_agreement=key_agreement)
    session.advertise()
    secrets = []
    for client in session.clients:
        assert client.session is not None
        secrets += secrets_of(client.session)
    session.share(session.coordinator.freeze())
    session.upload(session.coordinator.deliver(), lambda at, number: number == 2)
    survivors = session.coordinator.close_sum(session.uploaded)
    session.acknowledge(dict.fromkeys(session.uploaded, survivors))
    session.unmask(session.coordinator.bundles())
    session.coordinator.open(session.total)
    for client in session.clients:
        assert client.session is not None
        if client.client_id in session.uploaded:
            assert client.session.state is ClientState.DONE
        else:
            client.session.abort()
            assert client.session.state is ClientState.ABORTED
        assert not any(secret in everything(client.session) for secret in secrets)
    assert not any(secret in everything(session.coordinator) for secret in secrets)
