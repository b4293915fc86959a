"""Keys that stop an answer, and what is written to a terminal."""

import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from hopformer.cli.terminal import ESCAPE_WAIT_S, StopKeys, Terminal, open_history


class Clock:
    """Time that stands still until it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as source:
        yield source


@pytest.mark.parametrize("typed", [" ", "\x03", "abc def", "\x1b[A "])
def test_space_and_ctrl_c_stop_at_once(typed: str, keyboard: PipeInput, clock: Clock) -> None:
    keys = StopKeys(keyboard, clock)
    keyboard.send_text(typed)
    assert keys()


def test_escape_stops_once_it_is_clear_that_nothing_follows(keyboard: PipeInput, clock: Clock) -> None:
    keys = StopKeys(keyboard, clock)
    keyboard.send_text("\x1b")
    assert not keys()
    clock.now += ESCAPE_WAIT_S / 2
    assert not keys()
    clock.now += ESCAPE_WAIT_S
    assert keys()


@pytest.mark.parametrize("typed", ["\x1b[A", "\x1bOP", "\x1b[1;5C", "\x1bx", "\x1b[I", "\x1b[3~", "abc\r", "\t", ""])
def test_other_keys_do_not_stop(typed: str, keyboard: PipeInput, clock: Clock) -> None:
    keys = StopKeys(keyboard, clock)
    keyboard.send_text(typed)
    assert not keys()
    clock.now += 10 * ESCAPE_WAIT_S
    assert not keys()


def test_an_arrow_in_two_pieces_is_not_escape(keyboard: PipeInput, clock: Clock) -> None:
    keys = StopKeys(keyboard, clock)
    keyboard.send_text("\x1b")
    assert not keys()
    clock.now += ESCAPE_WAIT_S / 2
    keyboard.send_text("[A")
    assert not keys()
    clock.now += 10 * ESCAPE_WAIT_S
    assert not keys()


def test_once_stopped_is_stopped(keyboard: PipeInput, clock: Clock) -> None:
    keys = StopKeys(keyboard, clock)
    keyboard.send_text(" ")
    assert keys() and keys()


def test_a_models_text_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(tmp_path / "history")
    terminal.write("a\x1b]0;title\x07b\rc\x9b2J\td\n")
    assert capsys.readouterr().out == "a]0;titlebc2J\td\n"


def test_a_line_is_ended_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(tmp_path / "history")
    terminal.end_line()
    terminal.write("word")
    terminal.write("")
    terminal.end_line()
    terminal.end_line()
    assert capsys.readouterr().out == "word\n"


@pytest.mark.parametrize(
    ("term", "no_color", "dim"),
    [("xterm-256color", "", True), ("xterm", "1", False), ("dumb", "", False), ("", "", False)],
)
def test_notes_are_dim_only_where_the_terminal_takes_it(
    term: str,
    no_color: str,
    dim: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", no_color)
    Terminal(tmp_path / "history").note("hint")
    assert capsys.readouterr().out == ("\x1b[2mhint\x1b[0m\n" if dim else "hint\n")


def test_the_history_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "chat_history"
    open_history(path).append_string("a secret\nof two lines")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(open_history(path).load_history_strings()) == ["a secret\nof two lines"]


def test_without_a_place_for_it_the_history_is_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = open_history(tmp_path / "file" / "chat_history")
    history.append_string("kept for now")
    assert history.get_strings() == ["kept for now"]


def test_while_the_user_thinks_something_else_is_done_now_and_then(
    keyboard: PipeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    calls: list[int] = []

    def idle() -> None:
        calls.append(threading.get_ident())
        if len(calls) % 3 == 0:
            keyboard.send_text(f"line {len(calls)}\r")

    with create_app_session(input=keyboard, output=DummyOutput()):
        terminal = Terminal(tmp_path / "history")
        assert [terminal.ask(idle, every_s=0.001) for _ in range(2)] == ["line 3", "line 6"]
    assert calls == [threading.get_ident()] * 6, "in this thread, and never after a line"
