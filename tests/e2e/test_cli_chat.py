"""``hopformer chat`` over pipes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Hopformer = Callable[..., subprocess.CompletedProcess[str]]
SHORT = ("--max-tokens", "8")


def test_every_line_is_a_turn_and_only_answers_are_on_stdout(hopformer: Hopformer, tiny_model: Path) -> None:
    once = hopformer("chat", tiny_model, *SHORT, stdin="hello fox\n")
    twice = hopformer("chat", tiny_model, *SHORT, stdin="hello fox\n\n   \nand again\n")
    assert once.returncode == twice.returncode == 0
    assert once.stdout.endswith("\n") and len(once.stdout) > 1
    assert twice.stdout.startswith(once.stdout) and len(twice.stdout) > len(once.stdout)


def test_the_first_answer_is_that_of_generate(hopformer: Hopformer, tiny_model: Path) -> None:
    generated = hopformer("generate", tiny_model, *SHORT, "--prompt", "hello fox")
    chatted = hopformer("chat", tiny_model, *SHORT, stdin="hello fox\n")
    assert chatted.stdout == generated.stdout


def test_a_process_answers_line_by_line_while_its_stdin_is_open(tiny_model: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "hopformer", "chat", str(tiny_model), "--stop", "\n", *SHORT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        for _ in range(2):
            process.stdin.write("hello\n")
            process.stdin.flush()
            assert process.stdout.readline().endswith("\n")
        process.stdin.close()
        assert (process.stdout.read(), process.stderr.read(), process.wait(timeout=60)) == ("", "", 0)


def test_the_last_line_needs_no_line_break_and_nothing_at_all_is_fine(hopformer: Hopformer, tiny_model: Path) -> None:
    assert hopformer("chat", tiny_model, *SHORT, stdin="hello").stdout.endswith("\n")
    empty = hopformer("chat", tiny_model, stdin="")
    assert (empty.returncode, empty.stdout, empty.stderr) == (0, "", "")


def test_commands_work_and_speak_on_stderr(hopformer: Hopformer, tiny_model: Path, tmp_path: Path) -> None:
    lines = ["help", "peers", "/connect abc 127.0.0.1:1", "/nonsense", "save ../up", "load absent", "clear"]
    done = hopformer("chat", tiny_model, stdin="\n".join(lines) + "\n")
    assert (done.returncode, done.stdout) == (0, "")
    for words in ("save FILE", "local 0:2", "on this machine", "/nonsense", "up", "absent", "empty"):
        assert words in done.stderr
    assert list(tmp_path.glob("**/up")) == []


def test_exit_leaves_what_follows_unread(hopformer: Hopformer, tiny_model: Path) -> None:
    for leaving in ("exit", "/quit"):
        done = hopformer("chat", tiny_model, *SHORT, stdin=f"{leaving}\nhello\n")
        assert (done.returncode, done.stdout) == (0, "")


def test_a_saved_conversation_goes_on_where_it_was(hopformer: Hopformer, tiny_model: Path, tmp_path: Path) -> None:
    whole = hopformer("chat", tiny_model, *SHORT, stdin="hello fox\nsave talk.csv\nwhat then?\n")
    saved = (tmp_path / "talk.csv").read_text()
    assert all(part.isdigit() for part in saved.strip().split(",")) and saved.strip().count("\n") == 0
    resumed = hopformer("chat", tiny_model, *SHORT, stdin="load talk.csv\nwhat then?\n")
    assert resumed.returncode == 0
    assert resumed.stdout and whole.stdout.endswith(resumed.stdout)


def test_after_clear_the_first_answer_comes_again(hopformer: Hopformer, tiny_model: Path) -> None:
    once = hopformer("chat", tiny_model, *SHORT, stdin="hello\n").stdout
    assert hopformer("chat", tiny_model, *SHORT, stdin="hello\nclear\nhello\n").stdout == once * 2


def test_a_full_context_is_said_and_the_conversation_is_kept(
    hopformer: Hopformer, tiny_model: Path, tmp_path: Path
) -> None:
    stdin = "hello\n" + "fox " * 60 + "\nsave kept.csv\nclear\nhello\n"
    done = hopformer("chat", tiny_model, "--max-context", "64", "--max-tokens", "8", stdin=stdin)
    first = hopformer("chat", tiny_model, "--max-context", "64", "--max-tokens", "8", stdin="hello\n").stdout
    assert done.returncode == 1, "a turn got no answer"
    assert "the context holds 64" in done.stderr and "clear" in done.stderr
    assert done.stdout == first * 2
    assert (tmp_path / "kept.csv").read_text().count(",") > 8


def test_an_answer_that_fills_the_context_says_so(hopformer: Hopformer, tiny_model: Path) -> None:
    done = hopformer("chat", tiny_model, "--max-context", "40", stdin="hello\n")
    assert done.returncode == 0 and len(done.stdout) > 1
    assert "the context of 40 tokens is full" in done.stderr


def test_bytes_that_are_no_text_do_not_end_the_chat(hopformer: Hopformer, tiny_model: Path) -> None:
    done = hopformer("chat", tiny_model, *SHORT, stdin="a\udcff\nhello\n")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("\n") >= 2


def test_doctor_as_json_says_whether_chat_would_run(hopformer: Hopformer) -> None:
    done = hopformer("doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ready"] else 1)
    assert {"name", "ok", "found", "advice", "required"} == set(report["checks"][0])
