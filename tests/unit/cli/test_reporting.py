"""The line on stderr, the exit code, and the logs."""

import json
import logging
from collections.abc import Iterator

import pytest

from hopformer.cli.reporting import JsonLines, configure_logging, report
from hopformer.errors import ConfigError, HubError, RequestError, UsageError


@pytest.fixture
def logging_restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("hopformer")
    before = root.handlers[:], root.level, ours.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("no"), 2),
        (RequestError("no"), 2),
        (ConfigError("no"), 1),
        (HubError("no"), 1),
        (OSError(28, "No space left on device"), 1),
        (RuntimeError("no"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error, debug=False) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hopformer: ") and err.count("\n") == 1


def test_a_message_of_many_lines_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    report(ConfigError("first\nsecond\n\tthird"), debug=False)
    assert capsys.readouterr().err == "hopformer: first second third\n"


def test_debug_shows_the_traceback_before_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise UsageError("flag")
    except UsageError as error:
        report(error, debug=True)
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("hopformer: flag\n")


def test_a_bug_asks_to_be_reported(capsys: pytest.CaptureFixture[str]) -> None:
    report(ZeroDivisionError("division by zero"), debug=False)
    assert "ZeroDivisionError: division by zero; this is a bug" in capsys.readouterr().err


def test_a_json_log_line_holds_the_traceback_too() -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
        record = logging.LogRecord("hopformer.x", logging.ERROR, "file", 1, "peer=%s", ("abc",), info)
    line = JsonLines().format(record)
    fields = json.loads(line)
    assert "\n" not in line
    assert (fields["level"], fields["logger"], fields["message"]) == ("error", "hopformer.x", "peer=abc")
    assert "ValueError: broken" in fields["traceback"]


@pytest.mark.usefixtures("logging_restored")
def test_the_level_is_for_our_own_logs(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text")
    logging.getLogger("hopformer.llama").info("ours")
    logging.getLogger("hopformer.llama").debug("too much")
    logging.getLogger("foreign").info("theirs")
    logging.getLogger("foreign").warning("warned")
    err = capsys.readouterr().err
    assert "ours" in err and "warned" in err
    assert "theirs" not in err and "too much" not in err


@pytest.mark.usefixtures("logging_restored")
def test_configuring_twice_does_not_log_twice(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text")
    configure_logging("info", "json")
    logging.getLogger("hopformer").info("once")
    assert json.loads(capsys.readouterr().err)["message"] == "once"
