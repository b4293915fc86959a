"""What doctor finds."""

import builtins
import json
from typing import Any

import pytest

from hopformer.cli import doctor as doctor_module
from hopformer.cli.doctor import Check, doctor, examine


def find(name: str) -> Check:
    return next(check for check in examine() if check.name == name)


def test_this_machine_can_run_what_its_tests_run() -> None:
    assert all(find(name).ok for name in ("python", "packages", "torch", "cpu", "memory"))


def test_the_exit_code_says_whether_chat_would_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Check("gpu", False, "none", "the CPU serves"), Check("torch", True, "2", required=True)]
    monkeypatch.setattr(doctor_module, "examine", lambda: iter(found))
    assert doctor(as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "missing  gpu          none; the CPU serves",
        "ok       torch        2",
        "hopformer chat would run",
    ]
    found.append(Check("demo model", False, "gone", "install again", required=True))
    assert doctor(as_json=True) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ready"] is False
    assert report["checks"][-1]["name"] == "demo model" and report["checks"][-1]["advice"] == "install again"


def test_a_missing_package_is_named_with_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_PACKAGES", ("rich", "no-such-package-here"))
    check = find("packages")
    assert not check.ok and check.required
    assert check.advice == "run: pip install no-such-package-here"


def test_without_torch_the_rest_is_still_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_torch(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    checks = {check.name: check for check in examine()}
    assert not checks["torch"].ok and checks["torch"].required
    assert {"memory", "demo model", "terminal"} <= set(checks)


def test_too_little_memory_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_ENOUGH_BYTES", 2**60)
    assert not find("memory").ok


def test_a_demo_model_without_weights_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_DEMO_FILES", ("no-such-file.safetensors",))
    check = find("demo model")
    assert not check.ok and "no-such-file.safetensors" in check.found
