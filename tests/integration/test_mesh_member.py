"""What a node says of itself: at its relays and on the local network, whatever number of addresses it has."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from hopformer.net import announcement as announcements
from hopformer.net.admission import Guests
from hopformer.net.announcement import MAX_RELAYS, Announcement, parse
from hopformer.net.endpoint import Endpoint
from hopformer.net.identity import Identity
from hopformer.net.lan import LAN_BYTES, Lan
from hopformer.net.layer_range import LayerRange
from hopformer.net.mesh_member import RENEW_S, VALID_S, MeshMember
from hopformer.net.messages import Dtype
from hopformer.net.relay_node import RelayConfig, RelayNode
from hopformer.net.wire import MAX_ADDRS

LOOPBACK = ("127.0.0.1",)
WAIT_S = 20.0  # far beyond what anything here takes; two shared cores may be busy with other tests
MANY_ADDRS, MANY_RELAYS = MAX_ADDRS + 4, MAX_RELAYS + 1


async def until(condition: Callable[[], object]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < WAIT_S, "it did not come"
        await asyncio.sleep(0.02)


def of(identity: Identity) -> Announcement:
    """As the model's process makes it."""
    layers = LayerRange(0, 8)
    return Announcement(identity.public_bytes, 1, 60, "m" * 200, bytes(32), 8, layers, True, Dtype.FLOAT32)


def test_who_has_too_many_addresses_for_an_announcement_is_announced_with_the_first_of_them() -> None:
    async def test() -> None:
        identity, blobs = Identity.generate(), []
        relays = [RelayNode(Identity.generate(), RelayConfig(("127.0.0.1:0",))) for _ in range(MANY_RELAYS)]
        listener = Lan(blobs.append, lambda _: None)
        endpoint = Endpoint(identity, Guests(None), lambda _: None)
        mesh = MeshMember(endpoint, identity, None, bytes(400), lambda _: None)  # as long as memberships are
        try:
            endpoint.listen(["127.0.0.1:0"] * MANY_ADDRS)
            for relay in relays:
                endpoint.relays.keep(f"{relay.peer_id}@{relay.addrs[0]}")
            await listener.start(LOOPBACK)
            await mesh.join_lan(LOOPBACK)
            await until(lambda: len(endpoint.relays.addrs) == MANY_RELAYS)
            mesh.publish(of(identity))
            await until(lambda: blobs and all(one.desk.directory.entries() for one in relays))
            (entry,) = relays[0].desk.directory.entries()
            at_relay, on_lan = entry.announcement, parse(blobs[0], time.time())
            assert at_relay.addrs == endpoint.addrs[:MAX_ADDRS]
            assert at_relay.relays == endpoint.relays.addrs[:MAX_RELAYS]
            assert len(blobs[0]) <= LAN_BYTES < len(entry.blob)
            assert on_lan == replace(at_relay, addrs=on_lan.addrs, relays=on_lan.relays), "the same besides"
            assert on_lan.addrs == at_relay.addrs[: len(on_lan.addrs)] and on_lan.addrs and on_lan.relays
        finally:
            await mesh.close()
            await listener.close()
            endpoint.close()
            for relay in relays:
                relay.close()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_what_is_said_is_good_for_three_renewals() -> None:
    assert 3 * RENEW_S <= VALID_S <= announcements.MAX_VALID_S


def test_each_renewal_is_newer_than_the_last_though_no_time_has_passed() -> None:
    async def test() -> None:
        identity = Identity.generate()
        relay = RelayNode(Identity.generate(), RelayConfig(("127.0.0.1:0",)))
        endpoint = Endpoint(identity, Guests(None), lambda _: None)
        mesh = MeshMember(endpoint, identity, None, b"", lambda _: None)
        try:
            endpoint.listen(["127.0.0.1:0"])
            endpoint.relays.keep(relay.addrs[0])
            await until(lambda: endpoint.relays.addrs)
            mesh.publish(of(identity))
            await until(lambda: relay.desk.directory.entries())
            (first,) = relay.desk.directory.entries()
            assert first.announcement.relays == endpoint.relays.addrs and first.announcement.valid_s == VALID_S
            assert abs(first.announcement.issued_at / 1000 - time.time()) < WAIT_S, (
                "not when the model's process made it"
            )
            for _ in range(2):
                mesh.refresh()
            await until(lambda: relay.desk.directory.entries()[0].announcement.issued_at > first.announcement.issued_at)
        finally:
            await mesh.close()
            endpoint.close()
            relay.close()

    asyncio.run(asyncio.wait_for(test(), 60))
