"""A coordinator that lies about who has shared, survived or acknowledged gets no shares, and its lie is kept."""

import itertools
from collections.abc import Callable
from functools import partial

import pytest

from privacy.errors import AbortCode, SessionAbortedError
from privacy.secagg.client import ClientState
from privacy.secagg.labels import sign
from privacy.secagg.session import SessionParameters
from tests.privacy.secagg.hostile import Diary, Tale, refused, session_of, told
from tests.privacy.secagg.sessions import play
from wire import federation_pb2 as pb

# --- Sharers ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sharers", "code", "message"),
    [
        pytest.param([1, 2, 3, 4], AbortCode.TOO_FEW, "must be among those who have shared", id="without-the-client"),
        pytest.param([0, 1, 2], AbortCode.TOO_FEW, "sharers must be at least 4, got 3", id="too-few"),
        pytest.param(b"\x3f", AbortCode.MALFORMED, "a bit for each of 5", id="more-bits"),
        pytest.param(b"\x1f\x00", AbortCode.MALFORMED, "a bit for each of 5", id="more-bytes"),
        pytest.param(b"", AbortCode.MALFORMED, "a bit for each of 5", id="nothing"),
    ],
)
def test_false_delivery_is_refused(sharers: list[int] | bytes, code: AbortCode, message: str) -> None:
    at = told(play(5, dropout_fraction=0.2)[0])
    delivery = at.tale.delivery(at.clients[0], at.shares, sharers if isinstance(sharers, list) else ())
    if isinstance(sharers, bytes):
        delivery.sharers = sharers
    victim = session_of(at.clients[0])
    error = refused(victim, lambda: victim.take_delivery(delivery), code, message)
    assert error.evidence == (delivery,)


# --- Survivors --------------------------------------------------------------------------------------------------------------------------


def test_second_set_of_survivors_is_refused_with_both_signatures() -> None:
    """So both kinds of shares of member 4 cannot be had from one client."""
    at = told(play(5, dropout_fraction=0.2)[0])
    at.deliver()
    victim = session_of(at.clients[0])
    first, second = at.tale.survivors(range(5)), at.tale.survivors(range(4))
    ack = victim.take_survivors(first)
    assert victim.take_survivors(first) == ack
    error = refused(victim, lambda: victim.take_survivors(second), AbortCode.EQUIVOCATION, "whenever they are named")
    assert error.evidence == (first, second)
    assert all(at.tale.is_proof(survivors) for survivors in error.evidence)
    assert error.code.is_alarming


def without_signature(tale: Tale) -> pb.Survivors:
    return pb.Survivors(session_id=tale.session_id, survivors=tale.members.bitmap(range(5)), signature=bytes(64))


def of_another_tale(tale: Tale) -> pb.Survivors:
    """Survivors that the coordinator has signed, for another roster."""
    four = Tale(tale.play, tale.members.entries[:4])
    return pb.Survivors(
        session_id=tale.session_id,
        survivors=tale.members.bitmap(range(4)),
        signature=four.survivors(range(4)).signature,
    )


def with_bits(bitmap: bytes) -> Callable[[Tale], pb.Survivors]:
    return lambda tale: pb.Survivors(survivors=bitmap, signature=tale.signed("survivors-srv", bitmap))


@pytest.mark.parametrize(
    ("lie", "code", "message"),
    [
        pytest.param(
            lambda tale: tale.survivors([1, 2, 3, 4]), AbortCode.EQUIVOCATION, "called missing", id="called-missing"
        ),
        pytest.param(lambda tale: tale.survivors([0, 1, 2]), AbortCode.TOO_FEW, "at least 4, got 3", id="too-few"),
        pytest.param(without_signature, AbortCode.FORGED, "signed by the coordinator", id="unsigned"),
        pytest.param(of_another_tale, AbortCode.FORGED, "signed by the coordinator", id="of-another-roster"),
        pytest.param(with_bits(b"\x3f"), AbortCode.MALFORMED, "a bit for each of 5", id="more-bits"),
        pytest.param(with_bits(b"\x1f\x00"), AbortCode.MALFORMED, "a bit for each of 5", id="more-bytes"),
    ],
)
def test_false_survivors_are_refused(lie: Callable[[Tale], pb.Survivors], code: AbortCode, message: str) -> None:
    at = told(play(5, dropout_fraction=0.2)[0])
    at.deliver()
    victim, survivors = session_of(at.clients[0]), lie(at.tale)
    error = refused(victim, lambda: victim.take_survivors(survivors), code, message)
    assert error.evidence == (survivors,)


