"""The CPU schedule: views where pages are a run, one batch where sequences are short, tiles that cover every query."""

from typing import Any

import pytest
import torch

from hopformer.errors import KernelError
from hopformer.kernels import AttentionPlan, plan_attention
from hopformer.kernels.attention_schedule_cpu import GROUPED_KEYS, TILE_ROWS, CpuSchedule, build_cpu_schedule


def plan(tables: list[list[int]], lens: list[int], query_lens: list[int], page_size: int = 16) -> AttentionPlan:
    """A plan from page ids a sequence; entries past a sequence's pages are nonsense."""
    width = max(map(len, tables)) + 1
    padded = torch.tensor([[*row, *[2**31 - 1] * (width - len(row))] for row in tables], dtype=torch.int32)
    bounds = torch.tensor([0, *query_lens]).cumsum(0).int()
    return plan_attention(padded, torch.tensor(lens, dtype=torch.int32), bounds, page_size=page_size)


def build(*arguments: Any, window: int = 0, views: bool = True) -> CpuSchedule:
    """The schedule of such a plan."""
    return build_cpu_schedule(plan(*arguments), window, views)


def test_a_run_of_pages_is_a_view() -> None:
    (work,) = build([[5, 6, 7]], [40], [1]).sequences
    assert (work.first_slot, work.num_keys, work.slots, work.tiles) == (80, 40, None, ())


def test_scattered_pages_and_other_pools_are_gathered() -> None:
    expected = [*range(80, 96), *range(32, 48), *range(112, 120)]
    (work,) = build([[5, 2, 7]], [40], [1]).sequences
    assert work.slots is not None and work.slots.tolist() == expected
    (work,) = build([[5, 6, 7]], [40], [1], views=False).sequences
    assert work.slots is not None and work.slots.tolist() == list(range(80, 120))


def test_a_window_leaves_out_pages_that_no_query_sees() -> None:
    (work,) = build([[9, 4, 5, 6]], [60], [1], window=20).sequences
    assert (work.first_slot, work.num_keys, work.slots) == (4 * 16 + 40 - 16, 20, None)


def test_a_window_longer_than_every_sequence_is_none() -> None:
    (work,) = build([[1, 2, 3]], [40], [40], window=40).sequences
    assert work.tiles[-1].unmasked == 40 - (40 - TILE_ROWS)


def test_many_short_decodes_are_one_batch_and_long_ones_are_not() -> None:
    pages = -(-(GROUPED_KEYS + 1) // 16)
    tables = [[1], [2], [3, 4], [5], list(range(10, 10 + pages))]
    schedule = build(tables, [3, 16, 20, 1, GROUPED_KEYS + 1], [1] * 5)
    (group,) = schedule.groups
    assert group.rows.tolist() == [0, 1, 2, 3]
    assert group.slots.shape == (4, 20)
    assert group.slots[0].tolist() == [16, 17, 18] + [18] * 17
    assert group.mask is not None and (group.mask[0, :, 0] == 0).sum(1).tolist() == [3, 16, 20, 1]
    assert [work.first_row for work in schedule.sequences] == [4]


def test_few_short_decodes_are_not_batched() -> None:
    schedule = build([[1], [2]], [3, 4], [1, 1])
    assert schedule.groups == () and len(schedule.sequences) == 2


def test_equally_long_decodes_need_no_mask() -> None:
    (group,) = build([[1], [2], [3], [4]], [7] * 4, [1] * 4).groups
    assert group.mask is None


@pytest.mark.parametrize("window", [0, 1, 20, 50])
@pytest.mark.parametrize(("length", "num_queries"), [(97, 97), (97, 33), (33, 2), (200, 65)])
def test_tiles_show_each_query_exactly_what_it_sees(window: int, length: int, num_queries: int) -> None:
    schedule = build([list(range(20))], [length], [num_queries], window=window)
    (work,) = schedule.sequences
    first_key = length - work.num_keys
    rows = []
    for tile in work.tiles:
        mask = (
            torch.zeros(tile.row_end - tile.row_start, tile.key_end - tile.key_start)
            if tile.mask is None
            else tile.mask
        )
        assert (mask[:, : tile.unmasked] == 0).all()
        for index, row in enumerate(range(tile.row_start, tile.row_end)):
            position = length - num_queries + row
            seen = (mask[index] == 0).nonzero().squeeze(1) + tile.key_start + first_key
            assert seen.tolist() == list(range(max(0, position - window + 1) if window else 0, position + 1))
            rows.append(row)
    assert rows == list(range(num_queries))


def test_queries_before_all_keys_are_set_apart() -> None:
    schedule = build([[1], [2], [3]], [0, 2, 5], [2, 5, 5])
    assert schedule.unseen == ((0, 2), (2, 5))
    assert [(work.first_row, work.num_keys) for work in schedule.sequences] == [(5, 2), (7, 5)]


@pytest.mark.parametrize(
    ("tables", "lens", "query_lens", "message"),
    [
        ([[1]], [18], [1], "2 pages of 16|pages must hold the length"),
        ([[1, -3]], [17], [1], "page -3"),
        ([[1]], [4], [-1], "must not decrease"),
    ],
)
def test_tables_that_cannot_be_are_refused(
    tables: list[list[int]], lens: list[int], query_lens: list[int], message: str
) -> None:
    made = plan(tables, lens, query_lens)
    made.block_table = made.block_table[:, : len(tables[0])]
    with pytest.raises(KernelError, match=message):
        build_cpu_schedule(made, 0, True)


def test_pages_and_rows_that_do_not_exist_are_refused() -> None:
    schedule = build([[1, 8]], [17], [3])
    schedule.check_fits(num_rows=3, num_pages=9)
    with pytest.raises(KernelError, match=r"page 8 .* the pool has 8 pages"):
        schedule.check_fits(num_rows=3, num_pages=8)
    with pytest.raises(KernelError, match="2 queries; cu_seqlens_q counts 3"):
        schedule.check_fits(num_rows=2, num_pages=9)
