"""The text of an answer up to its first stop: no part of a stop is ever shown.

``TextStream`` is what an engine puts between a sequence's tokens and its reader. Pure, as incremental_decoder.py is,
which turns the tokens into text. A stop may straddle tokens, and a token may hold the end of a stop and more; so the
text is matched character by character, and what may turn out to begin a stop waits.
"""

from collections import deque
from collections.abc import Mapping, Sequence

from ..errors import RequestError
from .incremental_decoder import Decode, IncrementalDecoder


class _Matcher:
    """Finds one pattern in a stream of items, as Knuth, Morris and Pratt do.

    ``length`` is that of the longest end of the stream which begins the pattern.
    """

    def __init__(self, pattern: Sequence[str | int]) -> None:
        self.pattern = pattern
        self.length = 0
        self._shorter = [0]  # [n - 1]: the next shorter beginning of the pattern that ends its first n items
        for item in pattern[1:]:
            self._shorter.append(self._next(self._shorter[-1], item))

    def _next(self, length: int, item: str | int) -> int:
        while length and (length == len(self.pattern) or self.pattern[length] != item):
            length = self._shorter[length - 1]
        return length + (self.pattern[length] == item)

    def advance(self, items: Sequence[str | int]) -> int | None:
        """Take items; returns how many of them were taken when the pattern was first complete, or None if never."""
        found = None
        for count, item in enumerate(items, start=1):
            self.length = self._next(self.length, item)
            if found is None and self.length == len(self.pattern):
                found = count
        return found

    def would_complete(self, items: Sequence[str | int]) -> int | None:
        """As ``advance``, without taking them."""
        length = self.length
        found = self.advance(items)
        self.length = length
        return found


class TextStream:
    """The text of an answer up to its first stop.

    The answer stops at the first token with which its text contains a stop text, or its tokens end in a stop sequence;
    the text before the stop is shown, the rest never. Where several stops match at that token, the one that begins
    first counts. Text and tokens that may turn out to begin a stop are held back until it is clear that they do not.

    Args:
        decode: ids to text; special tokens may be skipped, and then only ``stop_ids`` can name them.
        stop: stop texts.
        stop_ids: stop sequences of token ids.
        byte_tokens: as ``Tokenizer.byte_tokens`` lists them.

    Raises:
        RequestError: a stop is empty.
    """

    def __init__(
        self,
        decode: Decode,
        stop: Sequence[str] = (),
        stop_ids: Sequence[Sequence[int]] = (),
        *,
        byte_tokens: Mapping[int, int],
    ) -> None:
        if not all(stop):
            raise RequestError("a stop text is empty; give one character or more")
        if not all(stop_ids):
            raise RequestError("a stop sequence has no token ids; give one id or more")
        self.stopped = False
        self._decoder = IncrementalDecoder(decode, byte_tokens)
        self._texts = [_Matcher(text) for text in stop]
        self._sequences = [_Matcher(tuple(ids)) for ids in stop_ids]
        self._tail = ""  # text that may begin a stop text
        self._ready = ""  # text that no stop text can reach, held back because its tokens may begin a stop sequence
        self._marks: deque[tuple[int, str]] = deque()  # for each such token: the ready text before it, and what else

    def push(self, token_id: int) -> str:
        """Take the next token; returns the text that is now safe to show. Tokens after the stop are ignored."""
        if self.stopped:
            return ""
        if self._sequences:
            self._marks.append((len(self._ready), self._tail + self._decoder.rest()))
        text_stopped = self._screen(self._decoder.push(token_id), self._decoder.peek())
        matched = [len(m.pattern) for m in self._sequences if m.advance((token_id,)) is not None]
        if text_stopped or matched:
            return self._stop(text_stopped, max(matched, default=0))
        num_held = max((matcher.length for matcher in self._sequences), default=0)
        while len(self._marks) > num_held:
            self._marks.popleft()
        end = self._marks[0][0] if self._marks else len(self._ready)
        piece, self._ready = self._ready[:end], self._ready[end:]
        if end:
            self._marks = deque((length - end, rest) for length, rest in self._marks)
        return piece

    def finish(self) -> str:
        """The text still held back, when the answer ends without a stop: at its length limit, or aborted."""
        if self.stopped:
            return ""
        self.stopped = self._screen(self._decoder.finish(), "")
        piece = self._ready if self.stopped else self._ready + self._tail
        self._ready = self._tail = ""
        self._marks.clear()
        return piece

    def _screen(self, text: str, held: str) -> bool:
        """Move what no stop text can reach from the tail and ``text`` to the ready text; True: a stop text is there.

        ``held`` is text that the decoder holds back: a stop text that it completes counts too.
        """
        start = self._earliest(text)
        if start is None and held:
            start = self._earliest(held, ahead=len(text))
        whole = self._tail + text + held
        if start is not None:
            self._ready += whole[:start]
            return True
        whole = self._tail + text
        end = len(whole) - max((matcher.length for matcher in self._texts), default=0)
        self._ready += whole[:end]
        self._tail = whole[end:]
        return False

    def _earliest(self, text: str, ahead: int | None = None) -> int | None:
        """Where in the tail, ``ahead`` more characters and ``text`` the first stop text begins, or None.

        The matchers take the text; with ``ahead`` they only try it.
        """
        starts = []
        for matcher in self._texts:
            count = matcher.advance(text) if ahead is None else matcher.would_complete(text)
            if count is not None:
                starts.append(len(self._tail) + (ahead or 0) + count - len(matcher.pattern))
        return min(starts, default=None)

    def _stop(self, text_stopped: bool, num_tokens: int) -> str:
        """End at a stop text, a stop sequence of ``num_tokens`` or, where both match, at the one that begins first."""
        self.stopped = True
        pieces = []
        if num_tokens:
            length, rest = self._marks[-num_tokens]
            pieces.append(self._ready[:length] + rest)
        if text_stopped:
            pieces.append(self._ready)
        return min(pieces, key=len)  # as long as the other, the first has half a character where the sequence begins
