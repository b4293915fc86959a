"""``hopformer generate`` from its flags to its output."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Hopformer = Callable[..., subprocess.CompletedProcess[str]]


def answer(hopformer: Hopformer, *arguments: object, stdin: str = "") -> dict[str, Any]:
    """What ``generate --json`` prints, which must be one line and all there is."""
    done = hopformer("generate", *arguments, "--json", stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def test_the_json_object_is_as_the_contract_says(hopformer: Hopformer, tiny_model: Path) -> None:
    found = answer(hopformer, tiny_model, "--prompt", "hello fox", "--max-tokens", 6, "--logprobs", 2)
    keys = ["text", "prompt_token_ids", "token_ids", "finish_reason", "logprobs", "timings", "route", "reroutes"]
    assert list(found) == keys
    assert found["finish_reason"] == "length" and len(found["token_ids"]) == 6
    assert found["route"] == [{"layers": "0:2", "peer": "local"}] and found["reroutes"] == 0
    assert all(len(step) == 2 and step[0][1] >= step[1][1] for step in found["logprobs"])
    assert [step[0][0] for step in found["logprobs"]] == found["token_ids"], "greedy takes the likeliest"
    timings = found["timings"]
    assert list(timings) == ["load_s", "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s"]
    assert all(value > 0 for value in timings.values())


def test_the_answer_is_that_of_transformers(hopformer: Hopformer, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    messages = [{"role": "user", "content": "hello fox"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, len(prompt) :].tolist()
    found = answer(hopformer, tiny_model, "--prompt", "hello fox", "--max-tokens", 20)
    assert found["prompt_token_ids"] == prompt
    assert found["token_ids"] == expected
    assert found["text"] == tokenizer.decode(expected)
    assert "logprobs" not in found


def test_a_prompt_is_the_same_from_everywhere(hopformer: Hopformer, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("hello fox\n")
    length = ("--max-tokens", 3)
    given = answer(hopformer, tiny_model, "--prompt", "hello fox", *length)
    ids = ",".join(map(str, given["prompt_token_ids"]))
    for other in (
        answer(hopformer, tiny_model, "--prompt-file", file, *length),
        answer(hopformer, tiny_model, *length, stdin="hello fox\n"),
        answer(hopformer, tiny_model, "--prompt-ids", ids, *length),
    ):
        assert other["prompt_token_ids"] == given["prompt_token_ids"]
        assert other["token_ids"] == given["token_ids"]


def test_a_raw_prompt_has_nothing_around_it(hopformer: Hopformer, tiny_model: Path) -> None:
    found = answer(hopformer, tiny_model, "--raw", "--max-tokens", 1, stdin="hello fox\n")
    assert found["prompt_token_ids"] == AutoTokenizer.from_pretrained(tiny_model).encode("hello fox\n")


def test_the_system_message_is_in_the_prompt(hopformer: Hopformer, tiny_model: Path) -> None:
    found = answer(hopformer, tiny_model, "--prompt", "hi", "--system", "be a fox", "--max-tokens", 1)
    shown = AutoTokenizer.from_pretrained(tiny_model).decode(found["prompt_token_ids"])
    assert shown.startswith("<|im_start|>system\nbe a fox<|im_end|>")


def test_stops_end_the_answer_and_are_never_in_its_text(hopformer: Hopformer, tiny_model: Path) -> None:
    whole = answer(hopformer, tiny_model, "--prompt", "hello", "--max-tokens", 12)
    by_ids = answer(
        hopformer, tiny_model, "--prompt", "hello", "--stop-ids", ",".join(map(str, whole["token_ids"][4:6]))
    )
    assert by_ids["finish_reason"] == "stop" and by_ids["token_ids"] == whole["token_ids"][:6]
    piece = whole["text"][3:5]
    by_text = answer(hopformer, tiny_model, "--prompt", "hello", "--stop", piece)
    assert by_text["finish_reason"] == "stop"
    assert by_text["text"] == whole["text"][: whole["text"].index(piece)]


def test_a_seed_repeats_the_text_and_another_changes_it(hopformer: Hopformer, tiny_model: Path) -> None:
    flags = (tiny_model, "--prompt", "hello", "--temperature", 1.5, "--max-tokens", 24)
    first, again, other = (answer(hopformer, *flags, "--seed", seed) for seed in (7, 7, 8))
    assert first["token_ids"] == again["token_ids"] != other["token_ids"]


def test_a_process_prints_the_same(hopformer: Hopformer, hopformer_process: Hopformer, tiny_model: Path) -> None:
    flags = ("generate", tiny_model, "--max-tokens", 9)
    expected = hopformer(*flags, "--prompt", "hello fox").stdout
    done = hopformer_process(*flags, stdin="hello fox\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_without_json_the_text_goes_to_stdout_and_ends_with_a_line_break(
    hopformer: Hopformer, tiny_model: Path
) -> None:
    expected = answer(hopformer, tiny_model, "--prompt", "hello", "--max-tokens", 9)["text"]
    done = hopformer("generate", tiny_model, "--prompt", "hello", "--max-tokens", 9)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected + "\n", "")


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_ctrl_c_keeps_what_was_said(tiny_model: Path, environment: dict[str, str], form: tuple[str, ...]) -> None:
    flags = [str(tiny_model), "--prompt", "hello", "--max-tokens", "100000", "--log-level", "info", *form]
    command = [sys.executable, "-m", "hopformer", "generate", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stderr is not None
    loaded = [process.stderr.readline() for _ in range(2)]
    assert "pages=" in loaded[-1]
    first = process.stdout.read(1) if not form else ""
    if form:
        wait_for_steps(process.pid)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    if form:
        assert json.loads(out)["finish_reason"] == "aborted" and json.loads(out)["token_ids"]
    else:
        assert first and out.endswith("\n")


def wait_for_steps(pid: int) -> None:
    """Until the process has computed for half a second more than now, as it does only in its steps."""

    def computed_s() -> float:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    start = computed_s()
    while computed_s() < start + 0.5:
        os.sched_yield()


def test_a_reader_that_goes_away_gets_no_traceback(tiny_model: Path, environment: dict[str, str]) -> None:
    flags = [str(tiny_model), "--prompt", "hello", "--max-tokens", "3000"]
    command = [sys.executable, "-m", "hopformer", "generate", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 1
