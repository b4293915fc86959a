"""SequenceTable: the sequences whose keys and values lie in the pages of one pool.

Owner of each sequence's block table, length and tokens. It says which pages a sequence may write, which slots its
tokens go to, and which pages must be copied before a write because somebody else still reads them. Nothing here
touches a tensor: kv_cache.py carries the copies out.

Sharing: a fork, and a prompt whose beginning is cached, hold the same pages. ``_filled[page]`` counts the slots that
anyone has written or claimed by ``reserve``. A sequence appends in place when it is the page's only holder or when
nobody has claimed the slot; otherwise it gets a copy of its own. So a conversation goes on in the page where its last
answer ended, although the prefix cache holds that page too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import OutOfPages
from .pages import PagePool
from .prefix_cache import Node, PrefixCache


@dataclass(slots=True)
class _Sequence:
    """One sequence: ``length`` tokens are written, and the slots up to ``claimed`` are its own to write."""

    pages: list[int]
    length: int
    claimed: int
    token_ids: list[int] | None  # None: the tokens are not known here, as in a span that is fed activations
    node: Node | None  # the prefix cache's node of the last full page; None: no longer followed
    num_cached_pages: int  # full pages that the node's path covers
    row: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))  # pages, as an array


class SequenceTable:
    """All sequences of one runner.

    Args:
        pool: the pages.
        cache: where finished pages are remembered for later prompts; None remembers nothing.
    """

    def __init__(self, pool: PagePool, cache: PrefixCache | None = None) -> None:
        self.pool = pool
        self.cache = cache
        self._sequences: dict[int, _Sequence] = {}
        self._filled = [0] * pool.num_pages
        self._copies: list[tuple[int, int]] = []

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._sequences

    def __iter__(self) -> Iterator[int]:
        return iter(self._sequences)

    def length(self, sequence_id: int) -> int:
        """Tokens of the sequence whose keys and values are written."""
        return self._sequences[sequence_id].length

    def token_ids(self, sequence_id: int) -> list[int]:
        """The written tokens, which must be known here. Not a copy: do not change it."""
        token_ids = self._sequences[sequence_id].token_ids
        assert token_ids is not None, f"sequence {sequence_id} was opened without tokens"
        return token_ids

    def open(self, sequence_id: int, token_ids: Sequence[int] | None = None) -> int:
        """Begin a sequence that will start with ``token_ids``; returns how many of them need not be computed.

        At least one token is always left to compute, since its logits are wanted. Without ``token_ids`` nothing is
        looked up, and nothing remembered either.
        """
        assert sequence_id not in self._sequences, f"sequence {sequence_id} is open"
        nodes: list[Node] = []
        length = 0
        if self.cache is not None and token_ids is not None:
            nodes, length = self.cache.match(token_ids[:-1])
        pages = [node.page for node in nodes]
        self.pool.retain(pages)
        num_full = length // self.pool.page_size
        root = self.cache.root if self.cache is not None and token_ids is not None else None
        sequence = _Sequence(
            pages=pages,
            length=length,
            claimed=length,
            token_ids=None if token_ids is None else list(token_ids[:length]),
            node=nodes[num_full - 1] if num_full else root,
            num_cached_pages=num_full,
        )
        self._sequences[sequence_id] = sequence
        return length

    def reserve(self, sequence_id: int, num_tokens: int) -> None:
        """Make sure that the tokens up to ``num_tokens`` can be written.

        Raises:
            OutOfPages: nothing was changed.
        """
        sequence = self._sequences[sequence_id]
        size = self.pool.page_size
        if num_tokens <= sequence.claimed:
            return
        num_new = max(-(-num_tokens // size) - len(sequence.pages), 0)
        copies = self._must_copy(sequence)
        if num_new + copies > self.pool.num_free:
            copies = self._make_room(sequence, num_new, copies)
        if copies:
            self._copy_page(sequence, sequence.length // size)
        if num_new:
            sequence.pages.extend(self._new_pages(num_new, sequence.pages[-1] if sequence.pages else None))
        for index in range(sequence.length // size, -(-num_tokens // size)):
            page = sequence.pages[index]
            self._filled[page] = max(self._filled[page], min(num_tokens - index * size, size))
        sequence.claimed = num_tokens

    def append(self, sequence_id: int, token_ids: Sequence[int] | int) -> None:
        """Record that tokens were written behind the sequence's end: their ids, or how many where ids are not known."""
        sequence = self._sequences[sequence_id]
        if isinstance(token_ids, int):
            assert sequence.token_ids is None, "the ids of this sequence's tokens are known: pass them"
            sequence.length += token_ids
        else:
            assert sequence.token_ids is not None, "this sequence was opened without tokens: pass a count"
            sequence.token_ids.extend(token_ids)
            sequence.length += len(token_ids)
        assert sequence.length <= sequence.claimed, "tokens were written beyond what was reserved"
        self._remember_full_pages(sequence)

    def rollback(self, sequence_id: int, length: int) -> None:
        """Forget the tokens from ``length`` on, and give back the pages that held nothing else."""
        sequence = self._sequences[sequence_id]
        assert 0 <= length <= sequence.length, f"rollback to {length} of a sequence of {sequence.length}"
        size = self.pool.page_size
        keep = -(-length // size)
        self.pool.release(reversed(sequence.pages[keep:]))
        del sequence.pages[keep:]
        sequence.length = sequence.claimed = length
        if sequence.token_ids is not None:
            del sequence.token_ids[length:]
        while sequence.node is not None and sequence.num_cached_pages > length // size:
            sequence.node = sequence.node.parent
            sequence.num_cached_pages -= 1
        self._unclaim_last_page(sequence)
        sequence.row = sequence.row[:0]

    def fork(self, sequence_id: int, new_id: int) -> None:
        """Open ``new_id`` with the same tokens; pages are shared until one of the two writes."""
        assert new_id not in self._sequences, f"sequence {new_id} is open"
        source = self._sequences[sequence_id]
        pages = source.pages[: -(-source.length // self.pool.page_size)]
        self.pool.retain(pages)
        token_ids = None if source.token_ids is None else list(source.token_ids)
        self._sequences[new_id] = _Sequence(
            pages, source.length, source.length, token_ids, source.node, source.num_cached_pages
        )

    def release(self, sequence_id: int) -> None:
        """Close a sequence. Its pages stay in the prefix cache, where there is one, until others need them."""
        sequence = self._sequences.pop(sequence_id)
        size = self.pool.page_size
        self._unclaim_last_page(sequence)
        full, rest = divmod(sequence.length, size)
        if rest and sequence.token_ids is not None and sequence.node is not None and self.cache is not None:
            self.cache.insert(sequence.node, sequence.token_ids[full * size :], sequence.pages[full])
        self.pool.release(reversed(sequence.pages))

    def slots(self, sequence_id: int, position: int, num_tokens: int) -> npt.NDArray[np.int64]:
        """Where the tokens ``position .. position + num_tokens`` go: page * page_size + offset, int64 [num_tokens]."""
        size = self.pool.page_size
        positions = np.arange(position, position + num_tokens)
        return self.block_row(sequence_id)[positions // size].astype(np.int64) * size + positions % size

    def block_row(self, sequence_id: int) -> npt.NDArray[np.int32]:
        """The sequence's block table as int32 [num_pages of it]. Not a copy: do not change it."""
        sequence = self._sequences[sequence_id]
        if len(sequence.row) != len(sequence.pages):
            sequence.row = np.array(sequence.pages, dtype=np.int32)
        return sequence.row

    def take_copies(self) -> list[tuple[int, int]]:
        """Page copies (source, target) that must be carried out, in this order, before the next write."""
        copies, self._copies = self._copies, []
        return copies

    def check_integrity(self) -> None:
        """Assert every invariant of the table, the pool and the cache."""
        holders = [sequence.pages for sequence in self._sequences.values()]
        self.pool.check_integrity([*holders, self.cache.pages()] if self.cache is not None else holders)
        if self.cache is not None:
            self.cache.check_integrity()
        size = self.pool.page_size
        for sequence in self._sequences.values():
            assert sequence.length <= sequence.claimed <= len(sequence.pages) * size
            assert sequence.token_ids is None or len(sequence.token_ids) == sequence.length
            assert len(set(sequence.pages)) == len(sequence.pages), "a sequence holds a page twice"
            for index in range(-(-sequence.length // size)):
                assert self._filled[sequence.pages[index]] >= min(sequence.length - index * size, size)

    def _must_copy(self, sequence: _Sequence) -> bool:
        """Whether somebody else reads, or will write, the slot that the sequence's next token goes to."""
        index, offset = divmod(sequence.length, self.pool.page_size)
        if sequence.claimed > sequence.length or index >= len(sequence.pages):
            return False
        page = sequence.pages[index]
        return self.pool.references(page) > 1 and offset < self._filled[page]

    def _make_room(self, sequence: _Sequence, num_new: int, copies: bool) -> bool:
        """Evict until ``num_new`` pages and the copy of the last one are free; returns whether that copy is still made.

        Where only the cache shares the last page and there is no room for a copy, the cache gives that page up.

        Raises:
            OutOfPages: not even an empty cache would leave enough; nothing was changed.
        """
        available = self.pool.num_free
        if self.cache is not None:
            available += self.cache.num_evictable
            if copies and num_new + copies > available:
                page = sequence.pages[sequence.length // self.pool.page_size]
                if num_new <= available and page in self.cache and self.pool.references(page) == 2:
                    self.cache.forget(page)
                    copies = False
        needed = num_new + copies
        if needed > available:
            raise OutOfPages(f"{needed} KV pages are needed, {available} can be had")
        if self.cache is not None and needed > self.pool.num_free:
            self.cache.evict(needed - self.pool.num_free)
        return copies

    def _new_pages(self, count: int, after: int | None) -> list[int]:
        pages = self.pool.allocate(count, after=after)
        for page in pages:
            self._filled[page] = 0
        return pages

    def _unclaim_last_page(self, sequence: _Sequence) -> None:
        """Let the slots behind the sequence's end be claimed again, where no one else holds their page."""
        index, rest = divmod(sequence.length, self.pool.page_size)
        if rest and self.pool.references(sequence.pages[index]) == 1:
            self._filled[sequence.pages[index]] = rest

    def _copy_page(self, sequence: _Sequence, index: int) -> None:
        """Give the sequence a copy of its own of its last page."""
        page = sequence.pages[index]
        (copy,) = self._new_pages(1, sequence.pages[index - 1] if index else None)
        self._copies.append((page, copy))
        self.pool.release([page])
        sequence.pages[index] = copy
        sequence.row = sequence.row[:0]

    def _remember_full_pages(self, sequence: _Sequence) -> None:
        """Put the pages that have become full into the prefix cache."""
        if self.cache is None or sequence.token_ids is None:
            return
        size = self.pool.page_size
        while sequence.node is not None and (sequence.num_cached_pages + 1) * size <= sequence.length:
            first = sequence.num_cached_pages * size
            page = sequence.pages[sequence.num_cached_pages]
            sequence.node = self.cache.insert(sequence.node, sequence.token_ids[first : first + size], page)
            sequence.num_cached_pages += 1
