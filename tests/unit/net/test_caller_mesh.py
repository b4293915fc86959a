"""A caller in a mesh: what it hears of peers becomes what it dials, asks and forgets."""

import time

import pytest

from hopformer.net.announcement import Announcement
from hopformer.net.caller_mesh import LOOK_S, CallerMesh
from hopformer.net.directory import Via
from hopformer.net.identity import Identity, PeerId
from hopformer.net.layer_range import LayerRange
from hopformer.net.messages import Codec, Dtype, Serving
from hopformer.net.peer_table import PeerTable, Wanted

FINGERPRINT = bytes(8) + b"\x77" * 24
NUM_LAYERS = 8
OWN, ANNA, BELA = (Identity.from_seed(bytes([seed]) * 32) for seed in (1, 2, 3))
RELAY = f"{PeerId(bytes(22))}@192.0.2.9:4711"


@pytest.fixture
def mesh() -> CallerMesh:
    return CallerMesh(FINGERPRINT, NUM_LAYERS, OWN.peer_id)


@pytest.fixture
def table() -> PeerTable:
    return PeerTable(Wanted(FINGERPRINT, NUM_LAYERS, Dtype.FLOAT32, 16), {}, {})


def said(who: Identity, layers: str = "0:8", after_ms: int = 0, **changes: object) -> bytes:
    usual = {"addrs": ("10.0.0.2:1",), "relays": (RELAY,), "dtype": Dtype.FLOAT32, "is_ready": True, "valid_s": 60}
    fields = {**usual, **changes, "layers": LayerRange.parse(layers)}
    issued_at = int(time.time() * 1000) + after_ms
    return Announcement(
        who.public_bytes, issued_at, model="demo", fingerprint=FINGERPRINT, num_layers=NUM_LAYERS, **fields
    ).sign(who)  # type: ignore[arg-type]


def serves(table: PeerTable, peer: PeerId, start: int, end: int) -> None:
    table.to_dial(0.0)
    table.connected(peer, 0.0)
    kinds = Dtype.FLOAT32, (Codec.EXACT,)
    table.serves(peer, Serving("demo", FINGERPRINT, start, end, *kinds, 100, 0, "1"), 0.0)


def test_who_is_heard_of_is_dialled_at_its_addresses_and_over_its_relays(mesh: CallerMesh, table: PeerTable) -> None:
    assert mesh.bring(table, 0.0) == () and table.to_dial(0.0) == []
    assert mesh.heard(said(ANNA), Via.RELAY, 0.1) is not None
    assert mesh.bring(table, 0.1) == ()
    assert table.to_dial(0.1) == [ANNA.peer_id]
    assert table.addrs(ANNA.peer_id) == ("10.0.0.2:1", RELAY)


def test_the_caller_itself_is_not_dialled(mesh: CallerMesh, table: PeerTable) -> None:
    mesh.heard(said(OWN), Via.RELAY, 0.0)
    mesh.bring(table, 0.0)
    assert table.to_dial(0.0) == [] and len(mesh.entries) == 1


def test_who_vanishes_is_not_dialled_any_more(mesh: CallerMesh, table: PeerTable) -> None:
    mesh.heard(said(ANNA), Via.RELAY, 0.0)
    mesh.bring(table, 0.0)
    mesh.vanished(ANNA.peer_id)
    mesh.bring(table, 0.1)
    assert ANNA.peer_id not in table.entries and mesh.entries == []


def test_who_vanishes_while_it_is_connected_is_used_until_it_is_gone_and_then_forgotten(
    mesh: CallerMesh, table: PeerTable
) -> None:
    mesh.heard(said(ANNA), Via.RELAY, 0.0)
    mesh.bring(table, 0.0)
    serves(table, ANNA.peer_id, 0, 8)
    mesh.vanished(ANNA.peer_id)
    mesh.bring(table, 0.1)
    assert [one.peer for one in table.candidates(0.1)] == [ANNA.peer_id]
    table.disconnected(ANNA.peer_id, "it was shut down", 5.0)
    assert ANNA.peer_id not in table.entries and table.to_dial(1e6) == []
    table.check_integrity()


