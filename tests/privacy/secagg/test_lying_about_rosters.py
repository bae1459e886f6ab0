"""A coordinator that lies about who the members are is refused with the roster as evidence, or learns nothing."""

from collections.abc import Callable
from functools import partial

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.errors import AbortCode
from privacy.secagg.labels import sign
from privacy.secagg.party import Floor, Identity
from tests.privacy.secagg.forgeries import LOW_ORDER, changed, made_up, some_key
from tests.privacy.secagg.hostile import Tale, advertised, entries_of, opened, refused, session_of
from tests.privacy.secagg.sessions import FEDERATION, Play, parameters, play
from wire import federation_pb2 as pb


def swapped(name: str) -> Callable[[Play], Tale]:
    def lie(session: Play) -> Tale:
        first, *others = entries_of(session)
        return Tale(session, [first, changed(others[0], **{name: some_key()}), *others[1:]])

    return lie


def own_changed(session: Play) -> Tale:
    first, *others = entries_of(session)
    return Tale(session, [changed(first, mask_key=some_key()), *others])


def own_with_more(session: Play) -> Tale:
    """The client's own entry, with a field that no one knows."""
    first, *others = entries_of(session)
    more = pb.Advertise.FromString(first.SerializeToString() + b"\xf8\x07\x01")
    return Tale(session, [more, *others])


def own_left_out(session: Play) -> Tale:
    return Tale(session, entries_of(session)[1:])


def uncertified(session: Play) -> Tale:
    stranger = Identity(Ed25519PrivateKey.generate(), bytes(64))
    return Tale(session, [*entries_of(session)[:-1], made_up(stranger, session.coordinator.session_id)])


