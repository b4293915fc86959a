"""``hopformer relay`` and those who meet there: processes of their own, on QUIC, with no map or hardly one."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hopformer.net.grant import Role
from hopformer.net.invite import Token

PATIENCE_S = 120.0
EXIT_S = 5.0  # docs and contract: SIGTERM drains, and the process is gone by then
PROMPT = ["--prompt", "What is 2 plus 3?", "--json", "--ignore-eos", "--max-tokens", 20, "--dtype", "float32"]

Hopformer = Callable[..., subprocess.CompletedProcess[str]]


class Process:
    """A command that runs until it is told to end, and its ready line."""

    def __init__(self, environment: dict[str, str], folder: Path, *arguments: object) -> None:
        self.stderr = (folder / f"stderr-{time.monotonic_ns()}").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hopformer", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            env=environment,
            cwd=folder,
            text=True,
        )
        assert self.process.stdout is not None
        self.ready: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")
        assert self.ready, self.log()

    @property
    def peer_id(self) -> str:
        return self.ready["peer_id"]

    @property
    def pinned(self) -> str:
        """PEER_ID@HOST:PORT of a relay."""
        return f"{self.peer_id}@{self.ready['addrs'][0]}"

    def log(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read().decode()

    def end(self, number: signal.Signals) -> tuple[int, float]:
        """Its exit code, and the seconds until it was gone."""
        start = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S), time.monotonic() - start

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.stderr.close()


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """``start(...)`` runs a command and waits until it is ready; it ends with the test."""
    started: list[Process] = []

    def run(*arguments: object) -> Process:
        started.append(Process({**environment, "OMP_NUM_THREADS": "1"}, tmp_path, *arguments))
        return started[-1]

    yield run
    for one in started:
        one.close()


@pytest.fixture
def relay(start: Callable[..., Process]) -> Process:
    """A relay that is closed, as it is by default, with the user's own key."""
    return start("relay", "--listen", "127.0.0.1:0")


@pytest.fixture
def open_relay(start: Callable[..., Process]) -> Process:
    return start("relay", "--listen", "127.0.0.1:0", "--allow", "any", "--identity", "relay.pem")


@pytest.fixture
def serve(start: Callable[..., Process]) -> Callable[..., Process]:
    """``serve(name, layers, ...)``: a node of the demo model."""

    def run(name: str, layers: str, *arguments: object) -> Process:
        flags = "--layers", layers, "--identity", f"{name}.pem", "--dtype", "float32"
        return start("serve", "demo", *flags, *arguments)

    return run


def answered(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def is_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("hopformer: ") and done.stderr.count("\n") == 1, done.stderr
    for one in words:
        assert re.search(one, done.stderr), done.stderr


# ---- the relay itself


def test_a_relay_says_where_it_is_tells_its_figures_and_ends_with_0(start: Callable[..., Process]) -> None:
    flags = "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--identity", "relay.pem"
    first = start("relay", *flags)
    assert first.ready.keys() == {"ready", "peer_id", "addrs", "http"} and first.ready["ready"] is True
    assert re.fullmatch(r"127\.0\.0\.1:\d+", first.ready["addrs"][0])
    for path, words in (("metrics", "hopformer_relay_peers 0.0"), ("healthz", "ok")):
        with urllib.request.urlopen(f"http://{first.ready['http']}/{path}", timeout=10) as answer:
            assert words in answer.read().decode()
    code, seconds = first.end(signal.SIGTERM)
    assert code == 0 and seconds < EXIT_S and first.log() == ""
    second = start("relay", "--listen", first.ready["addrs"][0], "--identity", "relay.pem")
    assert (second.peer_id, second.ready["addrs"]) == (first.peer_id, first.ready["addrs"])
    assert second.ready["http"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--listen", "127.0.0.1"], 2, "--listen: '127.0.0.1' is no address"),
        (["--listen", "192.0.2.1:1"], 1, "cannot listen on 192.0.2.1:1"),
        (["--rate", "0"], 2, "--rate is 0"),
        (["--rate", "fast"], 2, "--rate"),
        (["--allow", "me"], 2, "--allow: 'me' is no peer id"),
        (["--network", "mine"], 2, "--network: 'mine' is no peer id"),
        (["--metrics", "nowhere"], 2, "--metrics: 'nowhere' is no address"),
        (["--metrics", "192.0.2.1:1"], 1, "--metrics 192.0.2.1:1 cannot be listened at"),
        (["demo"], 2, "unexpected extra argument"),
    ],
)
def test_what_a_relay_cannot_do_is_one_line(hopformer: Hopformer, arguments: list[str], code: int, words: str) -> None:
    listen = [] if "--listen" in arguments else ["--listen", "127.0.0.1:0"]
    is_one_line(hopformer("relay", *listen, "--identity", "relay.pem", *arguments), code, re.escape(words))


