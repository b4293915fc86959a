"""Chat: one conversation, its messages and the token ids that the model has seen of it.

The token ids only grow: the next prompt is the last one, the tokens generated then, and the tokens of what the template
writes from the end of that answer to the beginning of the next. So a prefix cache finds everything but the new turn,
and what the model said stays as it said it, token for token, also where the text could be tokenized otherwise. Where a
template rewrites what was said before (one that moves the system message into the newest turn, or writes the date),
the conversation is rendered and encoded afresh.

The first prompt has the ids of transformers' ``apply_chat_template``. That includes its openness: a user who writes
``<|im_end|>`` writes that token.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import TemplateError, UsageError
from .templates import ChatTemplate, Message
from .tokenizer import Tokenizer

_ANCHORS = ("\n", ".", "a")  # texts to encode another text behind, so that it is not taken for the first
_MAX_STOP_TOKENS = 64  # generated tokens that may belong to a stop text; a longer one only costs cached tokens
_MAX_FILE_BYTES = 16 * 2**20  # the longest contexts have 2**20 ids, of 7 digits and a comma
_SAVED = re.compile(r"\d{1,10}(,\d{1,10})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Question:
    """A user's turn that is not answered yet.

    Attributes:
        skeleton: the prompt's text with a mark in place of every answer; None if the template does not render it.
    """

    text: str
    token_ids: list[int]
    skeleton: str | None


class Chat:
    """A conversation: ask with ``prompt_for``, then either ``answered`` or ``undo``.

    Args:
        tokenizer: the model's.
        template: what turns messages into a prompt.
        system: what the model is told before the first message.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, system: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._opening: list[Message] = [_message("system", system)] if system else []
        self._turns: list[tuple[str, str]] = []  # a user's text and the answer; unknown ones are empty
        self._token_ids: list[int] = []
        self._skeleton: str | None = None
        self._is_loaded = False  # the texts of some turns are unknown
        self._question: _Question | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The context: all that was asked and answered, and the question that waits for its answer."""
        return tuple(self._token_ids if self._question is None else self._question.token_ids)

    @property
    def num_tokens(self) -> int:
        """Length of the context."""
        return len(self._token_ids if self._question is None else self._question.token_ids)

    def prompt_for(self, user_text: str) -> list[int]:
        """The token ids with which the model answers ``user_text``, everything before it included.

        Raises:
            TemplateError: the template does not take this conversation.
        """
        assert self._question is None, "the last question is neither answered nor undone"
        skeleton, marks = self._render_skeleton(user_text)
        suffix = self._continuation(skeleton, marks)
        if suffix is not None:
            token_ids = self._token_ids + self._encode_continuation(suffix)
        elif self._is_loaded:  # what was said is known only in tokens: a new conversation goes behind them
            fresh = self._template.render([*self._opening, _message("user", user_text)])
            token_ids = self._token_ids + self._encode_behind(fresh)
        else:
            answers = [answer for _, answer in self._turns]
            rendered = self._template.render(self._messages(answers, user_text))
            token_ids = self._tokenizer.encode(rendered, add_special_tokens=False)
        self._question = _Question(user_text, token_ids, skeleton)
        return list(token_ids)

    def answered(self, token_ids: Sequence[int], text: str) -> None:
        """Record the answer, whole or cut short.

        Args:
            token_ids: all that was generated, the token that ended it included.
            text: what was shown; shorter than the tokens' text when a stop text ended the answer.
        """
        assert self._question is not None, "nothing was asked"
        self._token_ids = self._question.token_ids + self._spoken(token_ids, text)
        self._turns.append((self._question.text, text))
        self._skeleton = self._question.skeleton
        self._question = None

    def undo(self) -> None:
        """Drop the question that was not answered, if there is one."""
        self._question = None

    def clear(self) -> None:
        """Begin a new conversation; the system message stays."""
        self._turns, self._token_ids, self._skeleton = [], [], None
        self._is_loaded = False
        self._question = None

    def save(self, folder: Path, name: str) -> None:
        """Write the answered context to the file ``name`` in ``folder``, as one line of comma-separated ids.

        Raises:
            UsageError: the name is not a plain file name, the file is something else, or it cannot be written.
        """
        path = _file_in(folder, name)
        if not self._token_ids:
            raise UsageError("the conversation is empty; there is nothing to save")
        try:
            if os.path.lexists(path) and not _holds_ids(path):
                raise UsageError(f"{name} exists and is not a saved conversation; choose another name")
            path.write_text(",".join(map(str, self._token_ids)) + "\n", encoding="ascii")
        except (OSError, ValueError) as error:
            raise UsageError(f"{name!r} cannot be written: {error}") from error

    def load(self, folder: Path, name: str) -> None:
        """Take the context from a file that ``save`` wrote; the conversation goes on behind it.

        Raises:
            UsageError: the file cannot be read, or holds anything but ids of this model; the context is as it was.
        """
        token_ids = self._read_ids(_file_in(folder, name), name)
        self.clear()
        self._turns = [("", "")]
        self._token_ids = token_ids
        self._is_loaded = True

    def _read_ids(self, path: Path, name: str) -> list[int]:
        try:
            if not path.is_file():
                raise UsageError(f"{name} is not a file in {path.parent}")
            if not _holds_ids(path):
                raise UsageError(
                    f"{name} is not a saved conversation: one line of comma-separated token ids is expected"
                )
            token_ids = [int(part) for part in path.read_text(encoding="ascii").split(",")]
        except (OSError, ValueError) as error:
            raise UsageError(f"{name!r} cannot be read: {error}") from error
        unknown = [token_id for token_id in token_ids if token_id >= self._tokenizer.vocab_size]
        if unknown:
            raise UsageError(
                f"{name} has the token id {unknown[0]}, this model's vocabulary ends at "
                f"{self._tokenizer.vocab_size - 1}; was it saved with another model?"
            )
        return token_ids

    def _messages(self, answers: Sequence[str], user_text: str) -> list[Message]:
        messages = list(self._opening)
        for (question, _), answer in zip(self._turns, answers, strict=True):
            messages += [_message("user", question), _message("assistant", answer)]
        return [*messages, _message("user", user_text)]

    def _render_skeleton(self, user_text: str) -> tuple[str | None, list[str]]:
        """The prompt's text with a mark in place of every answer, and the marks."""
        texts = [user_text, *(message["content"] for message in self._opening), *(asked for asked, _ in self._turns)]
        mark = "hopformer-answer"
        while any(mark in text for text in texts):
            mark += "-x"
        marks = [f"{mark}-{index}-ends" for index in range(len(self._turns))]
        try:
            return self._template.render(self._messages(marks, user_text)), marks
        except TemplateError:
            return None, marks

    def _continuation(self, skeleton: str | None, marks: list[str]) -> str | None:
        """The text from the end of the last answer on; None if that does not continue the tokens there are."""
        if not marks or skeleton is None or skeleton.count(marks[-1]) != 1:
            return None
        said, _, suffix = skeleton.partition(marks[-1])
        before = self._skeleton
        if before is None:
            return suffix if self._is_loaded else None
        # Either may have a little more: a space before the answer, or the opening of a thought, which history drops.
        return suffix if said.startswith(before) or before.startswith(said) else None

    def _encode_continuation(self, suffix: str) -> list[int]:
        """Ids of the text behind the last answer, without the token that ends an answer if that was generated."""
        last = self._token_ids[-1]
        if self._tokenizer.is_special(last):
            end = self._tokenizer.decode([last], skip_special_tokens=False).strip()
            if end and suffix.lstrip().startswith(end):
                return self._tokenizer.encode(suffix.lstrip(), add_special_tokens=False)[1:]
        return self._encode_behind(suffix)

    def _encode_behind(self, text: str) -> list[int]:
        """Ids of a text that is not the beginning, where some tokenizers would put a space."""
        for anchor in _ANCHORS:
            before = self._tokenizer.encode(anchor, add_special_tokens=False)
            token_ids = self._tokenizer.encode(anchor + text, add_special_tokens=False)
            if token_ids[: len(before)] == before:
                return token_ids[len(before) :]
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _spoken(self, token_ids: Sequence[int], text: str) -> list[int]:
        """The generated tokens without those of a stop text; encoded from the text where a token has parts of both."""
        for end in range(len(token_ids), max(len(token_ids) - _MAX_STOP_TOKENS, -1), -1):
            decoded = self._tokenizer.decode(token_ids[:end])
            if decoded == text:
                return list(token_ids[:end])
            if len(decoded) < len(text):
                break
        return self._encode_behind(text)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _file_in(folder: Path, name: str) -> Path:
    if name in ("", ".", "..") or "\0" in name or "/" in name or "\\" in name or Path(name).name != name:
        raise UsageError(f"{name!r} is not a plain file name; conversations are kept in the current folder")
    return folder / name


def _holds_ids(path: Path) -> bool:
    """Whether the path is a file as ``save`` writes it."""
    if not path.is_file() or path.stat().st_size > _MAX_FILE_BYTES:
        return False
    with path.open("rb") as file:
        content = file.read(_MAX_FILE_BYTES)
    return _SAVED.fullmatch(content.decode("ascii", "replace").strip()) is not None
