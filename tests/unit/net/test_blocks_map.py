"""The BlocksMap file: both forms, and every fault by its name."""

import json
from pathlib import Path
from typing import Any

import pytest

from hopformer.errors import BlocksMapError
from hopformer.net.blocks_map import (
    MAX_FILE_BYTES,
    BlocksMap,
    checked,
    faults,
    is_address,
    load_blocks_map,
    notes,
    parse_blocks_map,
)
from hopformer.net.identity import PeerId
from hopformer.net.layer_range import LayerRange

A, B, C = (PeerId(bytes([index]) * 22) for index in range(3))


def as_map(*routes: tuple[str, object], **changes: Any) -> dict[str, Any]:
    """A map of 8 layers as JSON has it."""
    listed = routes or (("0:4", A), ("4:8", B))
    return {
        "version": 1,
        "model": {"name": "demo", "fingerprint": None},
        "peers": [
            {"peer_id": str(A), "addrs": ["127.0.0.1:40123"], "relay": None},
            {"peer_id": str(B), "addrs": [], "relay": f"{C}@example.org:4000"},
        ],
        "routes": [{"layers": layers, "peer_id": str(peer)} for layers, peer in listed],
        **changes,
    }


def parse(content: object) -> BlocksMap:
    return parse_blocks_map(json.dumps(content).encode())


def test_a_map_says_who_serves_what_and_where() -> None:
    found = checked(parse(as_map(("0:2", A), ("2:4", A), ("4:8", "self"), ("4:8", B))), 8)
    assert found.spans() == {A: [LayerRange(0, 4)], None: [LayerRange(4, 8)], B: [LayerRange(4, 8)]}
    assert found.addrs() == {A: ("127.0.0.1:40123",), B: (f"{C}@example.org:4000",)}


def test_what_is_written_is_read_again() -> None:
    found = parse(as_map())
    assert parse_blocks_map(found.to_json().encode()) == found


def test_a_node_that_is_in_the_map_reads_its_own_layers_as_self() -> None:
    written = parse(as_map())
    own = checked(written.read_by(B), 8)
    assert own.spans() == {A: [LayerRange(0, 4)], None: [LayerRange(4, 8)]} and own.addrs() == {A: ("127.0.0.1:40123",)}
    assert written.read_by(C) == written


def test_one_route_a_block_means_the_same() -> None:
    routes = [{"block_no": index, "peer_id": str(A) if index < 4 else "self"} for index in range(8)]
    found = checked(parse(as_map(routes=routes)), 8)
    assert found.spans() == {A: [LayerRange(0, 4)], None: [LayerRange(4, 8)]}


def test_older_nodes_named_themselves_and_one_address() -> None:
    old = {
        "self_peer_id": str(B),
        "peers": [
            {"peer_id": str(B), "addr": "/ip4/127.0.0.1/tcp/4002"},
            {"peer_id": str(A), "addr": "/ip4/127.0.0.1/tcp/4001"},
        ],
        "routes": [
            {"model_name": "llama", "block_no": index, "peer_id": str(B if index % 7 == 0 else A)} for index in range(8)
        ],
    }
    found = checked(parse(old), 8)
    assert found.model.name == "llama" and found.addrs() == {A: ("127.0.0.1:4001",)}
    assert found.spans() == {None: [LayerRange(0, 1), LayerRange(7, 8)], A: [LayerRange(1, 7)]}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ([], "no BlocksMap: Expected `object`"),
        (as_map(colour="red"), "unknown field `colour`"),
        (as_map(version=2), "version is 2"),
        (as_map(version="1"), r"`int`, got `str` - at `\$\.version`"),
        (as_map(peers=[{"peer_id": str(A), "addr": "127.0.0.1:1"}]), "unknown field `addr`"),
        (as_map(routes=[{"layers": 4, "peer_id": "self"}]), r"routes\[0\]\.layers"),
        (as_map(routes=[{"layers": "0:8"}]), "missing required field `peer_id`"),
        (as_map(routes=[{"block_no": "3", "peer_id": "self"}]), r"routes\[0\]\.block_no"),
        (as_map(routes=[{"block_no": 3, "layers": "3:4", "peer_id": "self"}]), "unknown field `layers`"),
        (as_map(routes=[{"layers": "0:8", "peer_id": "self"}] * 4097), "4096 are allowed"),
        ({key: value for key, value in as_map().items() if key != "model"}, "missing required field `model`"),
    ],
)
def test_what_is_no_map_is_refused_by_name(content: object, fault: str) -> None:
    with pytest.raises(BlocksMapError, match=fault):
        parse(content)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b'{"version": NaN}'])
def test_what_is_no_json_is_refused(content: bytes) -> None:
    with pytest.raises(BlocksMapError, match="no BlocksMap"):
        parse_blocks_map(content)


def test_a_file_that_is_missing_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BlocksMapError, match=r"none\.json cannot be read: No such file"):
        load_blocks_map(tmp_path / "none.json")
    (tmp_path / "large.json").write_bytes(b" " * (MAX_FILE_BYTES + 1))
    with pytest.raises(BlocksMapError, match=r"large\.json: it is larger than"):
        load_blocks_map(tmp_path / "large.json")
    (tmp_path / "fits.json").write_bytes(json.dumps(as_map()).encode().ljust(MAX_FILE_BYTES))
    assert load_blocks_map(tmp_path / "fits.json") == parse(as_map())