def test_a_damaged_key_is_one_line_and_stays(hopformer: Hopformer, tmp_path: Path) -> None:
    path = tmp_path / "relay.pem"
    path.write_bytes(b"damaged")
    path.chmod(0o600)
    is_one_line(hopformer("relay", "--listen", "127.0.0.1:0", "--identity", path), 1, "relay.pem")
    assert path.read_bytes() == b"damaged"


# ---- who meets there


@pytest.mark.slow
def test_without_a_map_two_nodes_at_a_relay_answer_as_one_machine(
    open_relay: Process, serve: Callable[..., Process], hopformer: Hopformer
) -> None:
    nodes = [serve("a", "0:4", "--relay", open_relay.pinned), serve("b", "4:8", "--relay", open_relay.pinned)]
    assert [one.ready["relays"] for one in nodes] == [[open_relay.pinned]] * 2
    expected = answered(hopformer("generate", *PROMPT))
    for relay in (open_relay.pinned, open_relay.ready["addrs"][0]):  # whoever answers there, if nobody is named
        found = answered(hopformer("generate", *PROMPT, "--relay", relay))
        assert found["token_ids"] == expected["token_ids"] and found["reroutes"] == 0
        assert [(one["layers"], one["peer"]) for one in found["route"]] == [
            ("0:4", nodes[0].peer_id),
            ("4:8", nodes[1].peer_id),
        ]


@pytest.mark.slow
def test_a_peer_of_whom_a_map_knows_a_relay_alone_is_reached(
    open_relay: Process, serve: Callable[..., Process], hopformer: Hopformer, tmp_path: Path
) -> None:
    node = serve("a", "0:8", "--relay", open_relay.pinned)
    content = {
        "version": 1,
        "model": {"name": "demo", "fingerprint": None},
        "peers": [{"peer_id": node.peer_id, "addrs": [], "relay": open_relay.pinned}],
        "routes": [{"layers": "0:8", "peer_id": node.peer_id}],
    }
    path = tmp_path / "map.json"
    path.write_text(json.dumps(content))
    found = answered(hopformer("generate", *PROMPT, "--blocks-map", path))
    assert found["route"] == [{"layers": "0:8", "peer": node.peer_id}]
    assert found["token_ids"] == answered(hopformer("generate", *PROMPT))["token_ids"]


@pytest.mark.slow
def test_a_node_that_dies_is_listed_no_longer(
    open_relay: Process, serve: Callable[..., Process], hopformer: Hopformer
) -> None:
    def listed() -> list[str]:
        return [one["peer_id"] for one in answered(hopformer(*command))["peers"]]

    command = "peers", "--json", "--relay", open_relay.pinned
    nodes = [serve("a", "0:8", "--relay", open_relay.pinned), serve("b", "0:8", "--relay", open_relay.pinned)]
    assert set(listed()) == {one.peer_id for one in nodes}
    nodes[0].process.kill()
    deadline = time.monotonic() + PATIENCE_S
    while listed() != [nodes[1].peer_id]:
        assert time.monotonic() < deadline, "a dead node is still listed"
    nodes[1].end(signal.SIGTERM)
    assert listed() == []


