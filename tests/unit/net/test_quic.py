"""The adapter to aioquic: keys on both sides, nothing resumed, and every private name that it uses."""

import ssl
from dataclasses import dataclass

import pytest
from aioquic.quic import events, recovery
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import Limit, QuicConnection
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import Epoch
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from hopformer.net import quic
from hopformer.net.identity import Identity
from hopformer.net.quic import ALPN, RECEIVE_WINDOW_BYTES, VIRTUAL_ADDR, Credentials, MutualQuic

ANNA, BELA, EVE = (Identity.generate() for _ in range(3))


@dataclass
class Pair:
    client: QuicConnection
    server: QuicConnection
    now: float = 100.0

    def run(self, rounds: int = 8) -> "Pair":
        for _ in range(rounds):
            self.pass_on(self.client, self.server)
            self.pass_on(self.server, self.client)
            self.now += 0.01
        return self

    def pass_on(self, sender: QuicConnection, receiver: QuicConnection, drop: tuple[int, ...] = ()) -> int:
        datagrams = sender.datagrams_to_send(self.now)
        for index, (datagram, _) in enumerate(datagrams):
            if index not in drop:
                receiver.receive_datagram(datagram, VIRTUAL_ADDR, self.now)
        return len(datagrams)


def pair(client: Credentials, server: Credentials) -> Pair:
    one = MutualQuic(client)
    one.connect(VIRTUAL_ADDR, now=100.0)
    return Pair(one, MutualQuic(server, one.original_destination_connection_id))


def told(connection: QuicConnection) -> list[events.QuicEvent]:
    found = []
    while (event := connection.next_event()) is not None:
        found.append(event)
    return found


def with_key_of(identity: Identity, key_owner: Identity) -> Credentials:
    """A certificate that was copied, and a key of one's own."""
    credentials = Credentials(identity)
    credentials._key = key_owner.tls_credentials()[1]
    return credentials


def test_both_ends_learn_whose_key_the_other_has() -> None:
    both = pair(Credentials(ANNA), Credentials(BELA)).run()
    assert both.client.peer_id == BELA.peer_id and both.server.peer_id == ANNA.peer_id
    completed = [one for one in told(both.server) if isinstance(one, events.HandshakeCompleted)]
    assert [(one.alpn_protocol, one.session_resumed) for one in completed] == [(ALPN, False)]


@pytest.mark.parametrize(("client", "server"), [((ANNA, EVE), (BELA, BELA)), ((ANNA, ANNA), (BELA, EVE))])
def test_a_copied_certificate_without_its_key_ends_the_handshake(
    client: tuple[Identity, Identity], server: tuple[Identity, Identity]
) -> None:
    both = pair(with_key_of(*client), with_key_of(*server)).run()
    assert not any(isinstance(one, events.HandshakeCompleted) for one in told(both.server))
    assert both.server.ending is not None and both.client.ending is not None


def test_a_client_without_a_certificate_has_no_peer_id() -> None:
    configuration = QuicConfiguration(is_client=True, alpn_protocols=[ALPN], verify_mode=ssl.CERT_NONE)
    client = QuicConnection(configuration=configuration)
    client.connect(VIRTUAL_ADDR, now=100.0)
    both = Pair(client, MutualQuic(Credentials(BELA), client.original_destination_connection_id)).run()
    assert any(isinstance(one, events.HandshakeCompleted) for one in told(both.server))
    assert both.server.peer_id is None


def test_a_key_of_another_kind_is_no_peer() -> None:
    credentials = Credentials(ANNA)
    key = ec.generate_private_key(ec.SECP256R1())
    old = credentials._certificate
    builder = x509.CertificateBuilder(
        old.issuer, old.subject, key.public_key(), 1, old.not_valid_before_utc, old.not_valid_after_utc
    )
    credentials._certificate, credentials._key = builder.sign(key, SHA256()), key
    both = pair(credentials, Credentials(BELA)).run()
    assert both.server.peer_id is None


