"""Progress bars on stderr while files are fetched and weights are loaded; nothing where none could move."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

PartsDone = Callable[[int, int], None]  # parts done, parts in all
BytesDone = Callable[[int, int, str], None]  # bytes done, bytes in all, the file's name


def loading_bar(title: str) -> AbstractContextManager[PartsDone | None]:
    """A bar that counts parts and goes away when it is done."""
    return _loading_bar(title) if can_draw() else nullcontext(None)


def download_bars() -> AbstractContextManager[BytesDone | None]:
    """A bar for each file, by bytes; they stay on the screen."""
    return _download_bars() if can_draw() else nullcontext(None)


def can_draw() -> bool:
    """Whether stderr is a terminal on which something can move."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")


@contextmanager
def _loading_bar(title: str) -> Iterator[PartsDone]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _download_bars() -> Iterator[BytesDone]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def advance(done: int, total: int, name: str) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total)

        yield advance
