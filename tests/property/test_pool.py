"""A state machine over SequenceTable, PagePool and PrefixCache, with a model of what lies in every slot of memory.

The memory model does what a runner does: it carries page copies out and writes each new token into its slot, not as a
bare token but as the whole prefix that ends in it, because keys and values depend on everything before them. So wrong
sharing, a forgotten copy, a slot overwritten under somebody who reads it, or a wrong hit of the prefix cache shows as a
sequence that reads back something other than its own prefixes.
"""

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hopformer.errors import OutOfPages
from hopformer.llama.pages import PagePool
from hopformer.llama.prefix_cache import Node, PrefixCache
from hopformer.llama.sequences import SequenceTable

MAX_SEQUENCES = 5
Prefix = tuple[int, ...]
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=5)
STORIES = [[0, 1, 1, 0, 2] * 8, [0, 1, 1, 0, 2, 0, 1, 0] * 5]  # what most sequences tell, so that prefixes collide
PROMPTS = st.builds(
    lambda story, length, tail: STORIES[story][:length] + tail,
    st.integers(0, 1),
    st.integers(0, 20),
    st.one_of(st.just([0]), TOKENS),
)
WHICH = st.integers(0, MAX_SEQUENCES - 1)


@dataclass
class Live:
    """What the model knows of an open sequence."""

    tokens: list[int]  # written
    claimed: int  # how many tokens there is room for
    is_known: bool  # whether the table was told the tokens
    planned: list[int] = field(default_factory=list)  # the rest of its prompt

    def prefixes(self) -> list[Prefix]:
        return [tuple(self.tokens[: end + 1]) for end in range(len(self.tokens))]