def falsely_certified(session: Play) -> Tale:
    """An identity that the coordinator has certified with the one key that it has."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    stranger = Identity(key, sign(session.authority.coordinator, "cert", FEDERATION.encode(), public))
    return Tale(session, [*entries_of(session)[:-1], made_up(stranger, session.coordinator.session_id)])


def of_another_session(session: Play) -> Tale:
    other = Play(parameters(5, attempt=1), session.authority, [session.clients[-1]])
    kept = session_of(session.clients[-1])
    stale = opened(other, session.clients[-1]).advertisement
    session.clients[-1].session = kept
    return Tale(session, [*entries_of(session)[:-1], stale])


def out_of_order(session: Play) -> Tale:
    entries = sorted(entries_of(session), key=lambda entry: entry.client_id, reverse=True)
    return Tale(session, entries, is_sorted=False)


def twice_the_same(session: Play) -> Tale:
    entries = entries_of(session)
    return Tale(session, [*entries[:-1], entries[1]])


def unlike_its_key(session: Play) -> Tale:
    entries = entries_of(session)
    return Tale(session, [*entries[:-1], changed(entries[-1], client_id=b"\xff" * 16)])


def conspiring(**fields: bytes) -> Callable[[Play], Tale]:
    """An entry that an enrolled client which conspires with the coordinator has signed."""

    def lie(session: Play) -> Tale:
        entry = made_up(session.clients[-1].identity, session.coordinator.session_id, **fields)
        return Tale(session, [*entries_of(session)[:-1], entry])

    return lie


def with_key_of_the_first(name: str, taken: str) -> Callable[[Play], Tale]:
    def lie(session: Play) -> Tale:
        return conspiring(**{name: getattr(entries_of(session)[0], taken)})(session)

    return lie


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        pytest.param(swapped("mask_key"), "must be signed with its key", id="swapped-mask-key"),
        pytest.param(swapped("encryption_key"), "must be signed with its key", id="swapped-encryption-key"),
        pytest.param(swapped("seed_commitment"), "must be signed with its key", id="swapped-commitment"),
        pytest.param(own_changed, "own entry must be what it advertised", id="own-entry-changed"),
        pytest.param(own_with_more, "own entry must be what it advertised", id="own-entry-with-more"),
        pytest.param(own_left_out, "own entry must be what it advertised", id="own-entry-left-out"),
        pytest.param(uncertified, "must be enrolled", id="invented"),
        pytest.param(falsely_certified, "must be enrolled", id="invented-with-forged-certificate"),
        pytest.param(of_another_session, "must be signed with its key for this session", id="of-another-session"),
        pytest.param(out_of_order, "different and in order", id="out-of-order"),
        pytest.param(twice_the_same, "different and in order", id="twice-the-same"),
        pytest.param(unlike_its_key, "identity must be that of its key", id="identity-unlike-its-key"),
        pytest.param(with_key_of_the_first("mask_key", "mask_key"), "of its own", id="mask-key-of-another"),
        pytest.param(
            with_key_of_the_first("encryption_key", "mask_key"), "of its own", id="mask-key-as-encryption-key"
        ),
        pytest.param(conspiring(mask_key=bytes(31)), "must have 32 bytes", id="short-key"),
        pytest.param(conspiring(seed_commitment=bytes(1000)), "must have 32 bytes", id="long-commitment"),
        *[
            pytest.param(conspiring(**{name: key}), "agree on a secret", id=f"{name}-{number}-of-low-order")
            for name in ("mask_key", "encryption_key")
            for number, key in enumerate(LOW_ORDER)
        ],
    ],
)
def test_forged_roster_is_refused(lie: Callable[[Play], Tale], message: str) -> None:
    session = advertised()
    roster = lie(session).roster
    victim = session_of(session.clients[0])
    error = refused(victim, lambda: victim.take_roster(roster), AbortCode.FORGED, message)
    assert error.code.is_alarming
    assert error.evidence == (roster,)


def test_roster_with_a_second_name_for_a_point_is_refused() -> None:
    """The highest bit of a key of X25519 is not looked at: the key of another, written anew, would pass for one of its own."""
    session = advertised()
    taken = entries_of(session)[0].mask_key
    roster = conspiring(mask_key=taken[:31] + bytes([taken[31] | 0x80]))(session).roster
    victim = session_of(session.clients[0])
    refused(victim, lambda: victim.take_roster(roster), AbortCode.FORGED, "agree on a secret")


@pytest.mark.parametrize("signer", ["nobody", "another"])
def test_roster_that_the_coordinator_did_not_sign_is_refused(signer: str) -> None:
    session = advertised()
    roster = Tale(session).roster
    parts = ("roster-sig", session.coordinator.session_id, Tale(session).members.roster_hash)
    roster.signature = b"" if signer == "nobody" else sign(Ed25519PrivateKey.generate(), *parts)
    victim = session_of(session.clients[0])
    refused(victim, lambda: victim.take_roster(roster), AbortCode.FORGED, "roster must be signed by the coordinator")


def test_larger_roster_than_the_ring_was_made_for_is_refused() -> None:
    session = advertised(5)
    more = made_up(session.authority.enrol(), session.coordinator.session_id)
    roster = Tale(session, [*entries_of(session), more]).roster
    victim = session_of(session.clients[0])
    refused(victim, lambda: victim.take_roster(roster), AbortCode.POLICY, "members must be at most 5, got 6")


@pytest.mark.parametrize(
    ("count", "code", "message"),
    [
        pytest.param(1, AbortCode.POLICY, "client_count must be 2 to", id="alone"),
        pytest.param(3, AbortCode.TOO_FEW, "members must be at least 4, got 3", id="below-the-floor"),
    ],
)
def test_smaller_roster_than_the_site_asks_for_is_refused(count: int, code: AbortCode, message: str) -> None:
    """The site wants four honest ones, whatever the spec says."""
    session, _ = play(6, minimum_cohort=4)
    session.clients[0].floor = Floor(minimum_cohort=4)
    session.advertise()
    roster = Tale(session, entries_of(session)[:count]).roster
    victim = session_of(session.clients[0])
    refused(victim, lambda: victim.take_roster(roster), code, message)


def test_corrupt_members_count_beside_the_honest_ones() -> None:
    """With one of four corrupt, three honest ones are four members, and three members are too few."""
    session, _ = play(5, minimum_cohort=3, corrupt_fraction=0.34, dropout_fraction=0.2)
    session.advertise()
    roster = Tale(session, entries_of(session)[:3]).roster
    victim = session_of(session.clients[0])
    refused(victim, lambda: victim.take_roster(roster), AbortCode.TOO_FEW, "members must be at least 4, got 3")


@pytest.mark.parametrize("is_same", [True, False])
def test_second_roster_is_refused(is_same: bool) -> None:
    session = advertised(6)
    victim = session_of(session.clients[0])
    victim.take_roster(Tale(session).roster)
    again = Tale(session, entries_of(session)[: 6 if is_same else 5]).roster
    error = refused(victim, lambda: victim.take_roster(again), AbortCode.MALFORMED, "must come when it is due")
    assert error.evidence == (again,)


def test_different_rosters_open_nothing() -> None:
    """Some clients are told of six members and others of five; no packet and no acknowledgement passes between the two groups."""
    session = advertised(6, dropout_fraction=0.34)
    *clients, _ = sorted(session.clients, key=lambda client: client.client_id)
    tales = [Tale(session), Tale(session, [session_of(client).advertisement for client in clients])]
    told_by = [tales[number % 2] for number in range(5)]
    shares, acks = {}, {}
    for index, client in enumerate(clients):
        shares[index] = session_of(client).take_roster(told_by[index].roster)
    for index, client in enumerate(clients):
        victim = session_of(client)
        victim.take_delivery(told_by[index].delivery(client, shares))
        assert set(victim._missing) == {other for other in range(5) if told_by[other] is not told_by[index]}
        victim.mask(client.vector.copy())
        acks[index] = victim.take_survivors(told_by[index].survivors(range(5)))
    for index, client in enumerate(clients):
        group = {other: acks[other] for other in range(5) if told_by[other] is told_by[index]}
        shown, code, message = (
            (group, AbortCode.TOO_FEW, "must be at least")
            if index < 2
            else (acks, AbortCode.EQUIVOCATION, "does not fit")
        )
        bundle = told_by[index].bundle({other: ack for other, ack in shown.items() if other != index})
        victim = session_of(client)
        error = refused(victim, partial(victim.take_acks, bundle), code, message)
        assert told_by[index].is_proof(error.evidence[0])
