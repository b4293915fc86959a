"""`hopformer map join`: from the ready lines of nodes to a map that routes can be found in."""

import json
from pathlib import Path

import pytest

from hopformer.cli.map_join import join
from hopformer.errors import BlocksMapError
from hopformer.net import Identity
from hopformer.net.blocks_map import load_blocks_map


def ready(folder: Path, name: str, layers: str) -> Path:
    """A file with what `serve` prints first."""
    peer_id = str(Identity.generate().peer_id)
    line = {"ready": True, "peer_id": peer_id, "addrs": ["127.0.0.1:4000"], "layers": layers, "http": None}
    path = folder / name
    path.write_text(json.dumps(line) + "\nand whatever comes after\n", encoding="utf-8")
    return path


def test_a_map_has_every_node_that_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [ready(tmp_path, "a", "0:4"), ready(tmp_path, "b", "4:8"), ready(tmp_path, "c", "4:8")]
    join("demo", files, None, tmp_path / "map.json")
    found = load_blocks_map(tmp_path / "map.json")
    assert [route.layers for route in found.routes] == ["0:4", "4:8", "4:8"]
    assert found.model.name == "demo" and len(found.peers) == 3
    assert "11112222" in capsys.readouterr().out


def test_without_a_file_the_map_goes_to_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    join("demo", [ready(tmp_path, "a", "0:8")], None, None)
    assert json.loads(capsys.readouterr().out)["routes"][0]["layers"] == "0:8"


def test_the_reader_may_run_layers_itself(tmp_path: Path) -> None:
    join("demo", [ready(tmp_path, "a", "4:8")], "0:4", tmp_path / "map.json")
    assert [(one.layers, one.peer_id == "self") for one in load_blocks_map(tmp_path / "map.json").routes] == [
        ("0:4", True),
        ("4:8", False),
    ]


def test_a_hole_is_named(tmp_path: Path) -> None:
    with pytest.raises(BlocksMapError, match="2:4"):
        join("demo", [ready(tmp_path, "a", "0:2"), ready(tmp_path, "b", "4:8")], None, tmp_path / "map.json")
    assert not (tmp_path / "map.json").exists()


@pytest.mark.parametrize("content", ["", "hello\n", '{"ready": true}\n', "\xff\n"])
def test_what_is_no_ready_line_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(BlocksMapError, match="does not begin with the line"):
        join("demo", [path], None, None)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BlocksMapError, match=r"nothing cannot be read"):
        join("demo", [tmp_path / "nothing"], None, None)
