"""``hopformer map plan --explain``: what it says of routes that can be added up by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from hopformer.cli.app import run
from hopformer.net.identity import PeerId

A, B = (str(PeerId(bytes([index]) * 22)) for index in (1, 2))


def one(peer_id: str, memory_gib: float, layers_per_s: float, **more: Any) -> dict[str, Any]:
    return {"peer_id": peer_id, "memory_gib": memory_gib, "layers_per_s": layers_per_s, **more}


def peer(peer_id: str, memory_gib: float, layers_per_s: float, **more: Any) -> dict[str, Any]:
    return one(peer_id, memory_gib, layers_per_s, addrs=["127.0.0.1:4000"], **more)


def explained(tmp_path: Path, capsys: pytest.CaptureFixture[str], *peers: dict[str, Any]) -> list[str]:
    """The lines below the drawing; the demo model has 8 layers, of which 0.004 GiB hold 3."""
    (tmp_path / "peers.json").write_text(json.dumps({"peers": peers}))
    arguments = ["map", "plan", str(tmp_path / "peers.json"), "--explain"]
    assert run([*arguments, "--output", str(tmp_path / "map.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = lines[next(index for index, line in enumerate(lines) if "one session decodes" in line) :]
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out == (tmp_path / "map.json").read_text() and captured.err.splitlines()[1:] == found
    return found


def test_a_route_of_two_hops_has_its_parts_and_its_bottleneck(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = explained(tmp_path, capsys, one("self", 0.004, 1000), peer(A, 0.007, 500, rtt_ms=9.5))
    assert lines[:4] == [
        "demo, 8 layers: one session decodes 43.5 tokens/s, 23.0 ms a token",
        "hop           layers  a layer  in layers  network  together",
        "self          0:3     1.00 ms    3.00 ms  0.00 ms   3.00 ms  13%",
        f"{A[:10]}..  3:8     2.00 ms    10.0 ms  10.0 ms   20.0 ms  87%, the bottleneck",
    ]
    assert lines[4] == "no machine has room for all 8 layers"
    assert lines[5].startswith("self has room for 3 of 8 layers; with all of them it would run 125.0 tokens/s alone")
    assert len(lines) == 6


def test_one_machine_alone_is_told_when_it_would_be_faster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = peer(A, 0.004, 5000, rtt_ms=50), peer(B, 0.007, 5000, rtt_ms=50)
    lines = explained(tmp_path, capsys, one("self", 1, 100), *far)
    assert lines[-2] == (
        "self alone runs all 8 layers, which is fastest; over several machines it would be 9.7 tokens/s"
    )
    lines = explained(tmp_path, capsys, one("self", 1, 100), peer(A, 0.004, 5000, rtt_ms=5))
    assert lines[-2] == "self alone would run all 8 layers at 12.5 tokens/s; this route gives 17.8, which is faster"
    assert [line.split()[0] for line in lines[2:4]] == ["self", f"{A[:10]}.."]


def test_a_route_that_is_one_machine_says_so_and_a_missing_round_trip_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = explained(tmp_path, capsys, one("self", 1, 800), peer(A, 0.004, 100))
    assert lines[0] == "demo, 8 layers: one session decodes 100.0 tokens/s, 10.0 ms a token"
    assert lines[-2] == "self alone runs all 8 layers, which is fastest"
    assert lines[-1] == f"no round trip is given for {A[:10]}.., and counts as 0: add rtt_ms"


def test_a_negative_round_trip_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "peers.json").write_text(json.dumps({"peers": [one("self", 1, 1, rtt_ms=-1)]}))
    assert run(["map", "plan", str(tmp_path / "peers.json")]) == 1
    assert "peers[0]: rtt_ms is 0 or more" in capsys.readouterr().err