def test_another_version_of_the_wire_ends_the_handshake() -> None:
    configuration = Credentials(ANNA).configuration(is_client=True)
    configuration.alpn_protocols = ["hopformer/0"]
    client = QuicConnection(configuration=configuration)
    client.connect(VIRTUAL_ADDR, now=100.0)
    both = Pair(client, MutualQuic(Credentials(BELA), client.original_destination_connection_id)).run()
    assert both.server.ending is not None and "ALPN" in both.server.ending.reason_phrase


def test_nothing_can_be_resumed_and_nothing_is_sent_early() -> None:
    both = pair(Credentials(ANNA), Credentials(BELA)).run()
    for end in (both.client, both.server):
        assert end.tls.new_session_ticket_cb is None and end.tls.get_session_ticket_cb is None
        assert end.configuration.session_ticket is None
        assert end.configuration.supported_versions == [QuicProtocolVersion.VERSION_1]


def test_a_certificate_says_nothing_but_the_key_and_does_not_age() -> None:
    certificate, key = ANNA.tls_credentials()
    assert certificate.public_key() == key.public_key()
    assert certificate.not_valid_after_utc.year == 9999 and certificate.not_valid_before_utc.year == 2000
    assert str(ANNA.peer_id) in certificate.subject.rfc4514_string()
    assert "Ed25519" not in repr(ANNA) and Identity.from_seed(ANNA.seed).peer_id == ANNA.peer_id


def test_the_private_names_are_there_and_mean_what_we_think() -> None:
    both = pair(Credentials(ANNA), Credentials(BELA)).run()
    for name in quic.PRIVATE_NAMES:
        assert hasattr(both.client, name), name
    for name in quic.PRIVATE_TLS_NAMES:
        assert hasattr(both.client.tls, name), name
    for name in quic.PRIVATE_RECOVERY_NAMES:
        assert hasattr(both.client._loss, name), name
    assert both.server.tls._request_client_certificate and not both.client.tls._request_client_certificate
    assert type(both.client._loss).__mro__[1] is recovery.QuicPacketRecovery
    assert both.client._loss.spaces  # the handshake has found our recovery and not the one it replaced


def test_every_authentic_packet_is_counted_and_no_other() -> None:
    both = pair(Credentials(ANNA), Credentials(BELA)).run()
    before = both.server.num_authentic
    assert before > 0
    both.client.send_ping(1)
    ((datagram, _),) = both.client.datagrams_to_send(both.now)
    for garbage in (datagram[:-1] + bytes([datagram[-1] ^ 1]), datagram[:20], b"\x40" + bytes(60)):
        both.server.receive_datagram(garbage, VIRTUAL_ADDR, both.now)
    assert both.server.num_authentic == before
    both.server.receive_datagram(datagram, VIRTUAL_ADDR, both.now)
    both.server.receive_datagram(datagram, VIRTUAL_ADDR, both.now)  # a copy
    assert both.server.num_authentic == before + 1


def test_an_acknowledgement_waits_five_milliseconds_and_nothing_is_paced() -> None:
    both = pair(Credentials(ANNA), Credentials(BELA)).run()
    both.client.send_ping(1)
    both.pass_on(both.client, both.server)
    assert both.server.get_timer() == pytest.approx(both.now + quic.ACK_DELAY_S)
    stream_id = both.client.get_next_available_stream_id(is_unidirectional=True)
    both.client.send_stream_data(stream_id, bytes(100_000))
    assert both.pass_on(both.client, both.server) > 80  # all at once


def test_an_acknowledgement_goes_with_what_is_sent_and_not_by_itself() -> None:
    both = pair(Credentials(ANNA), Credentials(BELA)).run()
    streams = {one: one.get_next_available_stream_id(is_unidirectional=True) for one in (both.client, both.server)}
    num_datagrams = 0
    for _ in range(10):
        for sender, receiver in ((both.client, both.server), (both.server, both.client)):
            assert both.pass_on(sender, receiver) == 0  # though it has something to acknowledge
            sender.send_stream_data(streams[sender], bytes(100))
            num_datagrams += both.pass_on(sender, receiver)
            assert sender._spaces[Epoch.ONE_RTT].ack_at is None
            both.now += 0.5 * quic.ACK_DELAY_S
    assert num_datagrams == 20
    assert both.client._loss.bytes_in_flight == 0  # what was sent first is acknowledged by the answer


