from collections.abc import Mapping, Sequence

import pytest

from benchmarks.contenders import FLOWER, PFL, PLAIN, RAY, SERIAL, VECTORIZED, Contender, Spread
from benchmarks.peer_result import PeerResult
from benchmarks.simulation_figures import FIRST_ROUNDS, Comparison, Figure, comparisons, contenders_of, figures, flat
from benchmarks.simulation_workloads import WORKLOADS


def measured(seconds: Mapping[Contender, Sequence[float]]) -> dict[str, dict[Contender, list[PeerResult]]]:
    """Return measurements of the digits' network with these times of a step."""
    return {
        "digits-cnn": {
            contender: [PeerResult(step, 40 * step, 3.0, 300.0, 40) for step in steps]
            for contender, steps in seconds.items()
        }
    }


@pytest.mark.parametrize(
    ("value", "target", "is_seconds", "is_met"),
    [
        (4.0, 4.0, False, True),
        (3.99, 4.0, False, False),
        (6.0, 6.0, True, True),
        (6.01, 6.0, True, False),
        (1.0, None, False, None),
        (None, 4.0, False, None),
    ],
)
def test_figure_is_met_by_at_least_a_ratio_and_at_most_a_time(
    value: float | None, target: float | None, is_seconds: bool, is_met: bool | None
) -> None:
    spread = None if value is None else Spread(value, value, value)
    assert Figure("any", spread, target, is_seconds).is_met is is_met


def test_comparison_takes_the_fastest_of_the_others() -> None:
    slow, fast = Contender("pfl"), Contender("pfl", threads=1, workers=2)
    comparison = Comparison("any", "digits-cnn", VECTORIZED, (slow, fast))
    results = measured({VECTORIZED: [0.5, 1.0, 2.0], slow: [9.0, 9.0, 9.0], fast: [4.0, 3.0, 2.0]})
    assert comparison.ratio(results) == Spread(3.0, 1.0, 8.0)
    del results["digits-cnn"][fast]
    assert comparison.ratio(results) == Spread(9.0, 4.5, 18.0)


@pytest.mark.parametrize("missing", [VECTORIZED, FLOWER[0]])
def test_comparison_without_one_of_its_sides_has_no_ratio(missing: Contender) -> None:
    comparison = Comparison("any", "digits-cnn", VECTORIZED, FLOWER[:1])
    results = measured({VECTORIZED: [1.0], FLOWER[0]: [2.0]})
    del results["digits-cnn"][missing]
    assert comparison.ratio(results) is None
    assert comparison.ratio({}) is None


def test_figures_hold_every_name_whatever_was_run() -> None:
    found = {figure.name: figure for figure in figures({}, {})}
    assert {name for name, figure in found.items() if figure.target is not None} == {
        *FIRST_ROUNDS,
        "vectorized_over_plain_cnn",
        "vectorized_over_plain_cnn_100",
        "vectorized_over_plain_mlp",
        "auto_over_plain_pfl",
        "vectorized_over_flower",
        "vectorized_over_pfl_digits",
        "auto_over_pfl_own",
        "serial_over_plain",
        "processes_over_serial",
    }
    assert all(figure.measured is None and figure.is_met is None for figure in found.values())


def test_figures_of_first_rounds_are_seconds() -> None:
    found = {figure.name: figure for figure in figures({}, {"first_round_seconds": [5.0, 9.0, 4.0]})}
    assert found["first_round_seconds"].measured == Spread(5.0, 4.0, 9.0)
    assert found["first_round_seconds"].is_met is True
    assert found["ray_first_round_seconds"].measured is None


def test_serial_is_compared_with_the_plain_loop_on_as_many_threads() -> None:
    for comparison in comparisons():
        if comparison.name.startswith("serial_over_plain"):
            assert {each.threads for each in comparison.theirs} == {comparison.ours.threads}


def test_contenders_are_measured_once_and_only_where_a_comparison_needs_them() -> None:
    by_workload = {name: contenders_of(name) for name in WORKLOADS}
    for contenders in by_workload.values():
        assert len(contenders) == len(set(contenders))
        assert set(PLAIN) <= set(contenders)
    assert [name for name, contenders in by_workload.items() if FLOWER[0] in contenders] == ["digits-cnn"]
    assert [name for name, contenders in by_workload.items() if RAY in contenders] == ["digits-cnn"]
    assert [name for name, contenders in by_workload.items() if set(PFL) <= set(contenders)] == [
        "digits-cnn",
        "pfl-cifar",
    ]


def test_flat_holds_medians_and_none_for_what_was_not_run() -> None:
    values = flat(measured({SERIAL: [0.5, 0.25, 0.125]}))
    assert values["digits_cnn_serial_1_thread_steps_per_second"] == 4.0
    assert values["digits_cnn_serial_1_thread_start_seconds"] == 3.0
    assert values["digits_cnn_serial_1_thread_rss_mb"] == 300.0
    assert values["digits_cnn_flower_steps_per_second"] is None
    assert values["pfl_cifar_serial_1_thread_rss_mb"] is None
