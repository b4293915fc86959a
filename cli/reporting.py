"""What goes to stderr: logs, and the one line of a command that failed. And the exit code that goes with it."""

import json
import logging
import os
import sys
import traceback
from typing import Literal

from ..errors import HopformerError, RequestError, UsageError

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

log = logging.getLogger(__name__)


class JsonLines(logging.Formatter):
    """One JSON object a record: time (seconds since 1970), level, logger, message, and traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        fields = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def configure_logging(level: str, style: Literal["text", "json"]) -> None:
    """Send logs to stderr: ours from ``level`` on, everybody else's from warnings on."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if style == "json" else text)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(__package__.partition(".")[0]).setLevel(level.upper())
    logging.captureWarnings(True)


def report(error: BaseException, debug: bool) -> int:
    """Say in one line what ended a command, with the traceback first if ``debug``; returns the exit code."""
    if isinstance(error, BrokenPipeError):
        discard_stdout()
        return EXIT_FAILED
    if debug:
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        print_error("interrupted")
        return EXIT_INTERRUPTED
    if isinstance(error, HopformerError):
        print_error(str(error))
        return EXIT_USAGE if isinstance(error, UsageError | RequestError) else EXIT_FAILED
    if isinstance(error, OSError):
        print_error(str(error))
        return EXIT_FAILED
    advice = "" if debug else "; this is a bug: run it again with --debug and report what it prints"
    print_error(f"{type(error).__name__}: {error}{advice}")
    return EXIT_FAILED


def print_error(message: str) -> None:
    """The line that every error is."""
    print("hopformer:", " ".join(message.split()), file=sys.stderr, flush=True)


def discard_stdout() -> None:
    """Nobody reads stdout any more: let the interpreter's last flush go nowhere instead of failing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
