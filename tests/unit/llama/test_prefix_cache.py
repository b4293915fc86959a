"""PrefixCache: what is found, what is evicted first, and what may not be."""

import pytest

from hopformer.llama.pages import PagePool
from hopformer.llama.prefix_cache import Node, PrefixCache

PAGE_SIZE = 4


@pytest.fixture
def pool() -> PagePool:
    return PagePool(12, PAGE_SIZE)


@pytest.fixture
def cache(pool: PagePool) -> PrefixCache:
    return PrefixCache(pool)


def remember(cache: PrefixCache, pool: PagePool, *pages: list[int]) -> list[Node]:
    """Cache a path of pages with these tokens, that nobody else holds; returns its nodes."""
    nodes = [cache.root]
    for tokens in pages:
        (page,) = pool.allocate(1)
        node = cache.insert(nodes[-1], tokens, page)
        assert node is not None
        nodes.append(node)
        pool.release([page])
    cache.check_integrity()
    return nodes[1:]


def found(cache: PrefixCache, tokens: list[int]) -> tuple[list[int], int]:
    nodes, length = cache.match(tokens)
    return [node.page for node in nodes], length


def test_an_empty_cache_finds_nothing(cache: PrefixCache) -> None:
    assert found(cache, [1, 2, 3]) == ([], 0)
    assert found(cache, []) == ([], 0)


def test_a_cached_page_keeps_a_reference(cache: PrefixCache, pool: PagePool) -> None:
    (node,) = remember(cache, pool, [1, 2, 3, 4])
    assert pool.references(node.page) == 1
    assert node.page in cache and cache.pages() == [node.page]


@pytest.mark.parametrize(
    ("tokens", "length", "num_pages"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], 8, 2),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], 8, 2),
        ([1, 2, 3, 4, 5, 6, 0, 8], 6, 2),
        ([1, 2, 3, 4, 5], 5, 2),
        ([1, 2, 3, 4, 0], 4, 1),
        ([1, 2, 3, 4], 4, 1),
        ([1, 0], 1, 1),
        ([5, 6, 7, 8], 0, 0),
    ],
)
def test_a_match_is_exact_to_the_token(
    cache: PrefixCache, pool: PagePool, tokens: list[int], length: int, num_pages: int
) -> None:
    first, second = remember(cache, pool, [1, 2, 3, 4], [5, 6, 7, 8])
    assert found(cache, tokens) == ([first.page, second.page][:num_pages], length)


def test_a_page_that_is_not_full_is_found_as_far_as_it_goes(cache: PrefixCache, pool: PagePool) -> None:
    first, second = remember(cache, pool, [1, 2, 3, 4], [5, 6])
    assert found(cache, [1, 2, 3, 4, 5, 6, 7, 8, 9]) == ([first.page, second.page], 6)
    assert found(cache, [1, 2, 3, 4, 5, 6]) == ([first.page, second.page], 6)
    assert found(cache, [1, 2, 3, 4, 5, 0]) == ([first.page, second.page], 5)


def test_of_several_continuations_the_longest_is_found(cache: PrefixCache, pool: PagePool) -> None:
    (first,) = remember(cache, pool, [1, 2, 3, 4])
    pages = {}
    for tokens in ([5, 0, 0, 0], [5, 6, 7, 0], [5, 6, 0]):
        (page,) = pool.allocate(1)
        cache.insert(first, tokens, page)
        pages[tuple(tokens)] = page
    assert found(cache, [1, 2, 3, 4, 5, 6, 7, 8]) == ([first.page, pages[5, 6, 7, 0]], 7)


def test_a_page_is_found_by_all_tokens_before_it_not_by_its_own(cache: PrefixCache, pool: PagePool) -> None:
    remember(cache, pool, [1, 2, 3, 4], [5, 6, 7, 8])
    second = remember(cache, pool, [0, 2, 3, 4], [5, 6, 7, 8])
    assert found(cache, [0, 2, 3, 4, 5, 6, 7, 8]) == ([node.page for node in second], 8)


