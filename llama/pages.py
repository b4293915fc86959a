"""PagePool: who holds which page of KV memory. Ids and counts only; the tensors are kv_cache.py's.

A page holds the keys and values of ``page_size`` consecutive tokens of one sequence, for every layer of the span
(docs/kv-layout.md). Sequences and the prefix cache share pages by reference count.

Ids are handed out in runs: a sequence that grows is given the page behind its last one while that is free, and a new
sequence starts in the middle of the largest free run, so that both it and its neighbour have room. A run of
consecutive ids is a view on a CPU, where a scattered table would have to be gathered in every layer.
"""

from collections.abc import Iterable, Sequence

from ..errors import OutOfPages


class PagePool:
    """Reference-counted pages ``0 .. num_pages``.

    Attributes:
        num_pages: how many there are.
        page_size: tokens in a page.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        assert num_pages > 0 and page_size > 0
        self.num_pages = num_pages
        self.page_size = page_size
        self._references = [0] * num_pages
        self._runs = {0: num_pages}  # free runs: first page -> length; adjacent runs are always merged
        self._run_ends = {num_pages: 0}  # the same runs by their end (exclusive) -> first page
        self._num_free = num_pages

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return self._num_free

    def references(self, page: int) -> int:
        """How many holders ``page`` has; 0 when it is free."""
        return self._references[page]

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """Take ``count`` free pages, each with one reference.

        Args:
            count: how many.
            after: the caller's last page; the pages behind it are taken first when they are free.

        Raises:
            OutOfPages: fewer than ``count`` are free; nothing was taken.
        """
        if count > self._num_free:
            raise OutOfPages(f"{count} KV pages are needed, {self._num_free} of {self.num_pages} are free")
        pages: list[int] = []
        behind = None if after is None else after + 1
        while len(pages) < count:
            wanted = count - len(pages)
            start = behind if behind in self._runs else self._place_run(wanted)
            pages.extend(self._take(start, wanted))
            behind = pages[-1] + 1
        return pages

    def retain(self, pages: Iterable[int]) -> None:
        """Add one reference to each page; all must be held already."""
        for page in pages:
            assert self._references[page] > 0, f"page {page} is free and cannot be shared"
            self._references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Drop one reference of each page; a page without references is free again."""
        for page in pages:
            assert self._references[page] > 0, f"page {page} is released more often than it was taken"
            self._references[page] -= 1
            if self._references[page] == 0:
                self._num_free += 1
                self._insert_run(page)

    def check_integrity(self, holders: Sequence[Iterable[int]] | None = None) -> None:
        """Assert every invariant; with ``holders``, also that each reference belongs to one of them."""
        free = [page for start, length in self._runs.items() for page in range(start, start + length)]
        assert sorted(free) == [page for page, count in enumerate(self._references) if count == 0]
        assert self._run_ends == {start + length: start for start, length in self._runs.items()}
        assert not any(end in self._runs for end in self._run_ends), "two adjacent free runs were not merged"
        assert self._num_free == len(free) and len(self._references) == self.num_pages
        if holders is not None:
            counted = [0] * self.num_pages
            for pages in holders:
                for page in pages:
                    counted[page] += 1
            assert counted == self._references, "a reference has no holder, or a holder no reference"

    def _place_run(self, wanted: int) -> int:
        """Choose where a run of ``wanted`` pages starts: mid of the largest free run, or its front if that is 0."""
        start = max(self._runs, key=lambda run: (self._runs[run], -run))
        length = self._runs[start]
        middle = start + min(length // 2, max(length - wanted, 0))
        if start == 0 or middle == start:
            return start
        self._runs[start] = middle - start  # cut in two; allocate takes from the second before anyone looks again
        self._runs[middle] = start + length - middle
        self._run_ends[middle] = start
        self._run_ends[start + length] = middle
        return middle

    def _take(self, start: int, wanted: int) -> range:
        """Take up to ``wanted`` pages from the front of the free run at ``start``."""
        length = self._runs.pop(start)
        end = start + length
        taken = min(wanted, length)
        if taken < length:
            self._runs[start + taken] = length - taken
            self._run_ends[end] = start + taken
        else:
            del self._run_ends[end]
        for page in range(start, start + taken):
            self._references[page] = 1
        self._num_free -= taken
        return range(start, start + taken)

    def _insert_run(self, page: int) -> None:
        """Add a free page and merge it with the free runs on both sides."""
        start, end = page, page + 1
        if end in self._runs:
            end += self._runs.pop(end)
            del self._run_ends[end]
        if start in self._run_ends:
            start = self._run_ends.pop(start)
        self._runs[start] = end - start
        self._run_ends[end] = start
