"""What a row says of the checkout that ran."""

import subprocess
from pathlib import Path

import pytest

from hopformer.bench import machine
from hopformer.bench.machine import Machine


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bench/results").mkdir(parents=True)
    for name in ("source.py", "bench/results/rows.json"):
        (tmp_path / name).write_text("1\n", encoding="utf-8")
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "--no-gpg-sign", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    return tmp_path


def test_a_checkout_that_did_not_change_is_named_by_its_commit(checkout: Path) -> None:
    commit = Machine.here().commit
    assert commit is not None and len(commit) == 12 and int(commit, 16) >= 0


def test_results_that_were_written_make_no_checkout_dirty(checkout: Path) -> None:
    clean = Machine.here().commit
    (checkout / "bench/results/rows.json").write_text("2\n", encoding="utf-8")
    (checkout / "bench/results/other.json").write_text("2\n", encoding="utf-8")
    assert Machine.here().commit == clean


@pytest.mark.parametrize("is_staged", [False, True])
def test_a_source_that_changed_does(checkout: Path, is_staged: bool) -> None:
    clean = Machine.here().commit
    (checkout / "source.py").write_text("2\n", encoding="utf-8")
    if is_staged:
        subprocess.run(["git", "-C", str(checkout), "add", "."], check=True)
    assert Machine.here().commit == f"{clean}-dirty"


def test_what_is_no_checkout_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    assert Machine.here().commit is None
