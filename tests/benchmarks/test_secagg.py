import numpy as np
import pytest

from benchmarks.mask_rates import Rates
from benchmarks.secagg_figures import CLIENT_COUNTS, LARGE, MAIN, PARAMETER_COUNTS, Figure, Measured, cases, figures
from benchmarks.secagg_result import Case, SessionResult, Stopwatch, median_result
from benchmarks.secagg_session import BLOCK, WEIGHT, measure, parameters_of, quantise


def result(client: float, coordinator: float, peak_bytes: int | None = None) -> SessionResult:
    return SessionResult(
        {"mask": client / 2, "unmask": client / 2}, {"open": coordinator}, 100, 10, peak_bytes=peak_bytes
    )


def test_streams_of_a_case_are_those_of_the_complete_graph() -> None:
    case = Case(10, 1_000, 1)
    # A client's own mask and 9 with others; 9 own masks of survivors, and 9 between them and the one who is gone.
    assert (case.client_streams, case.coordinator_streams, case.vector_bytes) == (10, 18, 4_000)
    assert Case(10, 1_000, 0).coordinator_streams == 10


def test_cases_are_every_size_without_and_with_a_tenth_gone() -> None:
    found = cases(CLIENT_COUNTS, PARAMETER_COUNTS)
    assert len(found) == len(set(found)) == 18
    assert {MAIN, LARGE, Case(50, 100_000, 5), Case(10, 100_000, 0)} <= set(found)


@pytest.mark.parametrize("case", cases(CLIENT_COUNTS, (100_000,)))
def test_sessions_of_all_cases_have_a_complete_graph_that_bears_those_who_are_gone(case: Case) -> None:
    graph = parameters_of(case).graph(case.client_count)
    assert graph.is_complete
    assert case.gone_count in (0, graph.missing_count)


def test_median_result_is_that_of_each_stage() -> None:
    repeats = [result(2.0, 9.0, 40), result(4.0, 1.0, 60), result(1.0, 2.0, 50)]
    assert median_result(repeats) == result(2.0, 2.0, 50)
    assert median_result([result(1.0, 1.0)]).peak_bytes is None


def test_figures_compare_the_case_of_a_million_parameters_with_the_peer() -> None:
    sessions = {MAIN: result(0.1, 0.5), LARGE: result(2.0, 5.0, 120_000_000)}
    rates = {1_000_000: Rates(10e9, 30e9, 7e9, 5e9, 0.5, 0.01)}
    found = {figure.name: figure for figure in figures(Measured(sessions, rates, {MAIN: result(3.0, 100.0)}))}
    assert found["client_cpu_1e6"].value == 0.1
    assert found["coordinator_cpu_1e7"].value == 5.0
    assert found["flower_client_ratio"].value == pytest.approx(30.0)
    assert found["flower_coordinator_ratio"].value == pytest.approx(200.0)
    assert found["mask_over_memcpy"].value == 0.5
    assert found["coordinator_rss_models"].value == 3.0
    assert {name for name, figure in found.items() if figure.is_met is False} == {"client_cpu_1e7"}
    assert found["demo_over_plain"].is_met is None


def test_figures_of_what_was_not_measured_have_no_value() -> None:
    found = figures(Measured({MAIN: result(0.1, 0.5)}, {}, {}))
    assert [figure.name for figure in found if figure.value is not None] == ["client_cpu_1e6", "coordinator_cpu_1e6"]


@pytest.mark.parametrize(("is_limit", "value", "is_met"), [(True, 2.0, True), (True, 2.1, False), (False, 1.9, False)])
def test_figure_meets_its_target_on_the_right_side(is_limit: bool, value: float, is_met: bool) -> None:
    assert Figure("some", value, 2.0, is_limit=is_limit).is_met is is_met


def test_stopwatch_sums_and_takes_medians_by_stage() -> None:
    watch = Stopwatch({"mask": [1.0, 2.0, 6.0]})
    assert watch.time("open", lambda number: number + 1, 4) == 5
    assert (watch.medians["mask"], watch.totals["mask"]) == (2.0, 9.0)
    assert watch.totals["open"] >= 0.0


def test_quantise_is_the_grids_rounding_in_blocks() -> None:
    parameters = parameters_of(Case(10, BLOCK + 3, 0))
    values = np.linspace(-1, 1, BLOCK + 3, dtype=np.float32)
    out = np.empty(len(values), dtype="<u4")
    quantise(values, parameters, out)
    expected = np.rint(values.astype(np.float64) * WEIGHT * 2.0**parameters.grid.exponent).astype(np.int64)
    assert (out.view("<i4") == expected).all()


def test_measure_plays_a_session_in_two_processes_to_the_exact_sum() -> None:
    found = measure(Case(5, 70_000, 0))
    assert set(found.client_seconds) == {
        "advertise",
        "roster and shares",
        "delivery",
        "mask",
        "acknowledge",
        "unmask",
    }
    assert found.sent_bytes > 4 * 70_000 > found.received_bytes > 0
    assert found.peak_bytes is not None
    assert found.peak_bytes > 2 * 4 * 70_000
