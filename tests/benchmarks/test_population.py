import torch

from benchmarks.population import PopulationResult, flat, median, workload_of


def test_workload_of_a_population_keeps_the_cohort() -> None:
    for client_count in (100, 1_000):
        workload = workload_of(client_count)
        assert (workload.cohort_size, workload.steps_per_round) == (100, 200)
        clients = workload.clients()
        assert {inputs.shape for inputs, _ in clients} == {torch.Size([20, 1, 8, 8])}
        assert len(clients) == client_count


def test_flat_holds_the_median_of_each_figure_and_none_for_what_was_not_run() -> None:
    results = [PopulationResult(seconds, 3.0, 400.0, growth, 5.0) for seconds, growth in ((1.0, 9.0), (2.0, 8.0))]
    assert median(results) == PopulationResult(1.5, 3.0, 400.0, 8.5, 5.0)
    values = flat({100: results, 1_000: []})
    assert values["population_100_growth_mb"] == 8.5
    assert values["population_1000_growth_mb"] is None
