"""Which examples each client takes in which step, worked out by hand, and how clients are cut into blocks."""

import numpy as np
import torch

from simulation.plan import Round, blocks_of, draw_plan
from wire.seeds import derive_generator
from wire.spec import LocalSpec


def test_draw_plan_gives_each_client_its_own_batches_and_fills_up_the_short_ones() -> None:
    ranges = {"ana": range(10, 15), "ben": range(3, 6), "eva": range(1)}
    plan = draw_plan(["ana", "ben", "eva"], ranges, LocalSpec(epochs=2, batch_size=2), Round(7, 4))
    # Batches of an epoch: ana 2, 2, 1; ben 2, 1; eva 1.
    assert plan.counts.T.tolist() == [[2, 2, 1, 2, 2, 1], [2, 1, 2, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert plan.last_counts.T.tolist() == [[0, 0, 0, 2, 2, 1], [0, 0, 2, 1, 0, 0], [0, 1, 0, 0, 0, 0]]
    assert [plan.active(step) for step in range(6)] == [3, 3, 2, 2, 1, 1]
    for place, (client_id, own) in enumerate(ranges.items()):
        generator = derive_generator(7, "fit", 4, client_id)
        assert plan.dropout_seeds[place] == int(torch.randint(1 << 62, (), generator=generator))
        step = 0
        for _ in range(2):
            order = own.start + torch.randperm(len(own), generator=generator)
            for batch in order.split(2):  # type: ignore[no-untyped-call]
                filled = batch.tolist() + [batch[0].item()] * (2 - len(batch))
                assert plan.rows[step, place].tolist() == filled
                step += 1


def test_draw_plan_batches_are_no_wider_than_the_largest_client() -> None:
    plan = draw_plan(
        ["ana", "ben"], {"ana": range(5), "ben": range(5, 8)}, LocalSpec(batch_size=1_000_000), Round(1, 1)
    )
    assert plan.rows.shape == (1, 2, 5)
    assert plan.counts.tolist() == [[5, 3]]


def test_blocks_keep_the_order_and_are_about_equal() -> None:
    assert blocks_of(list("abcdefg"), 3) == [["a", "b"], ["c", "d"], ["e", "f", "g"]]
    assert blocks_of(list("abc"), 3) == [["a", "b", "c"]]
    assert blocks_of([], 3) == []


def test_draw_plan_puts_the_largest_clients_first() -> None:
    ranges = {"ana": range(2), "ben": range(2, 9), "eva": range(9, 14)}
    assert draw_plan(list(ranges), ranges, LocalSpec(batch_size=2), Round(1, 1)).client_ids == ("ben", "eva", "ana")


def test_plan_of_no_epochs_has_no_steps() -> None:
    plan = draw_plan(["ana"], {"ana": range(5)}, LocalSpec(epochs=0), Round(1, 1))
    assert plan.rows.shape[0] == 0
    assert np.array_equal(plan.sizes, [5])
