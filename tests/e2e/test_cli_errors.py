"""What a command prints and exits with when something is wrong."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Hopformer = Callable[..., subprocess.CompletedProcess[str]]


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith("hopformer: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_a_folder_that_is_not_there_is_named(hopformer_process: Hopformer) -> None:
    assert_one_line(hopformer_process("chat", "./no-such-folder"), 1, "./no-such-folder")


def test_a_folder_without_a_model_is_named(hopformer: Hopformer, tmp_path: Path) -> None:
    assert_one_line(hopformer("generate", tmp_path, "--prompt", "a"), 1, "config.json")


def test_a_hub_id_that_cannot_be_fetched_is_named(hopformer_process: Hopformer) -> None:
    assert_one_line(hopformer_process("pull", "nobody/nothing"), 1, "nobody/nothing")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--device", "tpu"), ("--device", "tpu")),
        (("--dtype", "int3"), ("--dtype", "int3")),
        (("--kv-dtype", "int3"), ("--kv-dtype", "int3")),
        (("--quantize", "int3"), ("--quantize", "int3")),
        (("--max-context", "1"), ("--max-context",)),
        (("--max-context", "100000"), ("--max-context", "4096")),
        (("--temperature", "-1"), ("temperature", "-1")),
        (("--top-p", "1.5"), ("top_p", "1.5")),
        (("--prompt-ids", "5,9999"), ("9999",)),
    ],
)
def test_a_flag_that_means_nothing_exits_with_2(
    hopformer: Hopformer, tiny_model: Path, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    prompt = () if "--prompt-ids" in flags else ("--prompt", "a")
    assert_one_line(hopformer("generate", tiny_model, *prompt, *flags), 2, *words)


def test_a_template_that_does_not_exist_is_named(hopformer: Hopformer, tiny_model: Path) -> None:
    done = hopformer("generate", tiny_model, "--prompt", "a", "--template", "nonsense")
    assert done.returncode in (1, 2)
    assert_one_line(done, done.returncode, "nonsense")


def test_a_gpu_that_is_not_there_exits_with_1(hopformer: Hopformer, tiny_model: Path) -> None:
    assert_one_line(hopformer("generate", tiny_model, "--prompt", "a", "--device", "cuda:97"), 1, "cuda:97")


def test_a_prompt_beyond_the_context_says_so(hopformer: Hopformer, tiny_model: Path) -> None:
    done = hopformer("generate", tiny_model, "--prompt", "fox " * 50, "--max-context", "32")
    assert_one_line(done, 2, "32", "--max-context")


def test_damaged_weights_are_one_line_with_the_file(hopformer: Hopformer, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert_one_line(hopformer("chat", folder), 1, "model.safetensors")


def test_debug_shows_the_traceback(hopformer: Hopformer) -> None:
    done = hopformer("chat", "./no-such-folder", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and done.stderr.splitlines()[-1].startswith("hopformer: ")


def test_logs_go_to_stderr_as_json_when_asked(hopformer: Hopformer, tiny_model: Path) -> None:
    flags = ("--prompt", "a", "--max-tokens", 1, "--log-level", "info", "--log-format", "json", "--json")
    done = hopformer("generate", tiny_model, *flags)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines and all(line["level"] == "info" for line in lines)
    assert json.loads(done.stdout)["token_ids"]


def test_pull_prints_the_folder_of_what_is_here(hopformer: Hopformer, tiny_model: Path) -> None:
    done = hopformer("pull", tiny_model)
    assert (done.returncode, done.stdout) == (0, f"{tiny_model}\n")
