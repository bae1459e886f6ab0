"""The coordinator refuses or bears messages that are not due, are a stranger's or are bent, and gives no wrong sum."""

from collections.abc import Callable

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import AbortCode, MemberExcludedError, SessionAbortedError
from privacy.secagg.coordinator import CoordinatorState
from privacy.secagg.labels import sign
from privacy.secagg.members import advertised_parts
from tests.privacy.secagg.forgeries import bent
from tests.privacy.secagg.hostile import everything
from tests.privacy.secagg.liars import Lied, lied, signed
from tests.privacy.secagg.sessions import Client, sum_of
from wire import federation_pb2 as pb

TAKES = {"advertise": "take_advertisement", "shares": "take_shares", "ack": "take_ack", "unmask": "take_unmask"}
DUE = dict(zip(TAKES, [state for state in CoordinatorState if state is not CoordinatorState.VECTORS], strict=False))


def test_shares_that_come_too_late_change_nothing() -> None:
    """Taken as those of one who has shared and is gone, they would ask for a key that no one can give, and end the session."""
    session = lied()
    session.advertise()
    late = session.ordered[2].client_id
    session.share(session.coordinator.freeze(), lambda _, number: session.clients[number].client_id == late)
    session.upload(session.coordinator.deliver())
    session.acknowledge(dict.fromkeys(session.uploaded, session.coordinator.close_sum(session.uploaded)))
    shares = signed(
        session,
        session.ordered[2],
        pb.Shares(session_id=session.coordinator.session_id, packets=[pb.Packet(index=0)] * 7),
    )
    assert isinstance(shares, pb.Shares)
    with pytest.raises(MemberExcludedError, match="must come when it is due"):
        session.coordinator.take_shares(late, shares)
    session.unmask(session.coordinator.bundles())
    session.coordinator.open(session.total)
    assert (session.total == session.sum_without(2)).all()


@pytest.mark.parametrize(
    ("until", "stage"), [(until, stage) for until in CoordinatorState for stage in TAKES if DUE[stage] is not until]
)
def test_message_that_is_not_due_changes_nothing(until: CoordinatorState, stage: str) -> None:
    messages = {kind: message for kind, name, message in whole().received if name == whole().ordered[0].client_id}
    session = lied()
    coordinator, late = session.coordinator, session.ordered[0].client_id
    steps: list[Callable[[], None]] = [
        session.advertise,
        lambda: session.share(coordinator.freeze()),
        lambda: session.upload(coordinator.deliver()),
        lambda: session.acknowledge(dict.fromkeys(session.uploaded, coordinator.close_sum(session.uploaded))),
        lambda: session.unmask(coordinator.bundles()),
    ]
    for step in steps[: list(CoordinatorState).index(until) + 1]:
        step()
    if until is CoordinatorState.DONE:
        coordinator.open(session.total)
    assert coordinator.state is until
    with pytest.raises(MemberExcludedError, match="must come when it is due"):
        getattr(coordinator, TAKES[stage])(late, messages[stage])
    for step in steps[list(CoordinatorState).index(until) + 1 :]:
        step()
    if until is not CoordinatorState.DONE:
        coordinator.open(session.total)
    assert (session.total == session.sum_without()).all()


_WHOLE: list[Lied] = []


def whole() -> Lied:
    """Return a session that went well, played once."""
    if not _WHOLE:
        _WHOLE.append(lied())
        _WHOLE[0].run()
    return _WHOLE[0]


def test_coordinator_keeps_no_secret_that_comes_after_the_end() -> None:
    session = lied()
    session.run()
    kind, name, message = session.received[-1]
    assert kind == "unmask"
    assert isinstance(message, pb.Unmask)
    with pytest.raises(MemberExcludedError):
        session.coordinator.take_unmask(name, message)
    assert message.own_seed not in everything(session.coordinator)


@pytest.mark.parametrize("stage", ["shares", "ack", "unmask"])
def test_message_of_a_stranger_is_refused(stage: str) -> None:
    session = lied()
    refusals = []

    def lie(session: Lied, client: Client, message: Message) -> Message:
        with pytest.raises(MemberExcludedError, match="must be of a member") as refusal:
            getattr(session.coordinator, TAKES[stage])("0" * 32, message)
        refusals.append(refusal)
        return message

    session.lie(stage, 0, lie)
    session.run()
    assert len(refusals) == 1
    assert (session.total == session.sum_without()).all()


# --- Anything ---------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(sorted(TAKES)), st.booleans())
def test_bent_messages_are_refused_or_borne(data: st.DataObject, stage: str, is_signed: bool) -> None:
    """Whatever one of four clients sends: the exact sum of those who are in it, or an end that says why."""
    session = lied(4)

    def lie(session: Lied, client: Client, message: Message) -> Message:
        try:
            told = type(message).FromString(data.draw(bent(message.SerializeToString())))
        except Exception:  # noqa: BLE001 - what is no message at all ends at the transport
            return message
        if is_signed and isinstance(told, pb.Advertise):
            told.signature = sign(
                client.identity.key, "advertise", session.coordinator.session_id, *advertised_parts(told)
            )
        elif is_signed and isinstance(told, pb.Shares | pb.Unmask):
            signed(session, client, told)
        return told

    session.lie(stage, 1, lie)
    try:
        session.run()
    except SessionAbortedError as error:
        ended = error.code
        assert ended in {AbortCode.TOO_FEW, AbortCode.BAD_SHARE}
        return
    summed = [client.vector for client in session.clients if client.client_id in session.coordinator.survivors]
    assert (session.total == sum_of(summed)).all()
