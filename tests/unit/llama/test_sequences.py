"""SequenceTable: which pages a sequence writes in place, which it copies first, and what it gives back."""

import numpy as np
import pytest

from hopformer.errors import OutOfPages
from hopformer.llama.pages import PagePool
from hopformer.llama.prefix_cache import PrefixCache
from hopformer.llama.sequences import SequenceTable

PAGE_SIZE = 4


def make_table(num_pages: int = 16, cached: bool = True) -> SequenceTable:
    pool = PagePool(num_pages, PAGE_SIZE)
    return SequenceTable(pool, PrefixCache(pool) if cached else None)


def write(table: SequenceTable, sequence_id: int, tokens: list[int]) -> None:
    """Reserve room for tokens and record them; page copies stay pending."""
    table.reserve(sequence_id, table.length(sequence_id) + len(tokens))
    table.append(sequence_id, tokens)
    table.check_integrity()


def converse(table: SequenceTable, sequence_id: int, tokens: list[int]) -> int:
    """Open a sequence and write what is not cached; returns how much was."""
    num_cached = table.open(sequence_id, tokens)
    write(table, sequence_id, tokens[num_cached:])
    return num_cached


def pages_of(table: SequenceTable, sequence_id: int) -> list[int]:
    return table.block_row(sequence_id).tolist()


def test_slots_are_page_times_page_size_plus_offset() -> None:
    table = make_table()
    converse(table, 0, list(range(6)))
    first, second = pages_of(table, 0)
    expected = [first * 4 + 2, first * 4 + 3, second * 4, second * 4 + 1]
    slots = table.slots(0, 2, 4)
    assert slots.tolist() == expected and slots.dtype == np.int64
    assert table.block_row(0).dtype == np.int32


@pytest.mark.parametrize(("num_tokens", "num_pages"), [(1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (17, 5)])
def test_a_sequence_holds_as_many_pages_as_its_tokens_need(num_tokens: int, num_pages: int) -> None:
    table = make_table()
    converse(table, 0, list(range(num_tokens)))
    assert len(pages_of(table, 0)) == num_pages
    assert table.pool.num_free == 16 - num_pages


def test_tokens_beyond_the_reserved_room_are_a_bug() -> None:
    table = make_table()
    table.open(0, [1, 2, 3])
    table.reserve(0, 2)
    with pytest.raises(AssertionError, match="beyond what was reserved"):
        table.append(0, [1, 2, 3])


def test_reserving_twice_takes_no_more_pages_than_once() -> None:
    table = make_table()
    table.open(0, [1])
    for _ in range(3):
        table.reserve(0, 5)
    table.reserve(0, 3)
    assert len(pages_of(table, 0)) == 2


def test_a_sequence_whose_tokens_are_unknown_counts_them() -> None:
    table = make_table()
    assert table.open(0) == 0
    table.reserve(0, 6)
    table.append(0, 6)
    assert table.length(0) == 6
    with pytest.raises(AssertionError, match="pass a count"):
        table.append(0, [1])
    with pytest.raises(AssertionError, match="opened without tokens"):
        table.token_ids(0)


def test_a_sequence_whose_tokens_are_unknown_is_not_remembered() -> None:
    table = make_table()
    table.open(0)
    table.reserve(0, 6)
    table.append(0, 6)
    table.release(0)
    assert table.pool.num_free == 16


def test_without_a_prefix_cache_every_page_is_given_back() -> None:
    table = make_table(cached=False)
    assert converse(table, 0, [1, 2, 3, 4, 5]) == 0
    table.release(0)
    assert table.pool.num_free == 16
    assert converse(table, 1, [1, 2, 3, 4, 5]) == 0


def test_a_follow_up_goes_on_in_the_page_where_the_last_answer_ended() -> None:
    table = make_table()
    converse(table, 0, [1, 2, 3, 4, 5, 6])
    before = pages_of(table, 0)
    table.release(0)
    assert converse(table, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9]) == 6
    assert pages_of(table, 1)[:2] == before
    assert table.take_copies() == []


def test_one_token_of_a_prompt_is_always_left_to_compute() -> None:
    table = make_table()
    converse(table, 0, [1, 2, 3, 4, 5, 6])
    table.release(0)
    assert table.open(1, [1, 2, 3, 4, 5, 6]) == 5
    assert table.open(2, [1]) == 0


