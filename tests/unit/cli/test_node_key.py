"""The key of a node, and what a command does where another process of this machine is that node now."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hopformer.cli.node_key import free_key, key_in_use, load_key
from hopformer.errors import IdentityError, UsageError

HOLD = """
import sys
from pathlib import Path
from hopformer.cli.node_key import key_in_use, load_key
path = Path(sys.argv[1])
load_key(path)
with key_in_use(path):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's own key is."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "hopformer" / "identity.pem"


@contextmanager
def another_node(path: Path) -> Iterator[None]:
    """A process that is the node with this key."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stdin is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield
        finally:
            process.stdin.close()


def test_a_key_is_made_on_first_use_and_stays(own: Path, tmp_path: Path) -> None:
    first = load_key(None)
    assert own.exists() and load_key(None).peer_id == first.peer_id == load_key(own).peer_id
    assert load_key(tmp_path / "other.pem").peer_id != first.peer_id


def test_a_caller_has_the_users_key_while_no_node_has_it(own: Path) -> None:
    with free_key(None) as found:
        assert found.peer_id == load_key(own).peer_id


def test_a_caller_beside_a_node_has_a_key_for_the_run(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="hopformer")
    with another_node(own), free_key(None) as found, free_key(None) as second:
        assert len({found.peer_id, second.peer_id, load_key(own).peer_id}) == 3
    assert f"peer={load_key(own).peer_id} runs on this machine" in caplog.text
    with free_key(None) as found:
        assert found.peer_id == load_key(own).peer_id, "the node has ended"


def test_two_callers_at_once_are_two_peers(own: Path) -> None:
    with free_key(None) as first, free_key(None) as second:
        assert first.peer_id == load_key(own).peer_id != second.peer_id


def test_a_key_that_was_named_is_not_replaced_by_another(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    words = rf"--identity {path} is the key of a node that runs"
    with another_node(path), pytest.raises(UsageError, match=words), free_key(path):
        pass
    with free_key(path) as found:
        assert found.peer_id == load_key(path).peer_id


def test_two_nodes_of_one_key_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "key.pem"
    load_key(path)
    with key_in_use(path):
        assert caplog.text == ""
    with another_node(path), key_in_use(path):
        assert "another node on this machine has the same key" in caplog.text


def test_a_damaged_key_is_told_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(b"damaged")
    path.chmod(0o600)
    with pytest.raises(IdentityError, match=r"key\.pem"), free_key(path):
        pass
    assert path.read_bytes() == b"damaged"
