"""A closed network over QUIC on loopback: a real relay, real nodes, tokens that its authority signed, and strangers."""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hopformer.errors import NetworkError
from hopformer.net import relay_node
from hopformer.net.admission import Guests
from hopformer.net.announcement import Announcement
from hopformer.net.authority_files import REVOCATIONS, AuthorityFiles, IssuedInvite
from hopformer.net.caller_mesh import CallerMesh
from hopformer.net.endpoint import Endpoint
from hopformer.net.grant import Grant, Role
from hopformer.net.identity import Identity, PeerId
from hopformer.net.invite import Token
from hopformer.net.layer_range import LayerRange
from hopformer.net.membership import Network
from hopformer.net.mesh_member import MeshMember
from hopformer.net.messages import Ask, Codec, Dtype, Message
from hopformer.net.network_process import MeshPart, ProcessSwitchboard
from hopformer.net.peer_table import PeerTable, Wanted
from hopformer.net.relay_node import RelayConfig, RelayNode
from hopformer.net.revocations import Revocations
from hopformer.net.switchboard import Event, Heard, PeerDown, PeerUp, Received, Vanished

LOOPBACK = ("127.0.0.1:0",)
WAIT_S = 20.0  # far beyond what anything here takes; two shared cores may be busy with other tests
SOON_S = 10.0  # a relay looks at its file four times a second
FINGERPRINT = bytes(8) + b"\x77" * 24
AUTHORITY = Identity.generate()


def token(role: Role = Role.CHAT, lasts_s: float = 3600, authority: Identity = AUTHORITY) -> Token:
    member = Identity.generate()
    expires_at = int(time.time() + lasts_s)
    grant = Grant(authority.public_bytes, secrets.token_bytes(8), role, expires_at, (), member.public_bytes)
    return Token.sign(grant, authority, member)


class Node:
    """A node as its network's process puts it together. ``shows`` makes the membership that it shows as this peer."""

    def __init__(self, relay: RelayNode, shows: Callable[[PeerId], bytes]) -> None:
        self.identity = Identity.generate()
        self.events: list[Event] = []
        self.membership = shows(self.peer_id)
        self.network = Network(AUTHORITY.peer_id)
        guests = Guests(frozenset(), self.network)
        self.endpoint = Endpoint(self.identity, guests, self.events.append, membership=self.membership)
        self.mesh = MeshMember(self.endpoint, self.identity, self.network, self.membership, self.events.append)
        self.endpoint.listen(LOOPBACK)
        self.endpoint.relays.watch()
        self.relay = f"{relay.peer_id}@{relay.addrs[0]}"
        self.endpoint.relays.keep(self.relay)

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def messages(self) -> list[Message]:
        return [one.message for one in self.events if isinstance(one, Received)]

    def down(self, peer: PeerId) -> str:
        """Why a peer is gone, or could not be reached; empty while it is not so."""
        reasons = [one.reason for one in self.events if isinstance(one, PeerDown) and one.peer == peer]
        return reasons[-1] if reasons else ""

    def has_heard_of(self, other: "Node") -> bool:
        return any(isinstance(one, Heard) and one.announcement.peer == other.peer_id for one in self.events)

    def says(self, layers: str = "0:8") -> Announcement:
        span, dtype = LayerRange.parse(layers), Dtype.FLOAT32
        return Announcement(self.identity.public_bytes, 0, 60, "demo", FINGERPRINT, 8, span, True, dtype)

    def close(self) -> None:
        self.endpoint.close()


class Net:
    """A relay, the nodes that a test has started, and the time that passes for all of them."""

    def __init__(self, folder: Path) -> None:
        self.files = AuthorityFiles(AUTHORITY, folder)
        config = RelayConfig(LOOPBACK, frozenset(), AUTHORITY.peer_id, revocations=folder / REVOCATIONS)
        self.relay = RelayNode(Identity.generate(), config)
        self.nodes: list[Node] = []

    async def join(self, role: Role = Role.CHAT, joins_by: Token | None = None) -> Node:
        """A member that others may reach through the relay."""
        node = Node(self.relay, (joins_by or token(role)).membership)
        self.nodes.append(node)
        await self.until(lambda: node.endpoint.relays.addrs == (node.relay,))
        return node

    def stranger(self, shows: Callable[[PeerId], bytes] = lambda _: b"") -> Node:
        """Somebody who knows where everybody is."""
        self.nodes.append(Node(self.relay, shows))
        return self.nodes[-1]

    async def meet(self, asker: Node, other: Node) -> None:
        """Connect, by the other's id and the relay alone."""
        asker.endpoint.dial(other.peer_id, (other.relay,))
        await self.until(lambda: PeerUp(other.peer_id) in asker.events and PeerUp(asker.peer_id) in other.events)

    async def until(self, condition: Callable[[], object], limit_s: float = WAIT_S) -> None:
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < limit_s, "it did not come"
            await self.pass_time(0.02)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.relay.tick()
        for node in self.nodes:
            node.mesh.tick()

    def revoke(self, what: bytes | PeerId) -> None:
        assert self.files.revoke(what, time.time())


