"""The files in deploy/ say what the command line understands, and install what a relay needs."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

import hopformer
from hopformer.cli.app import app

ROOT = Path(hopformer.__file__).parent
UNIT = (ROOT / "deploy" / "hopformer-relay.service").read_text()
CONTAINER = (ROOT / "deploy" / "Containerfile").read_text()

WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from hopformer.cli.app import run
sys.exit(run(["relay", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--identity", sys.argv[2]]))
"""


def commands_of(text: str) -> list[list[str]]:
    """What is behind ``hopformer`` in each command of a file, its comments included."""
    lines = re.sub(r"\\\n#?", " ", text).splitlines()
    found = [match[1] for line in lines if (match := re.search(r"(?:^|[\s/=])hopformer ((?:relay|invite) .*)$", line))]
    found += [" ".join(json.loads(line)[1:]) for line in re.findall(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)]
    return [shlex.split(words) for words in found]


@pytest.mark.parametrize(("text", "count"), [(UNIT, 2), (CONTAINER, 2)], ids=["unit", "container"])
def test_every_command_and_flag_is_understood(text: str, count: int) -> None:
    found = commands_of(text)
    assert len(found) == count and {words[0] for words in found} == {"relay", "invite"}
    for name, *words in found:
        one = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        one.make_context(name, words)  # parses all of it, and calls nothing


def test_a_flag_that_is_none_would_be_noticed() -> None:
    ((_, *words), *_) = commands_of(UNIT.replace("--metrics", "--metric-s"))
    with pytest.raises(Exception, match="No such option"):
        typer.main.get_command(app).commands["relay"].make_context("relay", words)  # type: ignore[attr-defined]


def test_both_listen_where_the_documents_say_and_keep_their_keys_where_nobody_else_reads() -> None:
    assert "0.0.0.0:4711" in UNIT and "EXPOSE 4711/udp" in CONTAINER
    assert "XDG_CONFIG_HOME=%S/hopformer-relay" in UNIT and "StateDirectory=hopformer-relay" in UNIT
    assert "ENV XDG_CONFIG_HOME=/var/lib/hopformer\n" in CONTAINER and "VOLUME /var/lib/hopformer\n" in CONTAINER
    assert re.search(r"^USER hopformer$", CONTAINER, re.MULTILINE)


def dependencies() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])


def installed() -> set[str]:
    return set(re.findall(r'^    "(.*?)"', CONTAINER, re.MULTILINE))


def test_the_container_has_the_packages_versions() -> None:
    assert installed() and installed() <= dependencies()


def test_a_relay_runs_without_the_packages_that_the_container_lacks(tmp_path: Path) -> None:
    left_out = {re.split(r"[<>=;]", one)[0].replace("-", "_") for one in dependencies() - installed()}
    assert {"torch", "triton", "numpy", "aioice", "zeroconf"} <= left_out
    command = [sys.executable, "-P", "-c", WITHOUT, ",".join(left_out), str(tmp_path / "relay.pem")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        ready = process.stdout.readline()
        process.terminate()
        assert ready, process.stderr.read()
        assert json.loads(ready)["ready"] and process.wait(60) == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not there")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "hopformer-relay.service"
    unit.write_text(UNIT.replace("/opt/hopformer/bin/hopformer", sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "hopformer-relay" not in done.stderr, done.stderr