class PagedMemory:
    """Pages of slots, each of which holds the prefix that was written to it."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.pages: list[list[Prefix | None]] = [[None] * page_size for _ in range(num_pages)]
        self.pending: list[tuple[int, int]] = []  # copies that the next write must carry out first

    def carry_out_copies(self) -> None:
        self.pages = self.after_copies()
        self.pending = []

    def write(self, slot: int, prefix: Prefix) -> None:
        self.pages[slot // self.page_size][slot % self.page_size] = prefix

    def after_copies(self) -> list[list[Prefix | None]]:
        """The pages as they will be once the pending copies are carried out."""
        pages = [list(page) for page in self.pages]
        for source, target in self.pending:
            pages[target] = list(pages[source])
        return pages


class PoolMachine(RuleBasedStateMachine):
    """Any order of open, reserve, step, rollback, fork and release."""

    @initialize(
        page_size=st.sampled_from([1, 2, 4, 4]),
        num_pages=st.integers(2, 16),
        has_cache=st.sampled_from([True, True, True, False]),
    )
    def start(self, page_size: int, num_pages: int, has_cache: bool) -> None:
        self.pool = PagePool(num_pages, page_size)
        self.cache = PrefixCache(self.pool) if has_cache else None
        self.table = SequenceTable(self.pool, self.cache)
        self.memory = PagedMemory(num_pages, page_size)
        self.live: dict[int, Live] = {}
        self.next_id = 0

    @rule(prompt=PROMPTS, is_known=st.sampled_from([True, True, True, False]), num_answered=st.integers(-20, 4))
    def chat(self, prompt: list[int], is_known: bool, num_answered: int) -> None:
        """Open a sequence and write its prompt, or a part of it, or its prompt and an answer."""
        self.open(prompt, is_known)
        sequence_id = max(self.live)
        self.write([(sequence_id, max(len(prompt) + num_answered, 0))], STORIES[0], whole=True)

    @rule(prompt=PROMPTS, is_known=st.sampled_from([True, True, True, False]))
    def open(self, prompt: list[int], is_known: bool) -> None:
        self.make_way()
        num_cached = self.table.open(self.next_id, prompt if is_known else None)
        assert num_cached == (self.longest_cached(prompt[:-1]) if is_known else 0)
        self.follow(Live(prompt[:num_cached], num_cached, is_known, prompt[num_cached:]))

    @rule(which=WHICH, more=st.integers(1, 9))
    def reserve(self, which: int, more: int) -> None:
        sequence_id, live = self.pick(which)
        self.try_reserve(sequence_id, len(live.tokens) + more)
        self.memory.pending += self.table.take_copies()

    @rule(
        items=st.lists(st.tuples(WHICH, st.integers(1, 9)), min_size=1, max_size=4),
        answer=st.one_of(st.just(STORIES[0]), TOKENS),
        whole=st.booleans(),
    )
    def step(self, items: list[tuple[int, int]], answer: list[int], whole: bool) -> None:
        picked = [(*self.pick(which), more) for which, more in items]
        self.write([(sequence_id, len(live.tokens) + more) for sequence_id, live, more in picked], answer, whole)

    def write(self, wanted: list[tuple[int, int]], answer: list[int], whole: bool) -> None:
        """Reserve for some, at the cost of the last; copy pages; all with room write it, or half of it; record it."""
        for sequence_id, num_tokens in wanted:
            while sequence_id in self.live and not self.try_reserve(sequence_id, num_tokens):
                self.drop(max(self.live))
        self.memory.pending += self.table.take_copies()
        self.memory.carry_out_copies()
        written: dict[int, list[int]] = {}
        for sequence_id, live in self.live.items():
            room = live.claimed - len(live.tokens)
            turn = sequence_id % len(answer)  # forks go on differently, most of the time
            planned = live.planned + (answer[turn:] + answer[:turn]) * room
            new = planned[: room if whole else -(-room // 2)]
            slots = self.table.slots(sequence_id, len(live.tokens), len(new)).tolist()
            for count, slot in enumerate(slots, start=1):
                self.memory.write(slot, (*live.tokens, *new[:count]))
            written[sequence_id] = new
        for sequence_id, new in written.items():
            live = self.live[sequence_id]
            self.table.append(sequence_id, new if live.is_known else len(new))
            live.tokens += new
            del live.planned[: len(new)]

    @rule(which=WHICH, dropped=st.integers(0, 9))
    def rollback(self, which: int, dropped: int) -> None:
        sequence_id, live = self.pick(which)
        length = max(len(live.tokens) - dropped, 0)
        self.table.rollback(sequence_id, length)
        del live.tokens[length:]
        live.claimed = length

    @rule(which=WHICH)
    def fork(self, which: int) -> None:
        self.make_way()
        source, live = self.pick(which)
        self.table.fork(source, self.next_id)
        self.follow(Live(list(live.tokens), len(live.tokens), live.is_known, list(live.planned)))

    @rule(which=WHICH)
    def release(self, which: int) -> None:
        sequence_id, _ = self.pick(which)
        self.drop(sequence_id)

    @invariant()
    def the_table_is_intact(self) -> None:
        self.table.check_integrity()
        assert sorted(self.table) == sorted(self.live)
        for sequence_id, live in self.live.items():
            assert self.table.length(sequence_id) == len(live.tokens)
            assert not live.is_known or self.table.token_ids(sequence_id) == live.tokens

    @invariant()
    def every_sequence_reads_back_its_own_prefixes(self) -> None:
        pages, size = self.memory.after_copies(), self.pool.page_size
        for sequence_id, live in self.live.items():
            row = self.table.block_row(sequence_id).tolist()
            read = [pages[row[position // size]][position % size] for position in range(len(live.tokens))]
            assert read == live.prefixes()

    @invariant()
    def every_cached_page_holds_the_prefixes_it_is_found_by(self) -> None:
        pages = self.memory.after_copies()
        for node, path in self.cached():
            before = len(path) - len(node.tokens)
            prefixes = [path[: before + count] for count in range(1, len(node.tokens) + 1)]
            assert pages[node.page][: len(node.tokens)] == prefixes

    @invariant()
    def no_slot_that_may_be_written_is_anyone_elses(self) -> None:
        size = self.pool.page_size
        taken = {node.page * size + offset for node, _ in self.cached() for offset in range(len(node.tokens))}
        for sequence_id, live in self.live.items():
            taken.update(self.table.slots(sequence_id, 0, len(live.tokens)).tolist())
        for sequence_id, live in self.live.items():
            room = self.table.slots(sequence_id, len(live.tokens), live.claimed - len(live.tokens)).tolist()
            assert taken.isdisjoint(room)
            taken.update(room)

    def teardown(self) -> None:
        if not hasattr(self, "table"):
            return
        survivor, _ = self.pick(0)
        for sequence_id in [one for one in self.live if one != survivor]:
            self.drop(sequence_id)
        self.table.reserve(survivor, self.pool.num_pages * self.pool.page_size)  # a lone sequence may fill the pool
        self.memory.pending += self.table.take_copies()
        self.every_sequence_reads_back_its_own_prefixes()
        self.drop(survivor)
        self.table.check_integrity()
        if self.cache is not None:
            self.cache.evict(self.pool.num_pages)
        self.pool.check_integrity([])
        assert self.pool.num_free == self.pool.num_pages

    def pick(self, which: int) -> tuple[int, Live]:
        """The ``which``-th live sequence, counted round; a new one where there is none."""
        if not self.live:
            self.open([0], is_known=False)
        return list(self.live.items())[which % len(self.live)]

    def try_reserve(self, sequence_id: int, num_tokens: int) -> bool:
        before = self.snapshot()
        try:
            self.table.reserve(sequence_id, num_tokens)
        except OutOfPages:
            assert self.snapshot() == before, "a refused reservation changed something"
            return False
        self.live[sequence_id].claimed = max(self.live[sequence_id].claimed, num_tokens)
        return True

    def make_way(self) -> None:
        """Keep the number of live sequences within its bound."""
        if len(self.live) == MAX_SEQUENCES:
            self.drop(min(self.live))

    def follow(self, live: Live) -> None:
        self.live[self.next_id] = live
        self.next_id += 1

    def drop(self, sequence_id: int) -> None:
        self.table.release(sequence_id)
        del self.live[sequence_id]

    def snapshot(self) -> tuple[object, ...]:
        """All that a refused call must leave alone."""
        rows = {sequence_id: self.table.block_row(sequence_id).tolist() for sequence_id in self.table}
        return rows, sorted(path for _, path in self.cached()), self.pool.num_free

    def cached(self) -> list[tuple[Node, Prefix]]:
        """Every node of the prefix cache with all tokens up to its end."""
        found: list[tuple[Node, Prefix]] = []
        stack: list[tuple[Node, Prefix]] = [] if self.cache is None else [(self.cache.root, ())]
        while stack:
            node, path = stack.pop()
            below = [(child, path + child.tokens) for child in node.children.values()]
            found += below
            stack += below
        return found

    def longest_cached(self, tokens: list[int]) -> int:
        """How much of ``tokens`` any path of the prefix cache begins with."""
        best = 0
        for _, path in self.cached():
            shared = 0
            while shared < min(len(path), len(tokens)) and path[shared] == tokens[shared]:
                shared += 1
            best = max(best, shared)
        return best


TestPool = PoolMachine.TestCase
TestPool.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, derandomize=False, print_blob=True
)
