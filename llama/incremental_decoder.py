"""Text from token ids as they come, never half a character and no space lost or doubled.

Pure: a tokenizer is only a function from ids to text here. A token costs the same at the start of an answer as at its
end, because only a window of the last few tokens is decoded again. Stops are text_stream.py's matter.

Three things make this harder than decoding one token after the other. A character may be spread over several tokens:
until it is whole, it decodes to U+FFFD. A SentencePiece tokenizer strips the first space of what it is given. And its
byte tokens (``<0xE2>``) decode as a run: one wrong byte turns every byte of the run, the ones before it too, into
U+FFFD, so nothing of a run is certain before it ends.
"""

import codecs
from collections.abc import Callable, Mapping, Sequence

Decode = Callable[[Sequence[int]], str]

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_MAX_WINDOW = 8  # tokens: a character has 4 bytes, hence 4 tokens at most; twice that, so that trimming is rare
_MAX_RUN = 32  # byte tokens held back: 8 emoji or 10 characters of CJK; a run that is wrong shows it much earlier


class _ByteRun:
    """The byte tokens since the last other token: are they text so far?

    ``decided`` becomes true when what each further byte adds no longer depends on the bytes after it: the run is
    broken, or it was so long that its whole characters have been shown, and then only the rest may be broken.
    """

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._length = 0
        self.broken = False
        self.decided = False

    @property
    def num_incomplete(self) -> int:
        """Bytes at the end that begin a character: 0 to 3."""
        return len(self._utf8.getstate()[0])

    def feed(self, byte: int) -> str:
        """Take one byte; returns its text if the run was decided before, else the empty string."""
        if self.broken:
            return _UNKNOWN
        if self.decided:
            return self._utf8.decode(bytes((byte,)))
        self._length += 1
        try:
            self._utf8.decode(bytes((byte,)))
        except UnicodeDecodeError:
            self.broken = self.decided = True
            return ""
        if self._length == _MAX_RUN:
            state = self._utf8.getstate()
            self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
            self._utf8.setstate(state)
            self.decided = True
        return ""

    def rest(self) -> str:
        """Text of the bytes that a decided run still holds, were it to end here."""
        return _UNKNOWN if self.decided and not self.broken and self.num_incomplete else ""


class IncrementalDecoder:
    """Decodes token by token; what ``push`` and ``finish`` return, joined, is ``decode`` of all the tokens.

    The one exception: a run of byte tokens that goes wrong after 32 correct bytes. Its first characters were shown
    by then and stay as they were.

    Args:
        decode: ids to text, in linear time; special tokens may be skipped.
        byte_tokens: id to byte value of the tokens that decode as runs, as ``Tokenizer.byte_tokens`` lists them.
    """

    def __init__(self, decode: Decode, byte_tokens: Mapping[int, int]) -> None:
        self._decode = decode
        self._byte_tokens = byte_tokens
        self._window: list[int] = []  # the last tokens, without those that never have text
        self._text = ""  # of the window
        self._shown = 0  # characters of the window's text that push has returned
        self._run: _ByteRun | None = None

    def push(self, token_id: int) -> str:
        """Take the next token; returns the text that has become certain, often of this token, sometimes none."""
        byte = self._byte_tokens.get(token_id)
        if byte is not None:
            return self._push_byte(token_id, byte)
        text = self._decode([*self._window, token_id])
        if text == self._text and not self._decode([token_id, token_id]):
            return ""  # a skipped special token; twice, because a lone SentencePiece space decodes to nothing as well
        piece = self._run.rest() if self._run is not None else ""
        self._run = None
        self._window.append(token_id)
        self._text = text
        piece += self._take(len(text.rstrip(_UNKNOWN)))
        if self._shown == len(text):
            self._restart(token_id)
        elif len(self._window) > _MAX_WINDOW:
            piece += self._take(len(text) - 1)
            self._trim()
        return piece

    def peek(self) -> str:
        """Text that is whole but held back, as the next byte token could still break its run."""
        run = self._run
        if run is None or run.decided or run.num_incomplete:
            return ""
        return self._text[self._shown :]

    def rest(self) -> str:
        """What ``finish`` would return."""
        return self._text[self._shown :] + (self._run.rest() if self._run is not None else "")

    def finish(self) -> str:
        """The text still held back; U+FFFD stands for a character that the tokens did not complete."""
        rest = self.rest()
        self._window, self._text, self._shown, self._run = [], "", 0, None
        return rest

    def _push_byte(self, token_id: int, byte: int) -> str:
        run = self._run = self._run or _ByteRun()
        if run.decided:
            self._restart(token_id)
            return run.feed(byte)
        run.feed(byte)
        self._window.append(token_id)
        self._text = self._decode(self._window)
        if run.broken:
            return self._take(len(self._text))
        if run.decided:
            whole = len(self._window) - run.num_incomplete
            piece = self._decode(self._window[:whole])[self._shown :]
            self._shown = len(self._text)
            return piece
        return ""

    def _restart(self, token_id: int) -> None:
        """All is shown: from now on this token stands before the new ones, so that none is taken for the first."""
        self._window = [token_id]
        self._text = self._decode(self._window)
        self._shown = len(self._text)

    def _take(self, end: int) -> str:
        piece = self._text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece

    def _trim(self) -> None:
        """Characters keep failing: only the last may still become one, and the front of the window is no part of it."""
        num_held = len(self._text) - self._shown
        self._window = self._window[-_MAX_WINDOW // 2 :]
        self._text = self._decode(self._window)
        self._shown = len(self._text) - num_held
