"""Every row is dealt exactly once, in any world, and the world changes nothing but who computes it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.config.sections import Batch
from peftkit.data.batches import (
    deal,
    evaluation_batches,
    order,
    shortest_batch,
    step_rows,
    steps_per_epoch,
    training_batches,
    useful,
)
from peftkit.data.store import Store, write
from peftkit.tasks import CausalLM
from peftkit.tasks.base import IGNORED
from tests.tiny import tokenizer

lengths_of_rows = st.lists(st.integers(1, 50), min_size=1, max_size=60)
small = st.integers(1, 6)
rows_or_tokens = st.one_of(
    st.builds(Batch, micro=small),
    st.builds(Batch, tokens=st.integers(1, 400)),
    st.builds(Batch, tokens=st.integers(1, 400), micro=small),
)


@given(lengths_of_rows, small, small)
def test_deal_gives_every_row_once_and_every_process_as_many_micro_batches(lengths, micro, processes):
    rows = list(range(len(lengths)))
    dealt = [deal(rows, lengths, Batch(micro=micro), processes, process) for process in range(processes)]
    assert Counter(row for process in dealt for batch in process for row in batch) == Counter(rows)
    assert len({len(process) for process in dealt}) == 1
    assert max(len(batch) for process in dealt for batch in process) <= micro
    assert len(dealt[0]) == -(-len(rows) // (micro * processes))


@given(lengths_of_rows, st.integers(1, 400), st.one_of(st.none(), small), small)
def test_deal_keeps_to_the_tokens_in_as_few_passes_as_can_be(lengths, tokens, micro, processes):
    rows = list(range(len(lengths)))
    batch = Batch(tokens=tokens, micro=micro)
    dealt = [deal(rows, lengths, batch, processes, process) for process in range(processes)]
    assert Counter(row for process in dealt for micro in process for row in micro) == Counter(rows)
    assert len({len(process) for process in dealt}) == 1
    passes = [[lengths[row] for row in one] for turn in zip(*dealt, strict=True) for one in turn]
    assert all(len(one) <= 1 or len(one) * max(one) <= tokens for one in passes)
    assert all(len(one) <= (micro or len(rows)) for one in passes)
    least, taken = 0, []
    for length in sorted(lengths, reverse=True):
        if not taken or (len(taken) + 1) * taken[0] > tokens or len(taken) == micro:
            least, taken = least + 1, []
        taken.append(length)
    assert len(dealt[0]) == -(-least // processes)
    assert all(passes[: min(len(passes), len(rows))]), "no process waits for others while there are rows"


def test_passes_of_a_step_cost_about_the_same():
    lengths = [100, 90, 50, 50, 50, 40, 30, 20, 10, 10, 10, 10]
    (*dealt,) = deal(range(12), lengths, Batch(tokens=200), 1, 0)
    costs = [len(one) * lengths[one[0]] for one in dealt]
    assert max(costs) <= 200 and min(costs) > 100, costs  # filled one after another the last would have 40


@given(lengths_of_rows, rows_or_tokens, small)
def test_the_processes_kth_micro_batches_hold_neighbours_in_length(lengths, batch, processes):
    dealt = [deal(range(len(lengths)), lengths, batch, processes, process) for process in range(processes)]
    in_turn = [lengths[row] for turn in zip(*dealt, strict=True) for batch in turn for row in batch]
    assert in_turn == sorted(lengths, reverse=True)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3), st.integers(0, 2))
def test_the_steps_of_an_epoch_are_its_order_cut_in_pieces(n, total, seed, epoch):
    per_epoch = steps_per_epoch(n, total)
    steps = [step_rows(epoch * per_epoch + step, n, total, seed) for step in range(per_epoch)]
    assert [row for step in steps for row in step] == order(n, seed, epoch)
    assert all(len(step) == total for step in steps[:-1])


def test_order_differs_between_epochs_and_seeds_and_is_a_permutation():
    orders = [order(100, seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(rows) for rows in orders}) == 4
    assert all(sorted(rows) == list(range(100)) for rows in orders)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    texts = ["a " * (1 + 7 * number % 11) + str(number) for number in range(13)]
    return write(tmp_path / "rows", [CausalLM().encode({"text": text}, tokenizer(), 64) for text in texts])


def labels_in(batches) -> Counter:
    rows = [tuple(row[row != IGNORED].tolist()) for batch in batches for row in batch["labels"]]
    return Counter(row for row in rows if row)


@pytest.mark.parametrize(("total", "micro", "processes"), [(5, 2, 1), (5, 2, 2), (5, 1, 3), (13, 4, 2), (50, 3, 3)])
def test_training_batches_hold_each_step_whatever_the_world(store, total, micro, processes):
    task, batch = CausalLM(), Batch(total=total, micro=micro)
    last = 2 * steps_per_epoch(len(store), total)
    worlds = [
        list(training_batches(store, task, tokenizer(), batch, 7, processes, p, 0, last)) for p in range(processes)
    ]
    for step in range(last):
        expected = [task.collate([store[row] for row in step_rows(step, len(store), total, 7)], tokenizer())]
        assert labels_in(micro for world in worlds for micro in world[step]) == labels_in(expected)
        assert len({len(world[step]) for world in worlds}) == 1


@pytest.mark.parametrize("split", [{"micro": 2}, {"tokens": 30}])
def test_training_can_begin_at_any_step(store, split):
    task, batch = CausalLM(), Batch(total=4, **split)
    whole = list(training_batches(store, task, tokenizer(), batch, 7, 1, 0, 0, 9))
    rest = list(training_batches(store, task, tokenizer(), batch, 7, 1, 0, 5, 9))
    assert [[micro["input_ids"].tolist() for micro in step] for step in rest] == [
        [micro["input_ids"].tolist() for micro in step] for step in whole[5:]
    ]


def test_a_process_without_rows_gets_a_batch_without_targets(store):
    task = CausalLM()
    (step,) = training_batches(store, task, tokenizer(), Batch(total=1, micro=1), 7, 2, 1, 0, 1)
    assert [task.targets(micro) for micro in step] == [0]
    assert step[0]["input_ids"].shape[0] == 1


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_evaluation_batches_are_the_same_in_every_world(store, processes):
    def batches(world, process):
        return list(evaluation_batches(store, CausalLM(), tokenizer(), 3, world, process))

    alone = {tuple(rows): batch["input_ids"].tolist() for rows, batch in batches(1, 0)}
    dealt = [batches(processes, process) for process in range(processes)]
    found = {tuple(rows): batch["input_ids"].tolist() for part in dealt for rows, batch in part if rows}
    assert found == alone
    assert sorted(row for rows in found for row in rows) == list(range(len(store)))
    assert len({len(part) for part in dealt}) == 1
    assert all(CausalLM().targets(batch) == 0 for part in dealt for rows, batch in part if not rows)


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_batches_keep_to_the_tokens(store, processes):
    def rows(world, process):
        return [rows for rows, _ in evaluation_batches(store, CausalLM(), tokenizer(), 3, world, process, tokens=30)]

    found = [one for process in range(processes) for one in rows(processes, process) if one]
    assert sorted(found) == sorted(rows(1, 0))
    assert sorted(row for one in found for row in one) == list(range(len(store)))
    assert all(len(one) == 1 or len(one) * max(store.lengths[row] for row in one) <= 30 for one in found)
    assert max(map(len, found)) == 3


def test_the_share_of_useful_tokens_is_that_of_the_batches(store):
    batch = Batch(total=len(store), micro=len(store))
    assert useful(store, batch, 0, 1) == sum(store.lengths) / (len(store) * max(store.lengths))
    assert useful(store, Batch(total=5, micro=1), 0, 2) == 1


def test_the_shortest_rows_are_of_two_lengths(store):
    mask = shortest_batch(store, CausalLM(), tokenizer())["attention_mask"].sum(1).tolist()
    assert mask[0] == min(store.lengths) and mask[1] > mask[0] and len(mask) == 2


def test_evaluation_of_the_first_rows_takes_those_alone(store):
    found = [row for rows, _ in evaluation_batches(store, CausalLM(), tokenizer(), 2, 1, 0, rows=5) for row in rows]
    assert sorted(found) == [0, 1, 2, 3, 4]
