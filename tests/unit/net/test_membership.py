"""Who is let into a network: memberships, their limits, and lists of what was revoked. The clock is a number here."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hopformer.errors import MembershipError, WireError
from hopformer.net.grant import (
    LAST_SECOND,
    MAX_RELAY_ADDR_BYTES,
    MAX_RELAYS,
    SERIAL_BYTES,
    Grant,
    Role,
    relay_text,
)
from hopformer.net.identity import Identity, PeerId
from hopformer.net.invite import Token
from hopformer.net.membership import AUTHORITY, MAX_MEMBERSHIP_BYTES, Member, Membership, Network
from hopformer.net.revocations import MAX_REVOCATIONS, MAX_REVOCATIONS_BYTES, MAX_VERSION, Revocations

AUTHOR, MEMBER, JOINER, OTHER = (Identity.from_seed(bytes([seed]) * 32) for seed in (1, 2, 3, 4))
SERIAL = b"serial 1"
NOW = 1_800_000_000
RELAY = f"{AUTHOR.peer_id}@relay.example:4711"
GRANT = Grant(AUTHOR.public_bytes, SERIAL, Role.SERVE, NOW + 100, (RELAY,), MEMBER.public_bytes)
SHOWN = Token.sign(GRANT, AUTHOR, MEMBER).membership(JOINER.peer_id)
LISTED = Revocations(7, frozenset((SERIAL, b"serial 2")), frozenset((OTHER.peer_id,))).signed_by(AUTHOR)


def largest_grant() -> Grant:
    addr = "h" * (MAX_RELAY_ADDR_BYTES - 6) + ":65535"
    relays = tuple(f"{PeerId(bytes([index]) * 22)}@{addr}" for index in range(MAX_RELAYS))
    return replace(GRANT, relays=relays, expires_at=LAST_SECOND)


def network(*lists: Revocations) -> Network:
    made = Network(AUTHOR.peer_id)
    for one in lists:
        assert made.take_revocations(one.signed_by(AUTHOR))
        made.check_integrity()
    return made


def refusal(network: Network, membership: bytes, peer: PeerId = JOINER.peer_id, now: float = NOW) -> str:
    with pytest.raises(MembershipError) as caught:
        network.admit(membership, peer, now)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("role", "roles"), [(Role.SERVE, {Role.SERVE, Role.CHAT}), (Role.CHAT, {Role.CHAT})])
def test_who_may_serve_may_chat_as_well_and_who_may_chat_nothing_else(role: Role, roles: set[Role]) -> None:
    shown = Token.sign(replace(GRANT, role=role), AUTHOR, MEMBER).membership(JOINER.peer_id)
    assert network().admit(shown, JOINER.peer_id, NOW) == Member(frozenset(roles), SERIAL, NOW + 100)


def test_the_authority_needs_no_membership_and_may_do_everything() -> None:
    assert network().admit(b"", AUTHOR.peer_id, NOW) == AUTHORITY
    assert AUTHORITY.roles == {Role.SERVE, Role.CHAT, Role.RELAY}
    assert network().why_ended(AUTHORITY, AUTHOR.peer_id, LAST_SECOND) is None


def test_who_shows_nothing_is_told_to_join() -> None:
    assert "must join with a token" in refusal(network(), b"")


def test_a_membership_is_good_for_one_peer_id_alone() -> None:
    assert "made for another peer id" in refusal(network(), SHOWN, OTHER.peer_id)
    assert "made for another peer id" in refusal(network(), SHOWN, MEMBER.peer_id)


def test_any_number_of_peers_join_by_one_token() -> None:
    token = Token.sign(GRANT, AUTHOR, MEMBER)
    for peer in (JOINER.peer_id, OTHER.peer_id, MEMBER.peer_id):
        assert network().admit(token.membership(peer), peer, NOW).serial == SERIAL


def test_a_member_of_another_network_is_none_of_this_one() -> None:
    assert f"is of network {AUTHOR.peer_id}; this is {OTHER.peer_id}" in refusal(Network(OTHER.peer_id), SHOWN)


def test_a_grant_that_somebody_else_signed_is_forged() -> None:
    signature = OTHER.sign(b"hopformer grant v1\0" + GRANT.pack())
    shown = Membership.of(GRANT, signature, MEMBER, JOINER.peer_id).pack()
    assert "forged" in refusal(network(), shown)


def test_no_term_of_a_grant_can_be_changed_by_its_member() -> None:
    signature = GRANT.signed_by(AUTHOR)
    for changed in (
        replace(GRANT, role=Role.CHAT),
        replace(GRANT, expires_at=NOW + 101),
        replace(GRANT, serial=b"another."),
        replace(GRANT, relays=()),
    ):
        assert "forged" in refusal(network(), Membership.of(changed, signature, MEMBER, JOINER.peer_id).pack())
    other_key = replace(GRANT, member=OTHER.public_bytes)
    assert "forged" in refusal(network(), Membership.of(other_key, signature, OTHER, JOINER.peer_id).pack())


@pytest.mark.parametrize("now", [0, NOW, NOW + 99, NOW + 99.999])
def test_a_membership_is_good_until_the_second_at_which_it_expires(now: float) -> None:
    member = network().admit(SHOWN, JOINER.peer_id, now)
    assert network().why_ended(member, JOINER.peer_id, now) is None


@pytest.mark.parametrize("now", [NOW + 100, NOW + 100.5, LAST_SECOND])
def test_a_membership_is_not_good_from_the_second_at_which_it_expires(now: float) -> None:
    member = network().admit(SHOWN, JOINER.peer_id, NOW)
    words = f"the membership of {JOINER.peer_id} expired at 2027-01-15 08:01:40 UTC"
    assert refusal(network(), SHOWN, now=now) == words == network().why_ended(member, JOINER.peer_id, now)


def test_a_revoked_serial_ends_every_peer_that_joined_by_it() -> None:
    token, met = Token.sign(GRANT, AUTHOR, MEMBER), network()
    members = {peer: met.admit(token.membership(peer), peer, NOW) for peer in (JOINER.peer_id, OTHER.peer_id)}
    assert met.take_revocations(Revocations(1, frozenset((SERIAL,))).signed_by(AUTHOR))
    met.check_integrity()
    for peer, member in members.items():
        words = f"the invite {SERIAL.hex()} by which {peer} joined was revoked"
        assert met.why_ended(member, peer, NOW) == words == refusal(met, token.membership(peer), peer)


def test_a_revoked_peer_ends_that_peer_whatever_it_joined_by() -> None:
    met = network(Revocations(1, peers=frozenset((JOINER.peer_id,))))
    token = Token.sign(replace(GRANT, serial=b"serial 9"), AUTHOR, MEMBER)
    assert refusal(met, token.membership(JOINER.peer_id)) == f"{JOINER.peer_id} was revoked"
    assert met.admit(token.membership(OTHER.peer_id), OTHER.peer_id, NOW).serial == b"serial 9"


def test_the_authority_is_let_in_even_if_a_list_names_it() -> None:
    met = network(Revocations(1, peers=frozenset((AUTHOR.peer_id,))))
    assert met.admit(b"", AUTHOR.peer_id, NOW) == AUTHORITY


def test_versions_of_a_list_never_roll_back() -> None:
    met, newest = network(Revocations(5, frozenset((SERIAL,)))), met_version(5)
    for version in (0, 1, 4, 5):
        assert not met.take_revocations(Revocations(version).signed_by(AUTHOR))
        met.check_integrity()
    assert met.revocations == newest and "revoked" in refusal(met, SHOWN)
    assert not met.take_revocations(newest.signed_by(AUTHOR)), "it is known already"
    assert met.take_revocations(Revocations(6).signed_by(AUTHOR))
    assert met.admit(SHOWN, JOINER.peer_id, NOW).serial == SERIAL, "the authority may change its mind"


def met_version(version: int) -> Revocations:
    return Revocations(version, frozenset((SERIAL,)))


def test_a_list_is_handed_on_as_it_came() -> None:
    first, second = network(), network()
    assert first.revocations_blob is None
    assert first.take_revocations(LISTED) and first.revocations_blob == LISTED
    assert second.take_revocations(first.revocations_blob) and second.revocations == first.revocations


def test_a_list_of_somebody_else_is_refused_and_changes_nothing() -> None:
    met, forged = network(), bytearray(LISTED)
    with pytest.raises(MembershipError, match=f"of network {OTHER.peer_id}"):
        met.take_revocations(Revocations(9).signed_by(OTHER))
    forged[35] ^= 1  # its version
    with pytest.raises(MembershipError, match="forged"):
        met.take_revocations(bytes(forged))
    met.check_integrity()
    assert met.revocations == Revocations()


def test_the_next_list_is_newer_even_if_the_last_was_lost() -> None:
    assert Revocations(5).with_serial(SERIAL, NOW).version == NOW
    assert Revocations(NOW + 10).with_peer(OTHER.peer_id, NOW).version == NOW + 11


def test_the_largest_list_goes_through_and_one_more_entry_does_not() -> None:
    peers = frozenset(PeerId(index.to_bytes(22, "big")) for index in range(MAX_REVOCATIONS))
    blob = Revocations(MAX_VERSION, frozenset(), peers).signed_by(AUTHOR)
    assert len(blob) == MAX_REVOCATIONS_BYTES
    met = network()
    assert met.take_revocations(blob) and met.revocations.peers == peers
    with pytest.raises(MembershipError, match="is 1025; 0 to 1024 are allowed"):
        Revocations(1, frozenset((SERIAL,)), peers).signed_by(AUTHOR)
    with pytest.raises(MembershipError, match="is 4294967296;"):
        Revocations(MAX_VERSION + 1).signed_by(AUTHOR)
    with pytest.raises(MembershipError, match=f"has {MAX_REVOCATIONS_BYTES + 1} bytes"):
        met.take_revocations(blob + b"\0")


@pytest.mark.parametrize(
    "entries",
    [[b"serial 2", b"serial 1"], [b"serial 1", b"serial 1"]],
    ids=["descending", "twice"],
)
def test_a_list_with_a_second_spelling_is_refused_though_it_is_signed(entries: list[bytes]) -> None:
    body = AUTHOR.public_bytes + bytes((0, 0, 0, 1)) + bytes((0, 2)) + b"".join(entries) + bytes((0, 0))
    with pytest.raises(MembershipError, match="do not ascend"):
        network().take_revocations(body + AUTHOR.sign(b"hopformer revocations v1\0" + body))


def test_the_largest_membership_fits_and_a_larger_one_is_not_looked_at() -> None:
    shown = Token.sign(largest_grant(), AUTHOR, MEMBER).membership(JOINER.peer_id)
    assert len(shown) == 822 <= MAX_MEMBERSHIP_BYTES
    assert network().admit(shown, JOINER.peer_id, NOW).expires_at == LAST_SECOND
    assert "is 65535; 0 to 1024 are allowed" in refusal(network(), b"\1" + b"\xff" * (MAX_MEMBERSHIP_BYTES - 1))
    assert "has 1025 bytes; 1024 are allowed" in refusal(network(), b"\1" * (MAX_MEMBERSHIP_BYTES + 1))


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"serial": b"short"}, "has 5 bytes"),
        ({"role": Role.RELAY}, "nobody is granted the role of a relay"),
        ({"expires_at": LAST_SECOND + 1}, "expires_at is"),
        ({"expires_at": -1}, "expires_at is -1"),
        ({"relays": (RELAY, RELAY)}, "named twice"),
        ({"relays": tuple(f"{RELAY[:-1]}{index}" for index in range(MAX_RELAYS + 1))}, "is 5; 0 to 4"),
        ({"relays": (RELAY.replace("relay", "r" * MAX_RELAY_ADDR_BYTES),)}, "length of the address of a relay"),
        ({"relays": ("relay.example:4711",)}, "is not PEER_ID@HOST:PORT"),
        ({"relays": (f"{AUTHOR.peer_id}@relay.example",)}, "is not PEER_ID@HOST:PORT"),
        ({"member": b""}, "the member's key has 0 bytes"),
    ],
)
def test_a_grant_beyond_its_limits_cannot_be_made(changed: dict[str, object], fault: str) -> None:
    with pytest.raises(WireError, match=fault):
        replace(GRANT, **changed).pack()  # type: ignore[arg-type]


def test_a_relay_is_spelled_in_one_way_and_its_peer_may_be_left_out() -> None:
    assert relay_text(RELAY.replace(str(AUTHOR.peer_id), str(AUTHOR.peer_id).upper()), OTHER.peer_id) == RELAY
    assert relay_text("relay.example:4711", AUTHOR.peer_id) == RELAY
    assert relay_text("[::1]:4711", AUTHOR.peer_id) == f"{AUTHOR.peer_id}@[::1]:4711"
    for text in ("", "relay.example", "@relay.example:1", f"{AUTHOR.peer_id}@", "h" * MAX_RELAY_ADDR_BYTES + ":1"):
        with pytest.raises(MembershipError):
            relay_text(text, AUTHOR.peer_id)


relays = st.lists(
    st.builds(
        "{}@{}:{}".format, st.builds(PeerId, st.binary(min_size=22, max_size=22)), st.just("h"), st.integers(1, 65535)
    ),
    max_size=MAX_RELAYS,
    unique=True,
).map(tuple)


@given(
    st.binary(min_size=SERIAL_BYTES, max_size=SERIAL_BYTES),
    st.sampled_from([Role.SERVE, Role.CHAT]),
    st.integers(0, LAST_SECOND),
    relays,
)
@settings(max_examples=50, deadline=None)
def test_every_grant_reads_back_from_its_only_spelling(
    serial: bytes, role: Role, expires_at: int, relays: tuple[str, ...]
) -> None:
    grant = Grant(AUTHOR.public_bytes, serial, role, expires_at, relays, MEMBER.public_bytes)
    assert Grant.unpack(grant.pack()) == grant
    for wrong in (grant.pack() + b"\0", grant.pack()[:-1], b"\2" + grant.pack()[1:], b""):
        with pytest.raises(WireError):
            Grant.unpack(wrong)


@given(st.integers(0, len(SHOWN) - 1), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_a_membership_with_any_byte_changed_is_refused(place: int, flip: int) -> None:
    changed = bytearray(SHOWN)
    changed[place] ^= flip
    refusal(network(), bytes(changed))


@pytest.mark.parametrize("good", [SHOWN, LISTED], ids=["membership", "revocations"])
def test_whatever_is_cut_short_or_goes_on_is_refused(good: bytes) -> None:
    take = network().take_revocations if good is LISTED else lambda data: network().admit(data, JOINER.peer_id, NOW)
    for wrong in (*(good[:length] for length in range(len(good))), good + b"\0", good + good):
        with pytest.raises(MembershipError):
            take(wrong)


@given(st.integers(0, len(LISTED) - 1), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_a_list_with_any_byte_changed_is_refused(place: int, flip: int) -> None:
    changed, met = bytearray(LISTED), network()
    changed[place] ^= flip
    with pytest.raises(MembershipError):
        met.take_revocations(bytes(changed))
    met.check_integrity()


@given(st.binary(max_size=MAX_MEMBERSHIP_BYTES + 8))
@settings(max_examples=200, deadline=None)
def test_bytes_of_chance_are_refused(data: bytes) -> None:
    refusal(network(), data)
    with pytest.raises(MembershipError):
        network().take_revocations(data)
