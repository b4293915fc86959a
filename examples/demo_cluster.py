"""Three nodes on this machine serve the demo model; one dies in the middle of an answer, and the answer goes on.

    make demo-cluster

runs the commands that the README shows, each as a process of its own, and shows them as it goes.
"""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOPFORMER = str(Path(sys.executable).with_name("hopformer"))
NODES = {"a": "0:4", "b": "4:8", "c": "4:8"}  # c is b's replica
READY_S = 60.0
QUESTION = "Tell me a story."
TOKENS = 120


def main() -> int:
    """Run it; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="hopformer-cluster-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        nodes = {node: start_node(folder, node, layers, stack) for node, layers in NODES.items()}
        for node, process in nodes.items():
            wait_until_ready(folder / f"{node}.json", process)
        files = [str(folder / f"{node}.json") for node in NODES]
        show("map", "join", *(f"{node}.json" for node in NODES), "--output", "map.json")
        subprocess.run([HOPFORMER, "map", "join", *files, "--output", str(folder / "map.json")], check=True)
        alone, _ = generate(folder, None, None)
        print(f"\nall {TOKENS} tokens on one node alone:\n{indented(alone['text'])}")
        answer, killed = generate(folder, folder / "map.json", nodes)
        print(f"\nthe same over three nodes; {killed} was killed in the middle:\n{indented(answer['text'])}")
        route = ", ".join(f"{hop['layers']} on {hop['peer'][:10]}.." for hop in answer["route"])
        print(f"\nroute at the end: {route}; reroutes: {answer['reroutes']}")
        same = alone["token_ids"] == answer["token_ids"]
        print("token for token the same" if same else "the answers differ")
        return 0 if same and answer["reroutes"] else 1


def show(*words: str) -> None:
    """Print a command."""
    print(f"$ hopformer {' '.join(words)}", flush=True)


def indented(text: str) -> str:
    """The text, set off."""
    return "\n".join(f"    {line}" for line in text.strip().splitlines())


def start_node(folder: Path, node: str, layers: str, stack: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    """A serving process, whose ready line goes to NODE.json; it ends with the stack."""
    words = ["serve", "--layers", layers, "--dtype", "float32", "--identity"]
    show(*words, f"{node}.pem", ">", f"{node}.json", "&")
    ready = stack.enter_context((folder / f"{node}.json").open("wb"))
    process = subprocess.Popen([HOPFORMER, *words, str(folder / f"{node}.pem")], stdout=ready)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process


def wait_until_ready(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Return once the node has said that it answers."""
    end = time.monotonic() + READY_S
    while not path.read_text(encoding="utf-8").endswith("\n"):
        if process.poll() is not None or time.monotonic() > end:
            sys.exit(f"node {path.stem} did not start")
        time.sleep(0.05)


def generate(
    folder: Path, blocks_map: Path | None, nodes: dict[str, subprocess.Popen[bytes]] | None
) -> tuple[dict, str]:
    """One answer as JSON, and which node was killed in its middle, if there are nodes."""
    words = ["generate", "--prompt", QUESTION, "--max-tokens", str(TOKENS), "--ignore-eos", "--dtype", "float32"]
    hidden = ["--json"]
    if blocks_map is not None:
        words += ["--blocks-map", "map.json"]
        hidden += ["--identity", str(folder / "me.pem")]
    show(*(f'"{word}"' if " " in word else word for word in words))
    with subprocess.Popen([HOPFORMER, *words, *hidden], stdout=subprocess.PIPE, cwd=folder) as process:
        killed = "" if nodes is None else kill_the_busy_one(folder, nodes, process)
        output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"generate ended with {process.returncode}")
    return json.loads(output), killed


def kill_the_busy_one(folder: Path, nodes: dict[str, subprocess.Popen[bytes]], asking: subprocess.Popen[bytes]) -> str:
    """Kill -9 whichever of b and c computes, seen by the processor time that it uses, once an answer is under way."""
    import psutil

    before = {node: psutil.Process(nodes[node].pid).cpu_times().user for node in ("b", "c")}
    while asking.poll() is None:
        used = {node: psutil.Process(nodes[node].pid).cpu_times().user - start for node, start in before.items()}
        busy = max(used, key=used.__getitem__)
        if used[busy] > 0.1:  # some tokens of the answer
            nodes[busy].send_signal(signal.SIGKILL)
            print(f"(kill -9 of node {busy})", flush=True)
            return busy
        time.sleep(0.02)
    return "nobody"


if __name__ == "__main__":
    sys.exit(main())