@asynccontextmanager
async def closed_network(folder: Path) -> AsyncIterator[Net]:
    net = Net(folder / "network")
    try:
        yield net
    finally:
        for node in net.nodes:
            node.close()
        net.relay.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


# ---- who is let in


def test_members_reach_each_other_by_id_over_their_relay(tmp_path: Path) -> None:
    async def test() -> None:
        async with closed_network(tmp_path) as net:
            serving, chatting = await net.join(Role.SERVE), await net.join(Role.CHAT)
            await net.meet(chatting, serving)
            chatting.endpoint.send(serving.peer_id, Ask())
            await net.until(lambda: serving.messages == [Ask()])
            assert set(net.relay.stats()) == {serving.peer_id, chatting.peer_id}

    run(test)


def test_who_may_serve_may_chat_and_two_join_by_one_token(tmp_path: Path) -> None:
    async def test() -> None:
        async with closed_network(tmp_path) as net:
            one = token(Role.SERVE)
            first, second = await net.join(joins_by=one), await net.join(joins_by=one)
            await net.meet(first, second)

    run(test)


MEMBER = token()
REFUSALS = {
    "none": (lambda peer: b"", "must join with a token"),
    "another's": (lambda peer: MEMBER.membership(AUTHORITY.peer_id), "was made for another peer id"),
    "expired": (lambda peer: token(lasts_s=-10).membership(peer), "expired at"),
    "of another network": (lambda peer: token(authority=Identity.generate()).membership(peer), "is of network"),
    "noise": (lambda peer: b"let me in", "this is no membership"),
}