def test_a_second_page_for_the_same_tokens_is_not_cached(cache: PrefixCache, pool: PagePool) -> None:
    (first,) = remember(cache, pool, [1, 2, 3, 4])
    (page,) = pool.allocate(1)
    assert cache.insert(cache.root, [1, 2, 3, 4], page) is None
    assert page not in cache and found(cache, [1, 2, 3, 4]) == ([first.page], 4)


def test_a_page_that_fills_up_is_extended_in_place(cache: PrefixCache, pool: PagePool) -> None:
    (node,) = remember(cache, pool, [1, 2])
    assert cache.insert(cache.root, [1, 2, 3, 4], node.page) is node
    assert found(cache, [1, 2, 3, 4, 5]) == ([node.page], 4)
    assert pool.references(node.page) == 1
    cache.check_integrity()


def test_a_page_is_not_extended_to_tokens_that_another_page_stands_for(cache: PrefixCache, pool: PagePool) -> None:
    (short,) = remember(cache, pool, [1, 2])
    (full,) = remember(cache, pool, [1, 2, 3, 4])
    assert cache.insert(cache.root, [1, 2, 3, 4], short.page) is None
    cache.check_integrity()
    assert found(cache, [1, 2, 3, 4]) == ([full.page], 4) and short.tokens == (1, 2)


def test_a_page_known_with_more_tokens_is_not_shortened(cache: PrefixCache, pool: PagePool) -> None:
    (node,) = remember(cache, pool, [1, 2, 3])
    assert cache.insert(cache.root, [1, 2], node.page) is node
    assert found(cache, [1, 2, 3, 4]) == ([node.page], 3)


def test_nothing_is_cached_behind_a_page_that_was_evicted(cache: PrefixCache, pool: PagePool) -> None:
    (node,) = remember(cache, pool, [1, 2, 3, 4])
    assert cache.evict(1) == 1
    (page,) = pool.allocate(1)
    assert cache.insert(node, [5, 6, 7, 8], page) is None
    assert cache.pages() == []


def test_eviction_begins_with_what_was_used_longest_ago(cache: PrefixCache, pool: PagePool) -> None:
    old, new = (remember(cache, pool, [token] * PAGE_SIZE)[0] for token in (1, 2))
    cache.match([1, 1, 1, 1])
    assert cache.evict(1) == 1
    assert old.page in cache and new.page not in cache


def test_eviction_takes_leaves_before_what_they_follow(cache: PrefixCache, pool: PagePool) -> None:
    first, second, third = remember(cache, pool, [1] * 4, [2] * 4, [3] * 4)
    assert cache.evict(2) == 2
    assert cache.pages() == [first.page]
    assert found(cache, [1, 1, 1, 1, 2, 2, 2, 2]) == ([first.page], 4)
    assert second.parent is None and third.parent is None


def test_pages_that_somebody_holds_are_not_evicted(cache: PrefixCache, pool: PagePool) -> None:
    first, second, third = remember(cache, pool, [1] * 4, [2] * 4, [3] * 4)
    pool.retain([first.page, second.page])
    assert cache.num_evictable == 1
    assert cache.evict(3) == 1
    assert sorted(cache.pages()) == sorted([first.page, second.page]) and third.page not in cache


def test_every_evictable_page_can_be_evicted(cache: PrefixCache, pool: PagePool) -> None:
    remember(cache, pool, [1] * 4, [2] * 4, [3] * 4)
    remember(cache, pool, [9] * 4, [8] * 2)
    assert cache.num_evictable == 5
    assert cache.evict(12) == 5
    assert pool.num_free == pool.num_pages


def test_forgetting_a_page_forgets_all_that_follows_it(cache: PrefixCache, pool: PagePool) -> None:
    first, second, _ = remember(cache, pool, [1] * 4, [2] * 4, [3] * 4)
    cache.forget(second.page)
    assert cache.pages() == [first.page]
    assert pool.num_free == pool.num_pages - 1
    cache.forget(second.page)  # nothing is left to forget
    cache.check_integrity()


def test_check_integrity_finds_a_successor_of_a_page_that_is_not_full(cache: PrefixCache, pool: PagePool) -> None:
    (node,) = remember(cache, pool, [1, 2])
    (page,) = pool.allocate(1)
    cache.insert(node, [3], page)
    with pytest.raises(AssertionError, match="a page that is not full has a successor"):
        cache.check_integrity()
