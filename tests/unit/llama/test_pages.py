"""PagePool: reference counts, and where runs of consecutive pages are placed."""

import pytest

from hopformer.errors import OutOfPages
from hopformer.llama.pages import PagePool


def test_pages_are_free_until_allocated_and_again_after_release() -> None:
    pool = PagePool(5, 16)
    pages = pool.allocate(3)
    assert pool.num_free == 2
    assert [pool.references(page) for page in pages] == [1, 1, 1]
    pool.release(pages)
    assert pool.num_free == 5
    assert [pool.references(page) for page in pages] == [0, 0, 0]
    pool.check_integrity([])


def test_a_request_for_too_many_pages_takes_none_and_says_how_many_there_are() -> None:
    pool = PagePool(4, 16)
    pool.allocate(3)
    with pytest.raises(OutOfPages, match="2 KV pages are needed, 1 of 4 are free"):
        pool.allocate(2)
    assert pool.num_free == 1
    assert pool.allocate(1) and pool.num_free == 0


def test_a_retained_page_is_freed_by_its_last_holder() -> None:
    pool = PagePool(2, 16)
    (page,) = pool.allocate(1)
    pool.retain([page])
    pool.check_integrity([[page], [page]])
    pool.release([page])
    assert pool.num_free == 1
    pool.release([page])
    assert pool.num_free == 2


def test_a_free_page_can_be_neither_shared_nor_released() -> None:
    pool = PagePool(2, 16)
    with pytest.raises(AssertionError, match="page 1 is free and cannot be shared"):
        pool.retain([1])
    with pytest.raises(AssertionError, match="page 1 is released more often than it was taken"):
        pool.release([1])


def test_all_pages_at_once_are_consecutive() -> None:
    assert PagePool(97, 16).allocate(97) == list(range(97))


def test_a_growing_sequence_is_given_the_page_behind_its_last() -> None:
    pool = PagePool(64, 16)
    first, second = pool.allocate(2), pool.allocate(2)
    for _ in range(10):
        first += pool.allocate(1, after=first[-1])
        second += pool.allocate(1, after=second[-1])
    assert first == list(range(first[0], first[0] + 12))
    assert second == list(range(second[0], second[0] + 12))


def test_a_sequence_goes_on_elsewhere_when_the_page_behind_its_last_is_taken() -> None:
    pool = PagePool(8, 16)
    first = pool.allocate(4)
    pool.allocate(1, after=first[-1])
    more = pool.allocate(1, after=first[-1])
    assert more[0] > first[-1] + 1
    pool.check_integrity()


def test_a_request_is_met_from_several_runs_when_none_is_long_enough() -> None:
    pool = PagePool(9, 16)
    pages = pool.allocate(9)
    pool.release([pages[1], pages[2], pages[5], pages[7]])
    assert sorted(pool.allocate(4)) == [1, 2, 5, 7]
    pool.check_integrity()


def test_pages_released_in_any_order_join_into_one_run() -> None:
    pool = PagePool(7, 16)
    pool.allocate(7)
    for page in (3, 5, 4, 0, 6, 1, 2):
        pool.release([page])
        pool.check_integrity()
    assert pool.allocate(7) == list(range(7))


def test_the_second_sequence_starts_where_both_have_room() -> None:
    pool = PagePool(100, 16)
    (first,) = pool.allocate(1)
    (second,) = pool.allocate(1)
    assert first == 0
    assert 40 <= second <= 60


def test_a_run_is_not_cut_where_the_request_would_not_fit_behind_the_cut() -> None:
    pool = PagePool(10, 16)
    pool.allocate(1)
    pages = pool.allocate(8)
    assert pages == list(range(pages[0], pages[0] + 8))


def test_check_integrity_finds_a_reference_without_a_holder() -> None:
    pool = PagePool(3, 16)
    pages = pool.allocate(2)
    with pytest.raises(AssertionError, match="a reference has no holder"):
        pool.check_integrity([pages[:1]])