@pytest.mark.parametrize("which", REFUSALS)
def test_a_stranger_is_refused_by_the_relay_and_by_a_node_with_one_clear_line(which: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with closed_network(tmp_path) as net:
            member = await net.join(Role.SERVE)
            shows, words = REFUSALS[which]
            stranger = net.stranger(shows)
            stranger.endpoint.dial(member.peer_id, member.endpoint.addrs)
            await net.until(lambda: stranger.down(member.peer_id))
            assert words in stranger.down(member.peer_id) and "\n" not in stranger.down(member.peer_id)
            stranger.events.clear()
            stranger.endpoint.dial(member.peer_id, (member.relay,))
            await net.until(lambda: stranger.down(member.peer_id))
            assert words in stranger.down(member.peer_id)
            await net.until(lambda: stranger.endpoint.relays.are_refused)
            (problem,) = stranger.endpoint.relays.problems
            assert re.fullmatch(rf"relay {net.relay.addrs[0]}: .*{words}.*", problem)
            assert stranger.endpoint.relays.addrs == () and stranger.peer_id not in net.relay.stats()
            assert PeerUp(stranger.peer_id) not in member.events

    run(test)


def test_a_relay_that_somebody_else_is_turns_nobody_away_and_is_not_used(tmp_path: Path) -> None:
    async def test() -> None:
        async with closed_network(tmp_path) as net:
            member = await net.join()
            assert not member.endpoint.relays.are_refused and member.endpoint.relays.problems == ()
            other = RelayNode(Identity.generate(), RelayConfig(LOOPBACK))
            member.endpoint.relays.keep(f"{AUTHORITY.peer_id}@{other.addrs[0]}")
            await net.until(lambda: member.endpoint.relays.problems)
            words = f"relay {other.addrs[0]}: another key answers there: {other.peer_id}"
            assert member.endpoint.relays.problems == (words,)
            assert not member.endpoint.relays.are_refused, "one of two is there"
            other.close()

    run(test)


def test_a_node_whose_relays_all_turn_it_away_does_not_begin(tmp_path: Path) -> None:
    async def test() -> None:
        async with closed_network(tmp_path) as net:
            part = MeshPart((f"{net.relay.peer_id}@{net.relay.addrs[0]}",), network=AUTHORITY.peer_id)
            identity = Identity.generate()
            starting = asyncio.create_task(
                asyncio.to_thread(ProcessSwitchboard.start, identity, LOOPBACK, (), mesh=part)
            )
            await net.until(starting.done)
            words = f"relay {net.relay.addrs[0]}: {identity.peer_id} shows no membership of network {AUTHORITY.peer_id}"
            with pytest.raises(NetworkError, match=re.escape(words)):
                await starting

    run(test)


def test_a_relay_that_anybody_may_use_lets_nobody_into_its_nodes(tmp_path: Path) -> None:
    async def test() -> None:
        async with closed_network(tmp_path) as net:
            net.relay.close()
            net.relay = RelayNode(Identity.generate(), RelayConfig(LOOPBACK))
            member, stranger = await net.join(Role.SERVE), net.stranger()
            await net.until(lambda: stranger.endpoint.relays.addrs)
            stranger.endpoint.dial(member.peer_id, (member.relay,))
            await net.until(lambda: stranger.down(member.peer_id))
            assert "must join with a token" in stranger.down(member.peer_id)
            assert PeerUp(stranger.peer_id) not in member.events

    run(test)


# ---- who is heard


def test_nodes_that_serve_are_found_and_a_caller_knows_what_to_dial(tmp_path: Path) -> None:
    async def test() -> None:
        async with closed_network(tmp_path) as net:
            first, second = await net.join(Role.SERVE), await net.join(Role.SERVE)
            first.mesh.publish(first.says("0:4"))
            second.mesh.publish(second.says("4:8"))
            caller = await net.join(Role.CHAT)  # who comes late hears of everybody
            await net.until(lambda: caller.has_heard_of(first) and caller.has_heard_of(second))
            await net.until(lambda: first.has_heard_of(second) and second.has_heard_of(first))
            mesh = CallerMesh(FINGERPRINT, 8, caller.peer_id)
            table = PeerTable(Wanted(FINGERPRINT, 8, Dtype.FLOAT32, 16, Codec.EXACT), {}, {})
            for event in caller.events:
                if isinstance(event, Heard):
                    assert event.announcement.network == AUTHORITY.peer_id
                    mesh.heard(event.blob, event.via, 0.0)
            mesh.bring(table, 0.0)
            assert set(table.to_dial(0.0)) == {first.peer_id, second.peer_id}
            assert table.addrs(first.peer_id) == (*first.endpoint.addrs, first.relay)
            for peer in (first.peer_id, second.peer_id):
                caller.endpoint.dial(peer, table.addrs(peer))
            await net.until(lambda: {PeerUp(first.peer_id), PeerUp(second.peer_id)} <= set(caller.events))

    run(test)


def test_when_a_node_goes_its_announcement_goes(tmp_path: Path) -> None:
    async def test() -> None:
        async with closed_network(tmp_path) as net:
            serving, caller = await net.join(Role.SERVE), await net.join(Role.CHAT)
            serving.mesh.publish(serving.says())
            await net.until(lambda: caller.has_heard_of(serving))
            serving.close()
            net.nodes.remove(serving)
            await net.until(lambda: Vanished(serving.peer_id) in caller.events)

    run(test)


def test_who_may_only_chat_is_not_listed_whatever_it_announces(tmp_path: Path) -> None:
    async def test() -> None:
        async with closed_network(tmp_path) as net:
            serving, chatting, caller = await net.join(Role.SERVE), await net.join(Role.CHAT), await net.join(Role.CHAT)
            chatting.mesh.publish(chatting.says())
            serving.mesh.publish(serving.says())
            await net.until(lambda: caller.has_heard_of(serving))
            assert not caller.has_heard_of(chatting)
            assert [one.announcement.peer for one in net.relay.desk.directory.entries()] == [serving.peer_id]
            for node, is_heard in ((chatting, False), (serving, True)):  # a relay that lists whatever it is told
                listed = replace(node.says(), issued_at=int(time.time() * 1000) + 5000, membership=node.membership)
                caller.events.clear()
                caller.endpoint.heard(listed.sign(node.identity))
                assert caller.has_heard_of(node) is is_heard

    run(test)


# ---- who is a member no longer


def test_a_revoked_member_is_parted_with_by_the_relay_and_by_the_nodes_and_does_not_come_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with closed_network(tmp_path) as net:
            joins_by = token(Role.SERVE)
            net.files.add(IssuedInvite.of(joins_by.grant, "for Eve"))
            serving, other = await net.join(Role.SERVE), await net.join(Role.CHAT)
            revoked = await net.join(joins_by=joins_by)
            revoked.mesh.publish(revoked.says())
            await net.until(lambda: other.has_heard_of(revoked))
            await net.meet(revoked, serving)
            await net.meet(other, serving)
            net.revoke(joins_by.grant.serial)
            await net.until(lambda: revoked.peer_id not in net.relay.stats(), SOON_S)
            await net.until(lambda: revoked.down(serving.peer_id) and serving.down(revoked.peer_id), SOON_S)
            await net.until(lambda: Vanished(revoked.peer_id) in other.events, SOON_S)
            words = f"the invite {joins_by.grant.serial.hex()} by which {revoked.peer_id} joined was revoked"
            assert serving.down(revoked.peer_id) == words and words in revoked.down(serving.peer_id)
            for node in (serving, other):
                assert node.network.revocations.serials == {joins_by.grant.serial}
            revoked.events.clear()
            revoked.endpoint.dial(serving.peer_id, serving.endpoint.addrs)
            await net.until(lambda: revoked.down(serving.peer_id))
            assert words in revoked.down(serving.peer_id)
            assert not serving.down(other.peer_id) and other.peer_id in net.relay.stats(), "others stay"

    run(test)


def test_who_joins_later_is_told_who_was_revoked_before(tmp_path: Path) -> None:
    async def test() -> None:
        async with closed_network(tmp_path) as net:
            peer = Identity.generate().peer_id
            net.revoke(peer)
            await net.pass_time(0.02)
            node = await net.join()
            await net.until(lambda: node.network.revocations.peers == {peer})

    run(test)


def test_members_carry_a_list_from_one_relay_to_another(tmp_path: Path) -> None:
    async def test() -> None:
        async with closed_network(tmp_path) as net:
            node = await net.join()
            config = RelayConfig(LOOPBACK, frozenset(), AUTHORITY.peer_id)  # on another machine than the authority's
            elsewhere = RelayNode(Identity.generate(), config)
            node.endpoint.relays.keep(f"{elsewhere.peer_id}@{elsewhere.addrs[0]}")
            await net.until(lambda: len(node.endpoint.relays.addrs) == 2)
            other = Node(elsewhere, token().membership)
            net.nodes.append(other)
            await net.until(lambda: other.endpoint.relays.addrs)
            net.revoke(other.peer_id)
            await net.until(lambda: other.peer_id not in elsewhere.stats(), SOON_S)
            assert node.peer_id in elsewhere.stats()
            elsewhere.close()

    run(test)


def test_who_has_expired_is_parted_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_node, "RECHECK_S", 0.1)

    async def test() -> None:
        async with closed_network(tmp_path) as net:
            node = await net.join(joins_by=token(lasts_s=2.5))
            assert node.peer_id in net.relay.stats()
            lasting = await net.join()
            await net.until(lambda: node.peer_id not in net.relay.stats(), SOON_S)
            await net.until(lambda: node.endpoint.relays.addrs == ())
            assert lasting.peer_id in net.relay.stats()

    run(test)


def test_a_list_that_somebody_else_has_signed_changes_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with closed_network(tmp_path) as net:
            node, other = await net.join(), await net.join()
            forged = Revocations(1 << 31, peers=frozenset({other.peer_id})).signed_by(node.identity)
            node.endpoint.relays.revoke(forged)
            node.endpoint.revoked(forged)
            for _ in range(10):
                await net.pass_time(0.02)
            assert other.peer_id in net.relay.stats()
            assert node.network.revocations == other.network.revocations == Revocations()

    run(test)


def test_a_damaged_file_is_told_and_the_last_good_list_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with closed_network(tmp_path) as net:
            joins_by = token()
            net.revoke(joins_by.grant.serial)
            await net.pass_time(0.02)
            path = tmp_path / "network" / REVOCATIONS
            path.with_name("draft").write_bytes(b"damaged")
            path.with_name("draft").replace(path)
            for _ in range(3):
                await net.pass_time(0.02)
            assert caplog.text.count("revocations are not taken") == 1
            assert net.relay.desk._network.revocations.serials == {joins_by.grant.serial}
            await net.join()
            with pytest.raises(NetworkError, match="list of revocations"):
                Net(tmp_path / "network")

    run(test)
