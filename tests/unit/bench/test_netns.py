"""What is told where no network namespace can be made, and whose a namespace is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hopformer.bench import netns
from hopformer.bench.nat_link import is_delayed
from hopformer.errors import NetworkError


def test_without_root_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert netns.missing.__wrapped__() == "network namespaces need root"


@pytest.mark.parametrize(("command", "package"), [("ip", "iproute2"), ("nft", "nftables")])
def test_a_missing_command_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, command: str, package: str
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == command else f"/sbin/{name}")
    assert netns.missing.__wrapped__() == f"the command {command} is not there; install {package}"


def test_a_kernel_that_refuses_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The commands are there, and say what the kernel says."""
    (tmp_path / "tun").touch()
    for name in ("ip", "nft"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'mount --make-shared: Operation not permitted' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(netns, "TUN", tmp_path / "tun")
    reason = netns.missing.__wrapped__()
    assert reason.startswith("a network namespace with NAT cannot be made: ip netns add hopformer-")
    assert reason.endswith("failed: mount --make-shared: Operation not permitted")


def test_a_command_that_fails_is_one_line() -> None:
    with pytest.raises(NetworkError, match=r"^sh -c .* failed: first$"):
        netns.run(["sh", "-c", "echo first >&2; echo second >&2; exit 3"])
    with pytest.raises(NetworkError, match=r"failed: code 3$"):
        netns.run(["sh", "-c", "exit 3"])
    assert netns.run(["cat"], "words") == "words"


def test_only_namespaces_of_dead_processes_are_swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A number that another process has got since then is not its maker's."""
    with subprocess.Popen(["true"]) as ended:
        pass
    mine = netns.prefix()
    stale = [f"hopformer-{ended.pid}-5-0-a", f"hopformer-{os.getpid()}-5-0-a", "hopformer-x"]
    for name in (f"{mine}-0-a", "another", *stale):
        (tmp_path / name).touch()
    swept: list[str] = []
    monkeypatch.setattr(netns, "NAMESPACES", tmp_path)
    monkeypatch.setattr(netns, "delete", swept.extend)
    monkeypatch.setattr(
        netns.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, stdout="", stderr="")
    )
    netns.sweep()
    assert sorted(swept) == sorted(stale)


def test_a_long_cable_delays_ipv4_and_nothing_else() -> None:
    addresses = bytes(12)
    assert is_delayed(addresses + b"\x08\x00E")
    assert not is_delayed(addresses + b"\x08\x06") and not is_delayed(addresses + b"\x86\xdd") and not is_delayed(b"")
