import pytest

from benchmarks import contenders
from benchmarks.contenders import PFL, PROCESSES, SERIAL, VECTORIZED, Contender, Spread, fastest, in_turn, speed_ratio
from benchmarks.peer_process import PeerFailedError
from benchmarks.simulation_workloads import WORKLOADS


def test_speed_ratio_is_of_the_medians_with_the_pairs_beside_it() -> None:
    # Medians 2 and 6; pairs 8 / 1, 4 / 2 and 6 / 4.
    assert speed_ratio([1.0, 2.0, 4.0], [8.0, 4.0, 6.0]) == Spread(3.0, 1.5, 8.0)


def test_spread_of_measurements_is_their_median_lowest_and_highest() -> None:
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(2.0, 1.0, 5.0)


def test_fastest_has_the_lowest_median_and_not_the_lowest_measurement() -> None:
    assert fastest({SERIAL: [1.0, 5.0, 5.0], VECTORIZED: [4.0, 4.0, 4.0]}) == VECTORIZED


def test_in_turn_measures_each_once_before_any_a_second_time() -> None:
    order: list[str] = []

    def measure(key: str) -> int:
        order.append(key)
        return len(order)

    results = in_turn(["ana", "ben"], measure, 3, lambda *_: pytest.fail("nothing failed"))
    assert order == ["ana", "ben"] * 3
    assert results == {"ana": [1, 3, 5], "ben": [2, 4, 6]}


def test_in_turn_leaves_out_who_fails_and_tells_once() -> None:
    counts = {"ana": 0, "ben": 0}
    told: list[tuple[str, str]] = []

    def measure(key: str) -> int:
        counts[key] += 1
        if key == "ana" and counts[key] == 2:
            raise PeerFailedError("no end")
        return counts[key]

    results = in_turn(counts, measure, 3, lambda key, error: told.append((key, str(error))))
    assert results == {"ben": [1, 2, 3]}
    assert told == [("ana", "no end")]
    assert counts == {"ana": 2, "ben": 3}


@pytest.mark.parametrize(
    ("contender", "name", "title"),
    [
        (Contender("plain", threads=1), "plain_1_thread", "plain loop, 1 thread"),
        (Contender("vectorized", threads=2), "vectorized_2_threads", "vectorized, 2 threads"),
        (PROCESSES, "processes_2_workers_1_thread", "processes, 2 workers of 1 thread"),
        (PFL[0], "pfl", "pfl-research"),
    ],
)
def test_contender_has_a_name_for_figures_and_one_for_people(contender: Contender, name: str, title: str) -> None:
    assert (contender.name, contender.title) == (name, title)


def test_automatic_takes_vectorized_for_small_models_and_workers_for_large_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("simulation.resources.core_count", lambda: 2)
    monkeypatch.setattr(contenders, "CORES", 2)
    assert contenders.automatic(WORKLOADS["digits-cnn"]) == VECTORIZED
    assert contenders.automatic(WORKLOADS["pfl-cifar"]) == Contender("processes", threads=1, workers=2)
