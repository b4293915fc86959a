"""``hopformer map``: plan, check and show."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hopformer.cli.app import run
from hopformer.cli.map_drawing import draw_map, short_id
from hopformer.net.blocks_map import BlocksMap, MapModel, MapPeer, MapRoute
from hopformer.net.identity import PeerId

A, B = (str(PeerId(bytes([index]) * 22)) for index in range(2))

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write(*routes)`` writes a map of the demo model, 8 layers, and says where."""

    def write(*routes: tuple[str, str], model: str = "demo") -> str:
        peers = [{"peer_id": peer, "addrs": ["127.0.0.1:4000"], "relay": None} for peer in (A, B)]
        listed = [{"layers": layers, "peer_id": peer} for layers, peer in routes]
        content = {"version": 1, "model": {"name": model, "fingerprint": None}, "peers": peers, "routes": listed}
        path = tmp_path / "map.json"
        path.write_text(json.dumps(content))
        return str(path)

    return write


def test_a_sound_map_passes(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(("0:4", A), ("4:8", "self"), ("4:8", B))
    assert run(["map", "check", path]) == 0
    assert capsys.readouterr() == (f"{path}: all 8 layers are served, 2 peers\n", "")


def test_every_fault_has_its_line(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(("0:3", A), ("5:9", B), ("7:6", A), ("0:1", "x" * 40))
    assert run(["map", "check", path]) == 1
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 4 and all(line.startswith(f"hopformer: {path}: ") for line in lines)
    for found in ("5:9 are out of range", "'7:6' is no range", f"peer {'x' * 40} is unknown", "3:5 are a hole"):
        assert found in err


def test_overlaps_of_two_peers_are_told_and_pass(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(("0:5", A), ("4:8", B))
    assert run(["map", "check", path]) == 0
    assert "layers 4:5 overlap" in capsys.readouterr().out


def test_the_end_of_an_unknown_model_is_asked_for(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(("0:4", A), model="nobody/knows-it")
    assert run(["map", "check", path]) == 0
    assert "as far as can be told without its model" in capsys.readouterr().out
    assert run(["map", "check", path, "--model", "demo"]) == 1
    assert "layers 4:8 are a hole" in capsys.readouterr().err
    assert run(["map", "check", path, "--model", "nobody/knows-it"]) == 1
    assert "is not on this machine" in capsys.readouterr().err


def test_show_draws_even_what_has_faults(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(("0:3", A), ("2:6", "self"))
    assert run(["map", "show", path]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "demo, 8 layers",
        f"{A[:10]}..  0:3  ###.....  127.0.0.1:4000",
        "self          2:6  ..####..",
        "served by          112111!!",
    ]
    assert "has 1 faults; hopformer map check" in err


def test_a_plan_is_a_map_that_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peers = [
        {"peer_id": "self", "memory_gib": 0.004, "layers_per_s": 900},
        {"peer_id": A, "addrs": ["127.0.0.1:4000"], "memory_gib": 1, "layers_per_s": 300},
        {"peer_id": B, "addrs": ["127.0.0.1:4001"], "memory_gib": 0.004, "layers_per_s": 100},
    ]
    (tmp_path / "peers.json").write_text(json.dumps({"peers": peers}))
    made = tmp_path / "made.json"
    assert run(["map", "plan", str(tmp_path / "peers.json"), "--output", str(made)]) == 0
    drawn = capsys.readouterr().out
    assert run(["map", "check", str(made)]) == 0
    assert run(["map", "plan", str(tmp_path / "peers.json")]) == 0
    out = capsys.readouterr().out
    assert made.read_text() in out and drawn.startswith("demo, 8 layers\nself ")
    plan = json.loads(made.read_text())
    assert [route["peer_id"] for route in plan["routes"]] == ["self", A, B]
    assert len(plan["model"]["fingerprint"]) == 64


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "no list of peers"),
        ('{"peers": [{"peer_id": "self"}]}', "missing required field `memory_gib`"),
        ('{"peers": [{"peer_id": "self", "memory_gib": 1, "layers_per_s": 0}]}', "layers_per_s above 0"),
        ('{"peers": [{"peer_id": "self", "memory_gib": 0.001, "layers_per_s": 1}]}', "room for 0 of 8 layers"),
        ('{"peers": [{"peer_id": "abc", "memory_gib": 1, "layers_per_s": 1}]}', "is no peer id"),
    ],
)
def test_a_wrong_list_of_peers_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, fault: str
) -> None:
    (tmp_path / "peers.json").write_text(content)
    assert run(["map", "plan", str(tmp_path / "peers.json")]) == 1
    assert fault in capsys.readouterr().err


def test_a_large_model_has_several_layers_in_a_character() -> None:
    routes = (MapRoute("0:63", A), MapRoute("63:126", "self"), MapRoute("x", B))
    lines = draw_map(BlocksMap(1, MapModel("big"), (MapPeer(A, ("h:1",)),), routes), 126)
    assert lines[0] == "big, 126 layers, 2 in a character"
    assert lines[1].split()[2] == "#" * 31 + "+" + "." * 31 and lines[2].split()[2] == "." * 31 + "+" + "#" * 31
    assert lines[3].split()[-1] == "1" * 63
    assert short_id("self") == "self" and short_id(A) == f"{A[:10]}.."