@pytest.mark.parametrize(
    ("spec", "gone", "message"),
    [
        pytest.param({}, {8}, "survivors must be at least 9, got 8", id="none-may-be-missing"),
        pytest.param(
            {"dropout_fraction": 0.23, "minimum_cohort": 5, "corrupt_fraction": 0.34},
            {7, 8},
            "survivors must be at least 8, got 7",
            id="too-few-beside-the-corrupt",
        ),
    ],
)
def test_survivors_above_the_threshold_may_be_too_few(spec: dict[str, float], gone: set[int], message: str) -> None:
    at = told(play(9, **spec)[0])  # type: ignore[arg-type]
    at.deliver()
    victim, survivors = session_of(at.clients[0]), at.tale.survivors(set(range(9)) - gone)
    refused(victim, lambda: victim.take_survivors(survivors), AbortCode.TOO_FEW, message)


def test_survivors_who_were_not_among_the_sharers_are_refused() -> None:
    """So a delivery that leaves one out for one client and not for another keeps that client from acknowledging both."""
    at = told(play(5, dropout_fraction=0.2)[0])
    victim = session_of(at.clients[0])
    victim.take_delivery(at.tale.delivery(at.clients[0], at.shares, range(4)))
    victim.mask(at.clients[0].vector.copy())
    survivors = at.tale.survivors(range(5))
    error = refused(
        victim, lambda: victim.take_survivors(survivors), AbortCode.EQUIVOCATION, "among those who have shared"
    )
    assert at.tale.is_proof(error.evidence[0])


@pytest.mark.parametrize(
    "halves", list(itertools.product([0, 1], repeat=5)), ids=lambda halves: "".join(map(str, halves))
)
def test_two_sets_of_survivors_for_two_halves_never_open_both(halves: tuple[int, ...]) -> None:
    """The coordinator shows each half its own set, however it cuts them; one who conspires acknowledges both.

    Member 4 is in one set and not in the other. Seed and key of it would need a threshold of clients in each half.
    """
    at = told(play(6, corrupt_fraction=0.2, dropout_fraction=0.17)[0])
    at.deliver()
    told_sets = [at.tale.survivors(range(6)), at.tale.survivors([0, 1, 2, 3, 5])]
    conspirator, honest = 5, [index for index in range(5) if index != 4 or not halves[4]]
    acks: list[dict[int, pb.SurvivorAck]] = [{}, {}]
    for index in honest:
        acks[halves[index]][index] = session_of(at.clients[index]).take_survivors(told_sets[halves[index]])
    for half, survivors in enumerate(told_sets):
        signature = sign(
            at.clients[conspirator].identity.key,
            "survivors-ack",
            at.tale.session_id,
            at.tale.members.roster_hash,
            survivors.survivors,
        )
        acks[half][conspirator] = pb.SurvivorAck(signature=signature)
    released = [1, 1]  # of the one who conspires: its shares of both
    refusals: list[AbortCode] = []
    opened_sets: set[int] = set()
    for index in honest:
        half, victim = halves[index], session_of(at.clients[index])
        bundle = at.tale.bundle({other: ack for other, ack in acks[half].items() if other != index})
        try:
            unmask = victim.take_acks(bundle)
        except SessionAbortedError as error:
            refusals.append(error.code)
            continue
        opened_sets.add(half)
        seeds, keys = ({held.index for held in shares} for shares in (unmask.seed_shares, unmask.key_shares))
        assert not seeds & keys
        released[0] += 4 in seeds or index == 4
        released[1] += 4 in keys
    threshold = at.tale.members.graph.threshold
    assert min(released) < threshold
    assert set(refusals) <= {AbortCode.TOO_FEW}
    assert len(opened_sets) <= 1