def test_larger_datagrams_are_sent_once_they_are_allowed() -> None:
    both = pair(Credentials(ANNA), Credentials(BELA)).run()
    stream_id = both.client.get_next_available_stream_id(is_unidirectional=True)
    for size in (1200, 1452, 8900):
        both.client.max_datagram_bytes = size
        both.client.send_stream_data(stream_id, bytes(20_000))
        lengths = [len(datagram) for datagram, _ in both.client.datagrams_to_send(both.now)]
        assert max(lengths) == size == both.client.max_datagram_bytes
    with pytest.raises(AssertionError):
        both.client.max_datagram_bytes = 16_001


def test_the_receive_window_slides_over_what_was_read_and_not_over_what_was_not() -> None:
    both = pair(Credentials(ANNA), Credentials(BELA)).run()
    stream_id = both.client.get_next_available_stream_id(is_unidirectional=True)
    both.client.send_stream_data(stream_id, bytes(3 * RECEIVE_WINDOW_BYTES))

    def run(reads: bool) -> int:
        num_bytes = 0
        for _ in range(400):
            both.run(1)
            for event in told(both.server):
                if isinstance(event, events.StreamDataReceived):
                    num_bytes += len(event.data)
                    both.server.take_consumed(len(event.data) if reads else 0)
        return num_bytes

    assert run(reads=False) == RECEIVE_WINDOW_BYTES
    both.server.take_consumed(RECEIVE_WINDOW_BYTES)
    assert run(reads=True) == 2 * RECEIVE_WINDOW_BYTES


def test_the_limit_grants_no_frame_for_each_packet() -> None:
    limit = quic._SlidingLimit(Limit(frame_type=0x10, name="max_data", value=RECEIVE_WINDOW_BYTES))
    grants = set()
    for _ in range(1000):
        limit.consumed += RECEIVE_WINDOW_BYTES // 100
        limit.value *= 2
        grants.add(limit.value)
        assert limit.value <= limit.consumed + RECEIVE_WINDOW_BYTES
    assert len(grants) <= 41


def test_a_packet_that_was_overtaken_teaches_patience() -> None:
    both = pair(Credentials(ANNA), Credentials(BELA)).run()
    learned = both.client._loss
    assert learned._packet_threshold == recovery.K_PACKET_THRESHOLD
    stream_id = both.client.get_next_available_stream_id(is_unidirectional=True)
    both.client.send_stream_data(stream_id, bytes(20_000))
    datagrams = [datagram for datagram, _ in both.client.datagrams_to_send(both.now)]
    for datagram in datagrams[1:]:
        both.server.receive_datagram(datagram, VIRTUAL_ADDR, both.now)
    both.now += 1.5 * quic.ACK_DELAY_S
    both.pass_on(both.server, both.client)  # all but the first are acknowledged: it counts as lost
    both.server.receive_datagram(datagrams[0], VIRTUAL_ADDR, both.now)
    both.now += 1.5 * quic.ACK_DELAY_S
    both.pass_on(both.server, both.client)
    assert learned._packet_threshold > 2 * recovery.K_PACKET_THRESHOLD
    assert learned._time_threshold == 2.0


def test_a_lost_packet_teaches_nothing() -> None:
    both = pair(Credentials(ANNA), Credentials(BELA)).run()
    stream_id = both.client.get_next_available_stream_id(is_unidirectional=True)
    both.client.send_stream_data(stream_id, bytes(20_000))
    both.pass_on(both.client, both.server, drop=(2,))
    both.now += 1.5 * quic.ACK_DELAY_S
    both.run(20)
    assert both.client._loss._packet_threshold == recovery.K_PACKET_THRESHOLD
    assert sum(len(one.data) for one in told(both.server) if isinstance(one, events.StreamDataReceived)) == 20_000
