"""What the commands do before any model is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from hopformer import __version__
from hopformer.cli import flags
from hopformer.cli.app import run
from hopformer.net import PeerId


@pytest.fixture(autouse=True)
def logging_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "configure_logging", lambda level, style: None)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"hopformer {__version__}\n"


def test_without_a_command_the_help_is_shown_and_the_usage_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    out = capsys.readouterr().out
    assert all(name in out for name in ("chat", "generate", "pull", "id", "doctor"))


def test_commands_that_do_not_exist_yet_are_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert not any(f"│ {name} " in out for name in ("api",))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chatt"], "No such command 'chatt'"),
        (["generate", "--nope"], "No such option: --nope"),
        (["generate", "--temperature", "warm"], "--temperature"),
        (["generate", "--temperature"], "requires an argument"),
        (["chat", "a", "b"], "unexpected extra argument"),
        (["generate", "--log-level", "loud"], "--log-level"),
        (["pull"], "Missing argument 'REPO'"),
        (["pull", "org/name", "--layers", "4"], "--layers '4'"),
        (["generate", "--prompt", "a", "--prompt-ids", "1"], "exclude each other"),
        (["generate", "--prompt", "a", "--logprobs", "3"], "--json"),
        (["generate", "--prompt", "a", "--max-tokens", "0"], "--max-tokens is 0"),
        (["generate", "--prompt", "a", "--raw", "--template", "chatml"], "--template"),
        (["chat", "--stop", ""], "--stop is empty"),
        (["chat", "--stop-ids", "a"], "--stop-ids 'a'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("hopformer: ") and err.count("\n") == 1
    assert words in err


def test_the_peer_id_is_the_same_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "key.pem")
    assert run(["id", "--identity", path]) == run(["id", "--identity", path]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second == str(PeerId.parse(first))


def test_the_key_is_in_the_config_folder_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert run(["id"]) == 0
    assert (tmp_path / "hopformer" / "identity.pem").is_file()
    assert PeerId.parse(capsys.readouterr().out.strip())


def test_a_damaged_key_fails_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "key.pem"
    path.write_text("no key")
    path.chmod(0o600)
    assert run(["id", "--identity", str(path)]) == 1
    assert str(path) in capsys.readouterr().err


def test_help_and_id_wait_for_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from hopformer.cli.app import run; run(['--help']); run(['generate', '--help']);"
        f"run(['id', '--identity', {str(tmp_path / 'key.pem')!r}]);"
        "sys.exit(bool({'torch', 'tokenizers', 'prompt_toolkit', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
