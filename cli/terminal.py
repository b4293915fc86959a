"""A person's terminal: a line editor between answers, keys that stop an answer while it runs, and dim notes.

prompt_toolkit edits lines and reads keys. Text is written plainly, so that the terminal wraps it and scrolls back.
"""

import asyncio
import logging
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.output.vt100 import Vt100_Output

log = logging.getLogger(__name__)

# How long the rest of a key such as an arrow may be behind its first byte, which is that of Esc. Over a slow link the
# bytes of one key are in one packet, so this bridges only what splits packets.
ESCAPE_WAIT_S = 0.1

IDLE_EVERY_S = (
    1.0  # as often as the network's process says something that must be read; a lease is renewed after minutes
)

# C0 but tab and line feed, DEL, and C1: a model's text must not move the cursor or set the window's title
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])
_CONTROLS = {code: None for code in _CONTROLS if chr(code) not in "\t\n"}


class StopKeys:
    """Whether a key came that stops an answer: Space, Esc or Ctrl-C. Asked between two steps; it never waits.

    Esc is also the first byte of arrows and of Alt with a key. It counts only where nothing follows it.
    """

    def __init__(self, source: Input, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._last_input_s = clock()
        self._stopped = False

    def __call__(self) -> bool:
        """Read what has been typed; True from the first such key on."""
        if select.select([self._source.fileno()], [], [], 0)[0]:
            presses = self._source.read_keys()
            self._last_input_s = self._clock()
        elif self._clock() - self._last_input_s >= ESCAPE_WAIT_S:
            presses = self._source.flush_keys()
        else:
            presses = []
        keys = [press.key for press in presses]
        self._stopped |= " " in keys or Keys.ControlC in keys or keys[-1:] == [Keys.Escape]
        return self._stopped


class Terminal:
    """The terminal on stdin and stdout.

    Args:
        history: the file that typed lines are kept in, private to the user; made when the first line is asked for.
    """

    def __init__(self, history: Path) -> None:
        self._history = history
        self._session: PromptSession[str] | None = None
        self._dim = _has_styles()
        self._at_line_start = True

    def ask(self, idle: Callable[[], None], every_s: float = IDLE_EVERY_S) -> str | None:
        """Let the user type; None at Ctrl-D. A pasted text of several lines is one; Alt-Enter begins a new line.

        Meanwhile ``idle`` is called now and then, in this thread, which it should not keep for long.
        """

        async def call_now_and_then() -> None:
            while True:
                await asyncio.sleep(every_s)
                idle()

        def begin() -> None:
            get_app().create_background_task(call_now_and_then())  # which ends with the line

        if self._session is None:
            self._session = PromptSession(
                history=open_history(self._history), key_bindings=_bindings(), output=_output(), enable_suspend=True
            )
        while True:
            try:
                return self._session.prompt("> ", pre_run=begin)
            except EOFError:
                return None
            except KeyboardInterrupt:
                self.note("Ctrl-D or exit leaves the chat")

    @contextmanager
    def keys(self) -> Iterator[StopKeys]:
        """Take the keyboard while an answer runs; whatever ends it, the terminal is as it was."""
        source = create_input(sys.stdin)
        with source.raw_mode():
            keys = StopKeys(source)
            yield keys
            keys()  # what was typed meanwhile belongs to no line

    def write(self, text: str) -> None:
        """Part of an answer, at once."""
        text = text.translate(_CONTROLS)
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._at_line_start = text.endswith("\n")

    def end_line(self) -> None:
        """Begin a new line unless the cursor is at the start of one."""
        if not self._at_line_start:
            self.write("\n")

    def note(self, text: str) -> None:
        """Something that is not the model's."""
        print(f"\x1b[2m{text}\x1b[0m" if self._dim else text, flush=True)


def _has_styles() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") not in ("", "dumb")


def _output() -> Output | None:
    """prompt_toolkit's output. None on a dumb terminal, where it finds a simpler way by itself."""
    if os.environ.get("TERM", "dumb") in ("", "dumb"):
        return None
    output = create_output()
    if isinstance(output, Vt100_Output):
        # Asking where the cursor is serves menus, of which there are none; over a slow link the terminal's reply would
        # arrive as keys in the middle of an answer.
        output.enable_cpr = False
    return output


def open_history(path: Path) -> History:
    """Typed lines, for their owner only; in memory where the file cannot be had."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError as error:
        log.warning("the history of this chat is not kept: %s", error)
        return InMemoryHistory()
    return FileHistory(str(path))


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("c-c")
    def clear_or_interrupt(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return bindings
