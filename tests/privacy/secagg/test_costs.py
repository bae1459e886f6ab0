"""Costs of a session: worked by hand from the messages, and speeds that are measured."""

from dataclasses import astuple

import pytest

from privacy.errors import SecureAggregationError
from privacy.secagg.costs import Load, Speeds, client_load, coordinator_load, measure_speeds, vector_bytes_of
from privacy.secagg.parameters import Parameters, parameters_for
from tests.privacy.secagg.sessions import play

TEN = Parameters(client_count=10, corrupt_count=1, missing_count=2, degree=9, threshold=7)


def test_vector_bytes_are_those_of_parameters_and_head() -> None:
    # Weight, canary, and 60 bits of examples in limbs of 12, 28 and 60 bits: 4 bits are for sums of ten.
    assert [vector_bytes_of(100, bits, 10) for bits in (16, 32, 64)] == [2 * 107, 4 * 105, 8 * 103]


def test_vector_bytes_of_a_ring_too_small_for_the_clients_are_refused() -> None:
    with pytest.raises(SecureAggregationError, match=r"clients must be at most 16384 with ring_bits 16, got 20000\."):
        vector_bytes_of(100, 16, 20_000)


def test_client_load_of_ten_counts_streams_keys_and_signatures() -> None:
    found = client_load(TEN, 408)
    assert (found.streams, found.agreements, found.signatures) == (10, 20, 4)
    # Signatures of the 9 others and on their certificates, of the coordinator on 3 messages, and of 9 neighbours on the survivors.
    assert found.verifications == 9 * 2 + 3 + 9


def test_coordinator_load_of_ten_is_with_two_that_leave_after_sharing() -> None:
    found = coordinator_load(TEN, 408)
    # 8 own masks, and 2 clients' masks with 8 survivors each.
    assert (found.streams, found.agreements) == (8 + 2 * 8, 2 + 2 * 8)
    # Certificate, advertisement and shares of all; acknowledgement and unmasking of the 8.
    assert (found.signatures, found.verifications) == (3, 3 * 10 + 2 * 8)


def test_bytes_are_those_of_a_session_that_is_played() -> None:
    played, _ = play(10, 100, dropout_fraction=0.2)
    agreed = played.parameters.graph(10)
    played.advertise()
    roster = played.coordinator.freeze()
    played.share(roster)
    deliveries = played.coordinator.deliver()
    played.upload(deliveries, lambda stage, number: number >= 8)
    survivors = played.coordinator.close_sum(played.uploaded)
    played.acknowledge(dict.fromkeys(played.uploaded, survivors))
    bundles = played.coordinator.bundles()
    played.unmask(bundles)
    assert agreed.missing_count == 2
    came = sum(len(got) if isinstance(got, bytes) else got.ByteSize() for _, _, got in played.received)
    went = 10 * (roster.ByteSize() + played.coordinator.offer.ByteSize()) + 8 * survivors.ByteSize()
    went += sum(message.ByteSize() for message in (*deliveries.values(), *bundles.values()))
    found = coordinator_load(agreed, played.total.nbytes)
    assert found.received_bytes == pytest.approx(came, rel=0.005)
    # Acknowledgements are counted for all neighbours; those who left gave none.
    assert went <= found.sent_bytes < 1.03 * went


def test_coordinator_streams_of_a_ring_are_those_of_its_average() -> None:
    ring = parameters_for(200, 50_000, 100_000)
    # 180 survivors, and 20 missing with 42 * 180 / 199 surviving neighbours each.
    assert coordinator_load(ring, 4).streams == 180 + 760
    assert client_load(ring, 4).streams == 43


def test_coordinator_without_dropouts_takes_away_own_masks_alone() -> None:
    assert coordinator_load(parameters_for(100, 0, 0), 4).streams == 100


def test_seconds_weigh_what_is_done_by_its_speed() -> None:
    load = Load(streams=3, agreements=5, signatures=7, verifications=11, sent_bytes=0, received_bytes=0)
    speeds = Speeds(mask_byte=0.001, agreement=0.1, signature=1, verification=10)
    assert load.seconds(speeds, vector_bytes=1000) == 3 * 1000 * 0.001 + 0.5 + 7 + 110


def test_measured_speeds_are_of_something_done() -> None:
    assert all(0 < seconds < 0.1 for seconds in astuple(measure_speeds(0.01)))
