"""Bars on stderr, at a terminal only."""

import io

import pytest

from hopformer.cli.progress import download_bars, loading_bar


class Screen(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


def be_at_terminal(monkeypatch: pytest.MonkeyPatch, term: str = "xterm") -> Screen:
    """From within the test, since pytest puts its own stderr in place when a test begins."""
    screen = Screen()
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stderr", screen)
    return screen


def test_without_a_terminal_nobody_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with loading_bar("loading") as parts, download_bars() as bytes_done:
        assert parts is None and bytes_done is None


def test_a_terminal_that_cannot_move_its_cursor_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = be_at_terminal(monkeypatch, term="dumb")
    with loading_bar("loading") as parts, download_bars() as bytes_done:
        assert parts is None and bytes_done is None
    assert screen.getvalue() == ""


def test_a_loading_bar_shows_its_title_and_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = be_at_terminal(monkeypatch)
    with loading_bar("loading demo") as advance:
        assert advance is not None
        advance(3, 4)
    assert "loading demo" in screen.getvalue() and "75%" in screen.getvalue()


def test_every_file_has_a_bar_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = be_at_terminal(monkeypatch)
    with download_bars() as advance:
        assert advance is not None
        advance(10, 1000, "config.json")
        advance(1000, 1000, "config.json")
        advance(5000, 20000, "model.safetensors")
    shown = screen.getvalue()
    assert "config.json" in shown and "1.0/1.0 kB" in shown
    assert "model.safetensors" in shown and "5.0/20.0 kB" in shown