def test_who_comes_back_before_it_is_gone_is_kept(mesh: CallerMesh, table: PeerTable) -> None:
    mesh.heard(said(ANNA), Via.RELAY, 0.0)
    mesh.bring(table, 0.0)
    serves(table, ANNA.peer_id, 0, 8)
    mesh.vanished(ANNA.peer_id)
    mesh.bring(table, 0.1)
    mesh.heard(said(ANNA, after_ms=1000), Via.RELAY, 3.0)
    mesh.bring(table, 3.0)
    table.disconnected(ANNA.peer_id, "its relay is gone", 5.0)
    assert ANNA.peer_id in table.entries and table.to_dial(100.0) == [ANNA.peer_id]


def test_an_announcement_expires_unless_it_is_said_anew(mesh: CallerMesh, table: PeerTable) -> None:
    mesh.heard(said(ANNA), Via.RELAY, 0.0)
    mesh.bring(table, 0.0)
    mesh.bring(table, 59.0)
    assert ANNA.peer_id in table.entries
    mesh.bring(table, 60.1)
    assert ANNA.peer_id not in table.entries


def test_who_has_other_layers_now_is_asked_again(mesh: CallerMesh, table: PeerTable) -> None:
    mesh.heard(said(ANNA, "0:4"), Via.RELAY, 0.0)
    mesh.bring(table, 0.0)
    serves(table, ANNA.peer_id, 0, 4)
    mesh.heard(said(ANNA, "4:8", after_ms=1000), Via.RELAY, 5.0)
    assert mesh.bring(table, 5.0) == (ANNA.peer_id,)


def test_what_is_forged_old_or_known_changes_nothing(mesh: CallerMesh, table: PeerTable) -> None:
    blob = said(ANNA)
    forged = blob[:-1] + bytes((blob[-1] ^ 1,))
    assert mesh.heard(forged, Via.RELAY, 0.0) is None and mesh.heard(b"noise", Via.LAN, 0.0) is None
    assert mesh.heard(said(ANNA, after_ms=-200_000), Via.RELAY, 0.0) is None
    assert mesh.entries == []
    assert mesh.heard(blob, Via.RELAY, 0.0) is not None and mesh.heard(blob, Via.RELAY, 0.0) is None


def test_the_directory_is_looked_at_when_something_was_heard_or_a_second_has_passed(
    mesh: CallerMesh, table: PeerTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    view = mesh._view
    update = view.update
    monkeypatch.setattr(view, "update", lambda *arguments: looks.append(1) or update(*arguments))
    for index in range(100):  # tokens
        mesh.bring(table, 10.0 + index / 1000)
    assert len(looks) == 1
    mesh.heard(said(ANNA), Via.RELAY, 10.2)
    mesh.bring(table, 10.2)
    assert len(looks) == 2 and ANNA.peer_id in table.entries
    mesh.bring(table, 10.2 + LOOK_S - 0.01)
    assert len(looks) == 2
    mesh.bring(table, 10.2 + LOOK_S)
    assert len(looks) == 3
    mesh.vanished(ANNA.peer_id)
    mesh.bring(table, 10.2 + LOOK_S)
    assert len(looks) == 4
    mesh.vanished(BELA.peer_id)
    mesh.bring(table, 10.2 + LOOK_S)
    assert len(looks) == 4, "nobody knew him"


def test_why_nobody_serves_the_model_says_what_there_is(mesh: CallerMesh) -> None:
    assert mesh.why_nobody("demo") == "nobody serves demo here; no peer is announced at all"
    mesh.heard(said(ANNA, "0:4"), Via.RELAY, 0.0)
    assert mesh.why_nobody("demo") == "nobody serves layers 4:8 of demo"
