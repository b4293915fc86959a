"""Dataclasses of flags as a command's parameters."""

from dataclasses import dataclass, field
from typing import Annotated

import pytest
import typer

from hopformer.cli.flags import LogFlags, command, default_command
from hopformer.errors import UsageError


@dataclass(frozen=True, slots=True)
class Paint:
    """Flags for the test."""

    colour: Annotated[str, typer.Option(help="Which one.")] = "red"
    layers: Annotated[list[str], typer.Option(help="May be repeated.")] = field(default_factory=list)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.setattr("hopformer.cli.flags.configure_logging", lambda level, style: None)
    return []


@pytest.fixture
def app(calls: list[object]) -> typer.Typer:
    app = typer.Typer()

    @command(app)
    def paint(wall: Annotated[str, typer.Argument()] = "north", *, paint: Paint) -> int:
        """Paint a wall."""
        calls.append((wall, paint))
        if paint.colour == "none":
            raise UsageError("none is no colour")
        return 3

    @command(app, name="other")
    def another() -> int:
        """A second command, so that the first is named."""
        calls.append("other")
        return 0

    return app


def run(app: typer.Typer, *arguments: str) -> int:
    return app(list(arguments), standalone_mode=False)


def test_each_field_is_a_flag(app: typer.Typer, calls: list[object]) -> None:
    assert run(app, "paint", "south", "--colour", "blue", "--layers", "a", "--layers", "b") == 3
    assert calls == [("south", Paint("blue", ["a", "b"]))]


def test_defaults_are_those_of_the_dataclass(app: typer.Typer, calls: list[object]) -> None:
    run(app, "paint")
    assert calls == [("north", Paint("red", []))]


def test_a_command_may_have_another_name_than_its_function(app: typer.Typer, calls: list[object]) -> None:
    assert run(app, "other") == 0
    assert calls == ["other"]


def test_an_error_in_a_command_becomes_its_exit_code(app: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    calls_before = capsys.readouterr()
    assert calls_before.err == ""
    assert run(app, "paint", "--colour", "none") == 2
    assert capsys.readouterr().err == "hopformer: none is no colour\n"


def test_every_command_takes_the_log_flags(app: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    run(app, "paint", "--colour", "none", "--debug", "--log-level", "info", "--log-format", "json")
    assert "Traceback" in capsys.readouterr().err
    assert LogFlags() == LogFlags("warning", "text", False)


def test_the_help_has_the_flags_of_the_group(app: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    run(app, "paint", "--help")
    out = capsys.readouterr().out
    assert "Paint a wall." in out and "--colour" in out and "--log-level" in out


@pytest.fixture
def group(calls: list[object]) -> typer.Typer:
    app = typer.Typer()

    @default_command(app)
    def paint(*, paint: Paint) -> int:
        """Paint all walls."""
        calls.append(paint)
        if paint.colour == "none":
            raise UsageError("none is no colour")
        return 3

    @command(app)
    def wash(colour: str = "white") -> int:
        """Wash them."""
        calls.append(colour)
        return 4

    return app


def test_a_default_command_runs_where_no_other_is_named(group: typer.Typer, calls: list[object]) -> None:
    assert run(group, "--colour", "blue") == 3 and run(group) == 3
    assert run(group, "wash") == 4 and run(group, "wash", "--colour", "grey") == 4
    assert calls == [Paint("blue", []), Paint("red", []), "white", "grey"]


def test_an_error_of_a_default_command_is_one_line(group: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(group, "--colour", "none") == 2
    assert capsys.readouterr().err == "hopformer: none is no colour\n"


def test_a_flag_that_would_be_dropped_is_refused(
    group: typer.Typer, calls: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in (["--colour", "red"], ["--log-level", "info"]):
        assert run(group, *flags, "wash") == 2
        words = f"{flags[0]} before wash changes nothing; the flags of wash go after it"
        assert capsys.readouterr().err == f"hopformer: {words}\n"
    assert calls == []