@pytest.mark.parametrize("halves", [(0, 0, 1), (0, 1, 1)])
def test_acknowledgements_of_the_other_half_show_the_lie(halves: tuple[int, ...]) -> None:
    at = told(play(6, dropout_fraction=0.17)[0])
    at.deliver()
    sets = [at.tale.survivors(range(6)), at.tale.survivors(range(5))]
    acks = {index: session_of(at.clients[index]).take_survivors(sets[half]) for index, half in enumerate(halves)}
    for index, half in enumerate(halves):
        victim = session_of(at.clients[index])
        bundle = at.tale.bundle({other: ack for other, ack in acks.items() if other != index})
        error = refused(
            victim,
            partial(victim.take_acks, bundle),
            AbortCode.EQUIVOCATION,
            "must have acknowledged the same survivors",
        )
        assert error.evidence == (sets[half], bundle)
        assert at.tale.is_proof(error.evidence[0])


# --- Acknowledgements -------------------------------------------------------------------------------------------------------------------

Acks = dict[int, pb.SurvivorAck]


@pytest.mark.parametrize(
    ("lie", "code", "message"),
    [
        pytest.param(lambda tale, acks: tale.bundle({}), AbortCode.TOO_FEW, "at least 4, got 1", id="all-dropped"),
        pytest.param(
            lambda tale, acks: tale.bundle({1: acks[1], 2: acks[2]}),
            AbortCode.TOO_FEW,
            "at least 4, got 3",
            id="some-dropped",
        ),
        pytest.param(
            lambda tale, acks: pb.AckBundle(acks=[pb.Ack(index=1, signature=acks[1].signature)] * 4),
            AbortCode.TOO_FEW,
            "at least 4, got 2",
            id="one-as-many",
        ),
        pytest.param(
            lambda tale, acks: tale.bundle(acks | {2: pb.SurvivorAck(signature=tale.survivors(range(5)).signature)}),
            AbortCode.EQUIVOCATION,
            "member 2 must have acknowledged",
            id="forged",
        ),
        pytest.param(
            lambda tale, acks: tale.bundle(acks | {2: acks[1]}),
            AbortCode.EQUIVOCATION,
            "member 2 must have acknowledged",
            id="of-another",
        ),
        pytest.param(
            lambda tale, acks: tale.bundle(acks | {0: acks[1]}),
            AbortCode.EQUIVOCATION,
            "member 0 must have acknowledged",
            id="for-the-client-itself",
        ),
        pytest.param(
            lambda tale, acks: tale.bundle(acks | {5: acks[1]}),
            AbortCode.EQUIVOCATION,
            "member 5 must have acknowledged",
            id="of-one-who-is-not-there",
        ),
    ],
)
def test_false_acknowledgements_are_refused(
    lie: Callable[[Tale, Acks], pb.AckBundle], code: AbortCode, message: str
) -> None:
    at = told(play(5, dropout_fraction=0.2)[0])
    at.deliver()
    survivors = at.tale.survivors(range(5))
    acks = at.acks(survivors)
    del acks[0]
    victim, bundle = session_of(at.clients[0]), lie(at.tale, acks)
    error = refused(victim, lambda: victim.take_acks(bundle), code, message)
    assert error.evidence == (survivors, bundle)
    assert at.tale.is_proof(error.evidence[0])
    assert at.clients[0].journal.revealed == []


def test_journal_that_cannot_be_written_reveals_nothing() -> None:
    at = told(play(5)[0])
    at.deliver()
    acks = at.acks(at.tale.survivors(range(5)))
    del acks[0]

    class Full(Diary):
        def reveal(self, parameters: SessionParameters) -> None:
            raise OSError("No space left on device")

    victim = session_of(at.clients[0])
    victim._journal = Full()
    with pytest.raises(OSError, match="No space left"):
        victim.take_acks(at.tale.bundle(acks))
    assert victim.state is ClientState.ABORTED
    assert victim._secrets is None