def test_of_two_follow_ups_of_one_answer_the_second_gets_a_copy() -> None:
    table = make_table()
    converse(table, 0, [1, 2, 3, 4, 5, 6])
    shared = pages_of(table, 0)[1]
    table.release(0)
    assert table.open(1, [1, 2, 3, 4, 5, 6, 7]) == table.open(2, [1, 2, 3, 4, 5, 6, 8]) == 6
    table.reserve(1, 7)
    table.reserve(2, 7)
    assert pages_of(table, 1)[1] == shared != pages_of(table, 2)[1]
    assert table.take_copies() == [(shared, pages_of(table, 2)[1])]
    assert table.take_copies() == [], "copies are handed out once"
    table.check_integrity()


def test_a_prompt_that_parts_inside_a_page_gets_a_copy_of_it() -> None:
    table = make_table()
    converse(table, 0, [1, 2, 3, 4])
    page = pages_of(table, 0)[0]
    assert converse(table, 1, [1, 2, 9, 9]) == 2
    assert table.take_copies() == [(page, pages_of(table, 1)[0])]
    assert pages_of(table, 0) == [page]


def test_full_pages_of_a_running_sequence_are_shared() -> None:
    table = make_table()
    converse(table, 0, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert converse(table, 1, [1, 2, 3, 4, 5, 6, 7, 8, 0]) == 8
    assert pages_of(table, 1)[:2] == pages_of(table, 0)[:2]
    assert table.take_copies() == []


def test_a_fork_shares_pages_until_one_of_the_two_writes() -> None:
    table = make_table()
    converse(table, 0, [1, 2, 3, 4, 5, 6])
    table.fork(0, 1)
    assert pages_of(table, 1) == pages_of(table, 0) and table.token_ids(1) == [1, 2, 3, 4, 5, 6]
    before = pages_of(table, 0)
    write(table, 1, [7])  # in place: nobody has claimed the slot
    assert table.take_copies() == [] and pages_of(table, 1) == before
    write(table, 0, [8])
    assert table.take_copies() == [(before[1], pages_of(table, 0)[1])]
    assert pages_of(table, 1) == before and table.token_ids(0)[-1] == 8 and table.token_ids(1)[-1] == 7


def test_a_fork_at_the_end_of_a_page_copies_nothing() -> None:
    table = make_table()
    converse(table, 0, [1, 2, 3, 4])
    table.fork(0, 1)
    write(table, 0, [5])
    write(table, 1, [6])
    assert table.take_copies() == []
    assert pages_of(table, 0)[0] == pages_of(table, 1)[0] and pages_of(table, 0)[1] != pages_of(table, 1)[1]


def test_a_fork_does_not_get_the_room_that_its_source_has_reserved() -> None:
    table = make_table()
    converse(table, 0, [1, 2, 3])
    table.reserve(0, 9)
    table.fork(0, 1)
    assert len(pages_of(table, 1)) == 1
    table.reserve(1, 4)
    assert pages_of(table, 1)[0] != pages_of(table, 0)[0], "the slot behind the fork is its source's"


def test_room_that_was_reserved_before_a_fork_is_extended_in_place() -> None:
    table = make_table()
    converse(table, 0, [1, 2, 3])
    before = pages_of(table, 0)
    table.reserve(0, 4)
    table.fork(0, 1)
    table.reserve(0, 5)
    assert pages_of(table, 0)[:1] == before and table.take_copies() == []


def test_a_page_that_had_another_holder_before_is_written_in_place() -> None:
    table = make_table(num_pages=1, cached=False)
    converse(table, 0, [1, 2, 3, 4])
    table.release(0)
    converse(table, 1, [5])
    table.fork(1, 2)
    write(table, 2, [6])  # nobody who is still there has claimed the slot
    assert table.take_copies() == []


def test_pages_that_replace_others_after_a_rollback_are_the_ones_written() -> None:
    table = make_table(cached=False)
    converse(table, 0, [1] * 12)
    first, second, _ = pages_of(table, 0)
    table.rollback(0, 4)
    assert table.pool.allocate(1, after=first) == [second]  # somebody else takes it
    table.reserve(0, 12)
    assert second not in pages_of(table, 0)


def test_rollback_gives_back_pages_and_room() -> None:
    table = make_table(cached=False)
    table.open(0, [0])
    write(table, 0, list(range(10)))
    table.reserve(0, 16)
    table.rollback(0, 5)
    assert table.length(0) == 5 and table.token_ids(0) == [0, 1, 2, 3, 4]
    assert table.pool.num_free == 14
    with pytest.raises(AssertionError, match="beyond what was reserved"):
        table.append(0, [7])


def test_rollback_to_nothing_leaves_an_open_sequence() -> None:
    table = make_table(cached=False)
    converse(table, 0, [1, 2, 3, 4, 5])
    table.rollback(0, 0)
    assert 0 in table and table.length(0) == 0 and table.pool.num_free == 16
    write(table, 0, [6])


def test_rollback_beyond_the_end_is_a_bug() -> None:
    table = make_table()
    converse(table, 0, [1, 2])
    with pytest.raises(AssertionError, match="rollback to 3 of a sequence of 2"):
        table.rollback(0, 3)


def test_a_rolled_back_sequence_overwrites_its_own_page_but_not_a_cached_one() -> None:
    table = make_table()
    converse(table, 0, [1, 2, 3, 4, 5, 6])
    first, last = pages_of(table, 0)
    table.rollback(0, 5)
    write(table, 0, [7])
    assert pages_of(table, 0) == [first, last] and table.take_copies() == []
    table.rollback(0, 2)  # into the full page, which the prefix cache holds
    write(table, 0, [9])
    assert table.take_copies() == [(first, pages_of(table, 0)[0])]
    assert table.open(1, [1, 2, 3, 4, 0]) == 4, "the cached page still holds what it did"


def test_the_end_that_a_rollback_cut_off_is_found_by_later_prompts() -> None:
    table = make_table()
    converse(table, 0, [1, 2, 3, 4, 5, 6, 7, 8])
    table.rollback(0, 4)
    assert table.open(1, [1, 2, 3, 4, 5, 6, 7, 8, 9]) == 8


def test_what_was_reserved_but_never_written_is_not_remembered() -> None:
    table = make_table()
    converse(table, 0, [1, 2, 3, 4, 5])
    table.reserve(0, 8)
    table.release(0)  # a preemption between reserve and step
    assert table.open(1, [1, 2, 3, 4, 5, 6, 7, 8, 9]) == 5


def test_a_copy_that_was_not_yet_made_is_still_made_after_its_owner_is_gone() -> None:
    table = make_table()
    converse(table, 0, [1, 2, 3, 4])
    source = pages_of(table, 0)[0]
    table.open(1, [1, 2, 9])
    table.reserve(1, 3)
    target = pages_of(table, 1)[0]
    table.release(1)
    assert target not in pages_of(table, 0)
    assert table.take_copies() == [(source, target)]


def test_a_refused_reservation_changes_nothing_and_evicts_nothing() -> None:
    table = make_table(num_pages=6)
    converse(table, 0, [1, 2, 3, 4, 5])
    table.release(0)
    converse(table, 1, [9] * 9)
    with pytest.raises(OutOfPages, match="6 KV pages are needed"):
        table.reserve(1, 9 + 6 * PAGE_SIZE)
    table.check_integrity()
    assert len(pages_of(table, 1)) == 3
    assert table.open(2, [1, 2, 3, 4, 5, 6]) == 5


def test_cached_pages_make_way_for_a_growing_sequence() -> None:
    table = make_table(num_pages=4)
    converse(table, 0, [1] * 12)
    table.release(0)
    converse(table, 1, [2] * 16)
    assert len(pages_of(table, 1)) == 4
    assert table.open(2, [1] * 12) == 0


def test_the_cache_gives_up_a_shared_page_where_there_is_no_room_for_a_copy() -> None:
    table = make_table(num_pages=2)
    converse(table, 0, [1, 2, 3, 4, 5, 6, 7, 8])
    table.release(0)
    assert table.open(1, [1, 2, 3, 4, 5, 6, 9, 9]) == 6
    before = pages_of(table, 1)
    table.reserve(1, 8)
    assert pages_of(table, 1) == before and table.take_copies() == []
    table.append(1, [9, 9])
    table.check_integrity()
    assert table.open(2, [1, 2, 3, 4, 5, 6, 7, 8, 0]) == 6, "what was overwritten is not found any more"


def test_a_page_that_a_fork_reads_is_copied_or_refused_never_taken() -> None:
    table = make_table(num_pages=2)
    converse(table, 0, [1, 2, 3, 4, 5, 6])
    table.fork(0, 1)
    write(table, 0, [7])
    with pytest.raises(OutOfPages):
        table.reserve(1, 7)
    assert table.take_copies() == []


def test_an_id_is_open_once() -> None:
    table = make_table()
    table.open(0, [1])
    with pytest.raises(AssertionError, match="sequence 0 is open"):
        table.open(0, [1])
    with pytest.raises(AssertionError, match="sequence 0 is open"):
        table.fork(0, 0)
    table.release(0)
    table.open(0, [1])
    assert list(table) == [0]
