"""Where generate's prompt comes from."""

import io
from pathlib import Path

import pytest

from hopformer.cli.prompt import Prompt, PromptFlags
from hopformer.errors import UsageError


class Pipe(io.TextIOWrapper):
    """A stdin that holds bytes."""

    def __init__(self, content: bytes, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(content))
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def test_a_prompt_is_given_as_text_or_as_ids() -> None:
    assert PromptFlags(prompt="hi", system="be kind").read() == Prompt("hi", system="be kind")
    assert PromptFlags(prompt_ids="3,1").read() == Prompt(token_ids=(3, 1))


def test_a_file_loses_its_last_line_break_unless_it_is_raw(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"one\r\ntwo\n\r\n")
    assert PromptFlags(prompt_file=file).read() == Prompt("one\r\ntwo\n")
    assert PromptFlags(prompt_file=file, raw=True).read() == Prompt("one\r\ntwo\n\r\n", raw=True)


def test_without_a_flag_the_prompt_is_read_from_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Pipe("grüße\n".encode()))
    assert PromptFlags().read() == Prompt("grüße")


def test_nobody_is_kept_waiting_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Pipe(b"", terminal=True))
    with pytest.raises(UsageError, match="there is no prompt"):
        PromptFlags().read()


def test_bytes_that_are_no_text_are_refused_with_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Pipe(b"abc\xff"))
    with pytest.raises(UsageError, match="stdin is not UTF-8 text: see its byte 3"):
        PromptFlags().read()


@pytest.mark.parametrize("flags", [PromptFlags(prompt=""), PromptFlags(prompt=" \n"), PromptFlags(prompt="", raw=True)])
def test_an_empty_prompt_is_refused(flags: PromptFlags) -> None:
    with pytest.raises(UsageError, match="--prompt is empty"):
        flags.read()


def test_blanks_are_a_prompt_where_it_is_taken_as_it_is() -> None:
    assert PromptFlags(prompt="\n", raw=True).read().text == "\n"


@pytest.mark.parametrize(
    "flags",
    [
        PromptFlags(prompt="a", prompt_ids="1"),
        PromptFlags(prompt="a", prompt_file=Path("b")),
        PromptFlags(prompt="a", raw=True, system="s"),
        PromptFlags(prompt_ids="1", system="s"),
        PromptFlags(prompt_ids="1,x"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(flags: PromptFlags) -> None:
    with pytest.raises(UsageError):
        flags.read()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match=str(path)):
            PromptFlags(prompt_file=path).read()
