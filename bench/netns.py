"""Network namespaces of this machine, for tests and benchmarks: made, entered, and swept when their maker is dead.

Linux, root, and the commands ip and nft; ``missing`` says what is not there. A namespace's name tells who made it: a
process by its number and the time that it began, so that what a killed one left behind is known for certain, and
several may work side by side.
"""

import ctypes
import functools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ..errors import NetworkError

NAMESPACES = Path("/run/netns")  # where ip keeps them, by name
TUN = Path("/dev/net/tun")

_PREFIX = "hopformer"
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_TRY_NAT = """table ip lab { chain out { type nat hook postrouting priority srcnat
    masquerade fully-random
    }
}"""

# linux/netlink.h, nfnetlink.h and nfnetlink_conntrack.h: "delete" with no key deletes every entry
_NETLINK_NETFILTER = 12
_DELETE_ENTRIES = 1 << 8 | 2
_REQUEST_AND_ACK = 1 | 4
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ERROR = struct.Struct("=i")
_ANSWER_BYTES = 4096
_ANSWER_S = 5.0

T = TypeVar("T")


@functools.cache
def missing() -> str | None:
    """Why no laboratory can be built here, in a few words; None where it can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for command, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(command) is None:
            return f"the command {command} is not there; install {package}"
    if not TUN.exists():
        return f"{TUN} is not there"
    try:
        name = f"{prefix()}-try"
        run(["ip", "netns", "add", name])
        try:
            run(["ip", "netns", "exec", name, "nft", "-f", "-"], _TRY_NAT)
            within(name, forget_connections)
        finally:
            delete([name])
    except (NetworkError, OSError) as error:
        assert "syntax error" not in str(error), error  # a mistake of ours, for which no test is to be skipped
        return f"a network namespace with NAT cannot be made: {error}"
    return None


def prefix() -> str:
    """What the names of this process's namespaces begin with."""
    pid = os.getpid()
    return f"{_PREFIX}-{pid}-{_began(pid)}"


def run(command: list[str], words: str = "") -> str:
    """A command's output; ``words`` are its input.

    Raises:
        NetworkError: it failed.
    """
    done = subprocess.run(command, input=words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise NetworkError(f"{' '.join(command)} failed: {lines[0] if lines else f'code {done.returncode}'}")
    return done.stdout


def ip(namespace: str, *lines: str) -> None:
    """What ``ip`` is to do within a namespace, one thing a line."""
    run(["ip", "-n", namespace, "-batch", "-"], "\n".join(lines))


def nft(namespace: str, rules: str) -> None:
    """Rules for a namespace's packets."""
    run(["ip", "netns", "exec", namespace, "nft", "-f", "-"], rules)


def within(namespace: str, call: Callable[[], T]) -> T:
    """What ``call`` returns within a namespace, where its sockets stay: in a thread of its own, which ends there."""

    def enter() -> T:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(NAMESPACES / namespace, "rb") as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), namespace)
        return call()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(enter).result()


def set_kernel(name: str, value: int) -> None:
    """A setting below /proc/sys/net, of the namespace that the thread is in, see ``within``."""
    (Path("/proc/sys/net") / name).write_text(str(value))


def forget_connections() -> None:
    """A NAT that loses its memory, in the namespace that the thread is in: conntrack's entries are deleted.

    Raises:
        OSError: the kernel refuses.
    """
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as kernel:
        kernel.settimeout(_ANSWER_S)
        kernel.send(_HEADER.pack(_HEADER.size + len(body), _DELETE_ENTRIES, _REQUEST_AND_ACK, 1, 0) + body)
        number = -_ERROR.unpack_from(kernel.recv(_ANSWER_BYTES), _HEADER.size)[0]
    if number != 0:
        raise OSError(number, os.strerror(number), "conntrack")


def sweep() -> None:
    """End what runs in the namespaces of dead processes, and delete them."""
    left = [path.name for path in NAMESPACES.glob(f"{_PREFIX}-*")] if NAMESPACES.is_dir() else []
    dead = [name for name in left if not _lives(name)]
    for name in dead:
        done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
        for pid in done.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    delete(dead)


def delete(names: list[str]) -> None:
    """Delete namespaces, whether or not they are still there; what runs in one keeps it until it ends."""
    lines = "\n".join(f"netns del {name}" for name in names)
    subprocess.run(["ip", "-force", "-batch", "-"], input=lines, capture_output=True, text=True, check=False)


def _lives(name: str) -> bool:
    """Whether the process that made a namespace is there."""
    _, pid, began, *_ = [*name.split("-"), "", ""]
    return pid.isdigit() and _began(int(pid)) == began


def _began(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""
