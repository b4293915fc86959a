"""A contender in a process of its own, for software that may take its process along when it crashes: llama.cpp.

Its Q8_0 and Q4_0 have ended by an illegal instruction on a CPU with AMX; and PyTorch's threads would be beside its own
in one process. What is timed grows by a message there and back for a prompt, and by one for all steps of a turn.
"""

import signal
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ..errors import UsageError
from .contender import Absent, Contender, OpenContender, Workload

_END_S = 10.0  # for the process to give back what it has loaded


class ContenderGone(UsageError):
    """A contender's process has ended. ``reason``: how, of "it"."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}; leave it out with --against")
        self.reason = reason


class ContenderProcess:
    """The near end. See Contender; every call raises ContenderGone once the process is gone."""

    def __init__(self, process: BaseProcess, pipe: Connection, name: str, version: str, weights: str) -> None:
        self.name = name
        self.version = version
        self.weights = weights
        self._process = process
        self._pipe = pipe

    def reset(self) -> None:
        """See Contender."""
        self._call("reset")

    def prefill(self, token_ids: Sequence[int]) -> int:
        """See Contender."""
        token_id: int = self._call("prefill", list(token_ids))
        return token_id

    def decode(self, num_tokens: int) -> list[int]:
        """See Contender."""
        token_ids: list[int] = self._call("decode", num_tokens)
        return token_ids

    def close(self) -> None:
        """See Contender."""
        self._pipe.close()
        self._process.join(_END_S)
        self._process.kill()
        self._process.join()

    def _call(self, method: str, *arguments: object) -> Any:
        try:
            self._pipe.send((method, arguments))
            return self._pipe.recv()
        except (EOFError, OSError):
            raise ContenderGone(self.name, f"it {_how_it_ended(self._process)} while it computed") from None


def open_in_process(name: str, open_one: OpenContender, workload: Workload) -> ContenderProcess | Absent:
    """As ``open_one``, a function of a module, in a process that ends with ``close``, or with this process."""
    context = get_context("spawn")  # a fork of a process that has run torch may hang
    near, far = context.Pipe()
    process = context.Process(target=_run, args=(far, open_one, workload), name=f"bench {name}", daemon=True)
    process.start()
    far.close()
    try:
        opened = near.recv()
    except (EOFError, OSError):
        opened = Absent(name, f"it {_how_it_ended(process)} while it loaded the model")
    if isinstance(opened, Absent):
        near.close()
        process.join()
        return opened
    return ContenderProcess(process, near, *opened)


def _run(pipe: Connection, open_one: OpenContender, workload: Workload) -> None:
    """The far end: answer calls until nobody makes any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the near end, which then closes the pipe
    torch.set_num_threads(workload.num_threads)
    contender: Contender | Absent = open_one(workload)
    if isinstance(contender, Absent):
        pipe.send(contender)
        return
    pipe.send((contender.name, contender.version, contender.weights))
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            contender.close()
            return
        pipe.send(getattr(contender, method)(*arguments))


def _how_it_ended(process: BaseProcess) -> str:
    process.join(_END_S)
    code = process.exitcode
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
