"""``hopformer chat`` at a terminal, which pexpect plays."""

import re
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

pytestmark = pytest.mark.slow  # every test is a process that loads torch

Chat = Callable[..., pexpect.spawn]
PROMPT = r">(?: |\x08\x1b\[2C)"  # the line editor moves over a blank instead of writing it
TAKEN = "\x1b[?2004l"  # the line editor has put the terminal back: what follows is the answer's
STATISTICS = r"(\d+) tokens, [\d.]+ tokens/s, context (\d+)/(\d+), (\d+) cached"
SHORT = ("--max-tokens", "8")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def chat(tiny_model: Path, environment: dict[str, str], tmp_path: Path) -> Iterator[Chat]:
    """Start a chat in a terminal of 80 columns and wait for its prompt."""
    children: list[pexpect.spawn] = []

    def start(*arguments: str, **variables: str) -> pexpect.spawn:
        child = pexpect.spawn(
            sys.executable,
            ["-m", "hopformer", "chat", str(tiny_model), *arguments],
            env={**environment, **variables},
            cwd=str(tmp_path),
            dimensions=(24, 80),
            encoding="utf-8",
            timeout=60,
        )
        children.append(child)
        child.expect(PROMPT)
        return child

    yield start
    for child in children:
        child.close(force=True)


def settings(child: pexpect.spawn) -> list[object]:
    """How the terminal is set, without the speeds."""
    return termios.tcgetattr(child.child_fd)[:4]


def say(child: pexpect.spawn, text: str) -> re.Match[str]:
    """Send a message and wait for its answer's statistics and the next prompt."""
    child.send(text + "\r")
    child.expect(STATISTICS)
    found = child.match
    child.expect(PROMPT)
    return found


def leave(child: pexpect.spawn) -> int | None:
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def test_a_conversation_is_greeted_answered_and_left_with_ctrl_d(chat: Chat) -> None:
    child = chat(*SHORT)
    lines = _ESCAPES.sub("", child.before).replace("\r", "\n").split("\n")
    greeting = [line for line in lines if line.strip() and not line.startswith("loading")]
    assert 1 <= len(greeting) <= 4 and "2 layers" in greeting[0]
    first = say(child, "hello fox")
    second = say(child, "and again")
    assert first[1] == second[1] == "8" and first[3] == "4096"
    assert int(first[2]) < int(second[2])
    assert int(first[4]) == 0 and int(second[4]) >= int(first[2]) - 1, "a follow-up prefills its new tokens only"
    assert leave(child) == 0


@pytest.mark.parametrize("key", [" ", "\x1b", "\x03"], ids=["Space", "Esc", "Ctrl-C"])
def test_a_key_stops_the_answer_and_what_was_said_stays(chat: Chat, key: str) -> None:
    child = chat()
    before = settings(child)
    child.send("hello fox\r")
    child.expect_exact(TAKEN)
    child.expect(r"\S")
    child.send(key)
    child.expect("stopped, " + STATISTICS)
    tokens, used = int(child.match[1]), int(child.match[2])
    assert 0 < tokens < 4000 and used >= tokens
    child.expect(PROMPT)
    assert settings(child) == before
    child.send("and again\r")
    child.expect_exact(TAKEN)
    child.expect(r"\S")
    child.send(key)
    child.expect("stopped, " + STATISTICS)
    assert int(child.match[2]) > used
    child.expect(PROMPT)
    assert leave(child) == 0


def test_an_arrow_does_not_stop_the_answer(chat: Chat) -> None:
    child = chat("--max-tokens", "300")
    child.send("hello fox\r")
    child.expect_exact(TAKEN)
    child.expect(r"\S")
    child.send("\x1b[A\x1b[B")
    child.expect(r"(stopped, )?" + STATISTICS)
    assert child.match[1] is None and child.match[2] == "300"


def test_commands_with_and_without_a_slash(chat: Chat, tmp_path: Path) -> None:
    child = chat(*SHORT)
    say(child, "hello fox")
    for line, reply in (
        ("help", "save FILE"),
        ("/peers", "local 0:2"),
        ("connect abc 127.0.0.1:1", "on this machine"),
        ("/nonsense", "/nonsense is no command"),
        ("save", "usage: save FILE"),
        ("save a/b", "hopformer: "),
        ("load absent", "hopformer: "),
        ("save talk.csv", "saved"),
        ("/clear", "empty"),
        ("load talk.csv", "loaded"),
    ):
        child.send(line + "\r")
        child.expect_exact(reply)
        child.expect(PROMPT)
    assert (tmp_path / "talk.csv").is_file()
    resumed = say(child, "and again")
    assert int(resumed[4]) > 8, "the loaded conversation was still in the prefix cache"
    child.send("exit\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_message_that_begins_like_a_command_is_answered(chat: Chat) -> None:
    child = chat(*SHORT)
    assert say(child, "help me write a letter")[1] == "8"
    assert say(child, "exit strategies?")[1] == "8"
    assert leave(child) == 0


def test_a_paste_of_several_lines_is_one_message(chat: Chat) -> None:
    child = chat(*SHORT)
    one_line = int(say(child, "\x1b[200~hello\x1b[201~")[2])
    child.send("/clear\r")
    child.expect_exact("empty")
    child.expect(PROMPT)
    several = say(child, "\x1b[200~hello\nhelp\nexit\x1b[201~")
    assert int(several[2]) > one_line
    assert leave(child) == 0


def test_ctrl_c_at_the_prompt_clears_the_line_and_then_hints(chat: Chat) -> None:
    child = chat(*SHORT)
    child.send("exit\x03")
    child.send("\x03")
    child.expect_exact("Ctrl-D or exit leaves")
    child.expect(PROMPT)
    assert leave(child) == 0


def test_the_last_lines_come_back_with_the_arrow_in_the_next_chat(chat: Chat, tmp_path: Path) -> None:
    first = chat(*SHORT)
    say(first, "hello fox")
    assert leave(first) == 0
    assert (tmp_path / ".local/state/hopformer/chat_history").stat().st_mode & 0o077 == 0
    second = chat(*SHORT)
    second.send("\x1b[A")
    second.expect_exact("hello fox")
    second.send("\r")
    second.expect(STATISTICS)


def test_a_full_context_is_said_in_one_line_and_clear_helps(chat: Chat) -> None:
    child = chat("--max-context", "64")
    child.send("hello fox\r")
    child.expect_exact("the context of 64 tokens is full")
    child.expect(PROMPT)
    child.send("and again\r")
    child.expect_exact("the context holds 64")
    child.expect(PROMPT)
    child.send("clear\r")
    child.expect(PROMPT)
    child.send("hello fox\r")
    child.expect_exact("the context of 64 tokens is full")
    child.expect(PROMPT)
    assert leave(child) == 0


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colour_nothing_is_styled(chat: Chat, variables: dict[str, str]) -> None:
    child = chat(*SHORT, **variables)
    greeting = child.before
    child.send("hello fox\r")
    child.expect(STATISTICS)
    styles = re.compile(r"\x1b\[[1-9][0-9;]*m")
    assert not styles.search(greeting) and not styles.search(child.before + child.after)
    child.expect(PROMPT)
    child.send("exit\r")
    child.expect(pexpect.EOF)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_an_answer_leaves_the_terminal_as_it_was(chat: Chat, number: signal.Signals) -> None:
    child = chat()
    before = settings(child)
    child.send("hello fox\r")
    child.expect_exact(TAKEN)
    child.expect(r"\S")
    child.kill(number)
    if number == signal.SIGINT:
        child.expect("stopped, ")
        child.expect(PROMPT)
        assert settings(child) == before
        return
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 143
