"""PrefixCache: finds the pages of a prompt's beginning that an earlier sequence has already filled.

A tree with one node a page. The path from the root spells tokens, so a page is found by all tokens up to its end, not
only by its own. Lookup is exact to the token: a prompt may share the first part of a page and go on differently in its
own copy. What the cache holds is one reference to each page; when pages run out the least recently used leaves that
nobody else holds are given back. Not here: which sequence uses what (sequences.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .pages import PagePool

TokenIds = tuple[int, ...]


@dataclass(slots=True, eq=False)
class Node:
    """One cached page: the tokens it holds, fewer than a page only in a leaf."""

    tokens: TokenIds
    page: int
    parent: "Node | None"
    last_used: int = 0
    children: dict[TokenIds, "Node"] = field(default_factory=dict)


class PrefixCache:
    """The tree of cached pages of one PagePool."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._root = Node((), -1, None)
        self._by_page: dict[int, Node] = {}
        self._uses = 0

    @property
    def root(self) -> Node:
        """Where every prefix begins."""
        return self._root

    @property
    def num_evictable(self) -> int:
        """Pages that nobody else holds. What follows such a page is not held either, so all of them can be evicted."""
        return sum(self._pool.references(page) == 1 for page in self._by_page)

    def __contains__(self, page: int) -> bool:
        return page in self._by_page

    def match(self, token_ids: Sequence[int]) -> tuple[list[Node], int]:
        """The longest cached prefix of ``token_ids``: its nodes and its length in tokens.

        The last node may be used in part: then the length ends inside its page. No reference is taken.
        """
        self._uses += 1
        size = self._pool.page_size
        node, nodes, length = self._root, [], 0
        while length < len(token_ids):
            wanted = tuple(token_ids[length : length + size])
            child = node.children.get(wanted)
            shared = len(wanted)
            if child is None:
                child, shared = max(
                    ((candidate, _common_prefix(candidate.tokens, wanted)) for candidate in node.children.values()),
                    key=lambda pair: pair[1],
                    default=(None, 0),
                )
            if child is None or shared == 0:
                break
            child.last_used = self._uses
            nodes.append(child)
            length += shared
            if shared < size:
                break
            node = child
        return nodes, length

    def insert(self, parent: Node, token_ids: Sequence[int], page: int) -> Node | None:
        """Cache ``page``, which holds ``token_ids`` behind the path to ``parent``; returns its node.

        A page that is known with fewer tokens is extended. Returns None where the page cannot be found behind
        ``parent``: because that was evicted, or because another page already stands for the same tokens.
        """
        if parent.parent is None and parent is not self._root:
            return None
        self._uses += 1
        tokens = tuple(token_ids)
        node = self._by_page.get(page)
        if node is None:
            if tokens in parent.children:
                return None
            node = Node(tokens, page, parent)
            self._by_page[page] = node
            self._pool.retain([page])
        elif len(node.tokens) < len(tokens):
            assert node.parent is parent and tokens[: len(node.tokens)] == node.tokens
            if tokens in parent.children:
                return None
            del parent.children[node.tokens]
            node.tokens = tokens
        parent.children[node.tokens] = node
        node.last_used = self._uses
        return node

    def forget(self, page: int) -> None:
        """Give back ``page`` and every page behind it on the tree; nothing if it is not cached."""
        if page not in self._by_page:
            return
        stack = [self._by_page[page]]
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            self._remove(node)

    def evict(self, num_pages: int) -> int:
        """Give back up to ``num_pages`` pages that nobody else holds, least recently used first; returns how many."""
        evicted = 0
        while evicted < num_pages:
            leaves = [
                node for node in self._by_page.values() if not node.children and self._pool.references(node.page) == 1
            ]
            if not leaves:
                break
            leaves.sort(key=lambda node: node.last_used)
            for node in leaves[: num_pages - evicted]:
                self._remove(node)
                evicted += 1
        return evicted

    def pages(self) -> list[int]:
        """Every page the cache holds a reference to."""
        return list(self._by_page)

    def check_integrity(self) -> None:
        """Assert every invariant of the tree."""
        size = self._pool.page_size
        assert {node.page: node for node in self._nodes()} == self._by_page
        for node in self._nodes():
            assert node.parent is not None and node.parent.children[node.tokens] is node
            assert 0 < len(node.tokens) <= size
            assert len(node.tokens) == size or not node.children, "a page that is not full has a successor"
            assert self._pool.references(node.page) > 0
            assert self._pool.references(node.page) > 1 or all(
                self._pool.references(child.page) == 1 for child in node.children.values()
            ), "a page is in use, and the one before it is not"

    def _remove(self, node: Node) -> None:
        assert node.parent is not None
        del node.parent.children[node.tokens]
        node.parent = None
        del self._by_page[node.page]
        self._pool.release([node.page])

    def _nodes(self) -> Iterator[Node]:
        stack = list(self._root.children.values())
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            yield node


def _common_prefix(left: TokenIds, right: TokenIds) -> int:
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))
