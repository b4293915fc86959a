"""The directory under replays, forgeries, floods and time, as hypothesis likes, against the rules told in full."""

import contextlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hopformer.errors import NetworkError, WireError
from hopformer.net.announcement import MAX_SKEW_S, MAX_VALID_S, Announcement
from hopformer.net.directory import Directory, Via
from hopformer.net.identity import Identity, PeerId

START = 1_800_000_000.0
MAX_ENTRIES = 3
NODES = [Identity.from_seed(bytes([index]) * 32) for index in range(5)]
nodes = st.sampled_from(NODES)
ways = st.sampled_from([Via.LAN, Via.RELAY])


class Listening(RuleBasedStateMachine):
    """One listener. It knows all that was ever signed, and may hear any of it again."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Directory(max_entries=MAX_ENTRIES)
        self.now = 0.0
        self.signed: list[tuple[Announcement, bytes]] = []
        self.taken: dict[PeerId, int] = {}  # the newest that was taken, while the peer is remembered

    def hear(self, blob: bytes, via: Via) -> Announcement | None:
        try:
            return self.directory.put(blob, self.now, START + self.now, via)
        except NetworkError:
            return None

    @rule(who=nodes, valid_s=st.integers(1, MAX_VALID_S), ahead_ms=st.integers(-200_000, 90_000), via=ways)
    def announce(self, who: Identity, valid_s: int, ahead_ms: int, via: Via) -> None:
        issued_at = int((START + self.now) * 1000) + ahead_ms
        one = Announcement(who.public_bytes, issued_at, valid_s, "m", bytes(32), 4)
        self.signed.append((one, one.sign(who)))
        self.take(self.signed[-1], via)

    @rule(data=st.data(), via=ways)
    def replay(self, data: st.DataObject, via: Via) -> None:
        if self.signed:
            self.take(data.draw(st.sampled_from(self.signed)), via)

    def take(self, what: tuple[Announcement, bytes], via: Via) -> None:
        one, blob = what
        is_remembered = one.peer in self.directory._known
        was_good = one.remaining_s(START + self.now) > 0 and one.issued_at / 1000 <= START + self.now + MAX_SKEW_S
        found = self.hear(blob, via)
        if found is None:
            return
        assert found == one and was_good
        if is_remembered:
            assert one.issued_at > self.taken[one.peer], "an older one took the place of a newer one"
        self.taken[one.peer] = one.issued_at

    @rule(data=st.data(), index=st.integers(0, 200), via=ways)
    def forge(self, data: st.DataObject, index: int, via: Via) -> None:
        if not self.signed:
            return
        _, blob = data.draw(st.sampled_from(self.signed))
        forged = bytearray(blob)
        forged[index % len(blob)] ^= 1
        before = self.directory.entries()
        assert self.hear(bytes(forged), via) is None and self.directory.entries() == before

    @rule(noise=st.binary(max_size=200), via=ways)
    def babble(self, noise: bytes, via: Via) -> None:
        with contextlib.suppress(WireError):
            assert self.directory.put(noise, self.now, START + self.now, via) is None

    @rule(who=nodes, via=st.none() | ways)
    def leave(self, who: Identity, via: Via | None) -> None:
        was_listed = self.directory.entry(who.peer_id) is not None
        is_gone = self.directory.gone(who.peer_id, via)
        assert is_gone == (was_listed and self.directory.entry(who.peer_id) is None)

    @rule(seconds=st.sampled_from([0.1, 1.0, 7.0, 40.0, 130.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        listed = {one.announcement.peer: one for one in self.directory.entries()}
        dropped = set(self.directory.expire(self.now))
        assert dropped == {peer for peer, one in listed.items() if one.expires_at <= self.now}

    @rule()
    def wait_for_deadline(self) -> None:
        deadline = self.directory.next_deadline()
        if deadline is not None and deadline > self.now:
            self.wait(deadline - self.now)

    @invariant()
    def holds(self) -> None:
        self.directory.check_integrity()
        entries = self.directory.entries()
        assert len(entries) <= MAX_ENTRIES
        for one in entries:
            said = one.announcement
            assert (said, one.blob) in self.signed and one.via
            assert self.now < one.expires_at <= one.heard_at + said.valid_s
            assert START + one.expires_at <= said.issued_at / 1000 + said.valid_s + MAX_SKEW_S + 0.001
        deadline = self.directory.next_deadline()
        assert deadline is None or all(deadline <= one.expires_at for one in entries)


TestListening = Listening.TestCase
TestListening.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