@pytest.mark.slow
def test_nobody_at_a_relay_is_said_with_what_there_is_instead(
    open_relay: Process, serve: Callable[..., Process], hopformer: Hopformer
) -> None:
    serve("a", "0:4", "--relay", open_relay.pinned)
    brief = *PROMPT, "--reroute-timeout", "2"
    done = hopformer("generate", *brief, "--relay", open_relay.pinned)
    is_one_line(done, 1, "nobody serves layers 4:8 of demo")
    nobody = f"{open_relay.peer_id}@127.0.0.1:9"
    is_one_line(hopformer("generate", *brief, "--relay", nobody), 1, "relay 127.0.0.1:9: no node listens there")
    other = open_relay.pinned.replace(open_relay.peer_id, serve("b", "0:4", "--relay", open_relay.pinned).peer_id)
    done = hopformer("generate", *brief, "--relay", other)
    is_one_line(done, 1, f"another key answers there: {open_relay.peer_id}")


# ---- a closed network


class Invites:
    """``hopformer invite`` of the relay's own user: tokens in files."""

    def __init__(self, hopformer: Hopformer, relay: Process, folder: Path) -> None:
        self._run = hopformer
        self._relay = relay
        self._folder = folder

    def make(self, role: str, *arguments: object) -> tuple[Path, str]:
        """The file with the token, and the serial."""
        path = self._folder / f"{role}-{time.monotonic_ns()}.token"
        flags = "--role", role, "--relay", self._relay.ready["addrs"][0], "--output", path
        done = self._run("invite", *flags, *arguments)
        assert (done.returncode, done.stdout) == (0, "")
        found = re.search(r"invite ([0-9a-f]{16}),", done.stderr)
        assert found is not None
        return path, found[1]

    def revoke(self, what: str) -> None:
        assert self._run("invite", "revoke", what).returncode == 0


@pytest.fixture
def invites(hopformer: Hopformer, relay: Process, tmp_path: Path) -> Invites:
    return Invites(hopformer, relay, tmp_path)


@pytest.mark.slow
def test_in_a_closed_network_members_chat_and_nobody_else_until_they_are_revoked(
    relay: Process,
    invites: Invites,
    serve: Callable[..., Process],
    hopformer: Hopformer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serving, _ = invites.make("serve")
    nodes = [serve("a", "0:4", "--join", serving), serve("b", "4:8", "--join", serving)]
    assert [one.ready["relays"] for one in nodes] == [[relay.pinned]] * 2
    chatting, serial = invites.make("chat")
    found = answered(hopformer("generate", *PROMPT, "--join", chatting))
    assert [one["peer"] for one in found["route"]] == [one.peer_id for one in nodes]
    assert found["token_ids"] == answered(hopformer("generate", *PROMPT))["token_ids"]

    is_one_line(hopformer("generate", *PROMPT, "--relay", relay.pinned), 1, "must join with a token")
    invites.revoke(serial)
    is_one_line(hopformer("generate", *PROMPT, "--join", chatting), 1, f"the invite {serial} .*was revoked")
    other, _ = invites.make("chat")
    monkeypatch.setenv("HOPFORMER_TOKEN", other.read_text().strip())
    assert answered(hopformer("generate", *PROMPT))["route"] == found["route"]


@pytest.mark.slow
def test_a_token_that_does_not_let_in_is_one_line_that_says_why(
    invites: Invites, hopformer: Hopformer, tmp_path: Path
) -> None:
    good, _ = invites.make("chat")
    brief, _ = invites.make("chat", "--expires", "1s")
    text = good.read_text().strip()
    found = Token.parse(text, time.time())
    forged = replace(found, grant=replace(found.grant, role=Role.SERVE)).text()
    words = {text[:-9]: "the token is damaged", forged: "the token is forged", "no token at all": "this is no token"}
    for name, content in enumerate(words):
        path = tmp_path / f"{name}.token"
        path.write_text(content)
        path.chmod(0o600)
        done = hopformer("generate", *PROMPT, "--join", path)
        is_one_line(done, 1, words[content])
        assert text[4:40] not in done.stderr
    time.sleep(1.5)
    is_one_line(hopformer("generate", *PROMPT, "--join", brief), 1, "the token expired at")
    is_one_line(hopformer("serve", "demo", "--join", brief), 1, "the token expired at")
    is_one_line(hopformer("chat", "--join", "nowhere"), 2, "neither a token")