@pytest.mark.parametrize(
    ("routes", "found"),
    [
        ([("0:4", A), ("5:8", B)], ["layers 4:5 are a hole: nobody serves them"]),
        ([("1:4", A), ("4:7", B)], ["layers 0:1 are a hole", "layers 7:8 are a hole"]),
        ([("0:4", A), ("4:9", B)], ["routes[1]: layers 4:9 are out of range; the model has 0:8"]),
        ([("0:8", A), ("4:2", B)], ["routes[1]: '4:2' is no range of layers"]),
        ([("0:8", A), ("4:8", C)], [f"routes[1]: peer {C} is unknown"]),
        ([("0:5", A), ("4:8", A)], [f"routes[0] and routes[1] overlap: peer {A} lists layers 4:5 twice"]),
        ([("0:2", A), ("2:6", "self"), ("6:8", A)], [f"peer {A} lists layers 0:2 and 6:8; a peer serves one range"]),
        ([("0:2", "self"), ("2:6", A), ("6:8", "SELF")], []),
        ([("0:4", A), ("4:8", B), ("0:8", "self")], []),
        ([("0:5", A), ("3:8", B)], []),
        ([("0:3", C), ("2:1", A), ("9:11", B)], ["routes[0]: peer", "routes[1]", "routes[2]", "layers 3:8 are a hole"]),
    ],
    ids=str,
)
def test_every_fault_of_the_routes_is_named(routes: list[tuple[str, object]], found: list[str]) -> None:
    named = faults(parse(as_map(*routes)), 8)
    assert len(named) == len(found)
    assert all(fault.startswith(start) for fault, start in zip(named, found, strict=True)), named


@pytest.mark.parametrize(
    ("peer", "fault"),
    [
        ({"peer_id": "abc", "addrs": ["h:1"]}, "peers[0]: 'abc' is no peer id"),
        ({"peer_id": str(A), "addrs": ["localhost"]}, "peers[0]: address 'localhost' is not HOST:PORT"),
        ({"peer_id": str(A), "addrs": ["h:0"]}, "peers[0]: address 'h:0' is not HOST:PORT"),
        ({"peer_id": str(A), "addrs": ["h:65536"]}, "peers[0]: address 'h:65536' is not HOST:PORT"),
        ({"peer_id": str(A), "relay": "h:1"}, "peers[0]: relay 'h:1' is not PEER_ID@HOST:PORT"),
        ({"peer_id": str(A)}, "peers[0]: neither addrs nor relay says how to reach it"),
        ({"peer_id": str(A), "addrs": ["h:1"] * 17}, "peers[0]: 17 addrs; 16 are allowed"),
    ],
)
def test_every_fault_of_a_peer_is_named(peer: dict[str, Any], fault: str) -> None:
    named = faults(parse(as_map(("0:8", "self"), peers=[peer])), 8)
    assert len(named) == 1 and named[0].startswith(fault)


def test_a_peer_that_is_listed_twice_and_a_wrong_fingerprint_are_named() -> None:
    peers = [{"peer_id": str(A), "addrs": ["h:1"]}, {"peer_id": str(A).upper(), "addrs": ["h:2"]}]
    model = {"name": "demo", "fingerprint": "xyz"}
    first, second = faults(parse(as_map(("0:8", "self"), peers=peers, model=model)), 8)
    assert first.startswith("model.fingerprint is 'xyz'") and second.endswith("is listed already, as peers[0]")


def test_a_map_without_routes_is_one_big_hole() -> None:
    assert faults(parse(as_map(routes=[])), 8) == [
        "there is no route; list at least one under routes",
        "layers 0:8 are a hole: nobody serves them",
    ]


def test_the_end_is_only_known_with_the_model() -> None:
    found = parse(as_map(("0:4", A), ("4:6", B)))
    assert faults(found) == [] and faults(found, 8) == ["layers 6:8 are a hole: nobody serves them"]


def test_the_first_faults_are_told_where_a_map_is_used() -> None:
    found = parse(as_map(("1:2", C), ("3:4", C), ("5:6", C)))
    with pytest.raises(
        BlocksMapError, match=r"^routes\[0\]: .*; routes\[1\]: .*; and \d+ more, which hopformer map check"
    ):
        checked(found, 8)


def test_layers_that_overlap_in_part_are_worth_a_note() -> None:
    assert notes(parse(as_map(("0:4", A), ("4:8", B), ("0:8", "self")))) == []
    (note,) = notes(parse(as_map(("0:5", A), ("3:8", B))))
    assert note == f"layers 3:5 overlap: {A} serves 0:5 and {B} serves 3:8; each may run a part"


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("127.0.0.1:1", True),
        ("[::1]:65535", True),
        ("[fe80::1%eth0]:5", True),
        ("a-b.example.org:443", True),
        ("::1:5", False),
        (":5", False),
        ("h:", False),
        ("h:5 ", False),
        ("h h:5", False),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, fits: bool) -> None:
    assert is_address(text) is fits
