"""aioquic's QuicConnection as hopformer uses it: both ends show a key, and nothing else than keys is believed.

This is the only file that knows names which aioquic keeps to itself; each is listed in PRIVATE_NAMES and has a test,
and pyproject.toml pins the versions that have them. What it changes, and why:

- the server asks for a certificate, which aioquic does for its own tests only; its chain is not looked at on either
  side, as TLS 1.3 proves the possession of the key in it anyway (RFC 8446, section 4.4.3);
- no session tickets and no 0-RTT: a resumed session would carry no keys, and early data can be replayed;
- loss is declared later on a path that was seen to reorder (RFC 9002, section 6.1.1);
- no pacer: its timers cost more than a step takes, and the window is what the path holds;
- an acknowledgement goes with whatever is sent, where aioquic lets both leave apart, and waits 5 ms at most, on which
  the other side counts;
- the receive window slides over what was taken out, where aioquic doubles it whether anybody reads or not.

Not here: sockets, addresses, what is sent.
"""

import math
import ssl
from collections import deque
from typing import Any

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import Limit, QuicConnection, QuicReceiveContext
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import (
    K_PACKET_THRESHOLD,
    K_TIME_THRESHOLD,
    QuicPacketPacer,
    QuicPacketRecovery,
    QuicPacketSpace,
)
from aioquic.tls import CipherSuite, Epoch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from . import congestion
from .identity import Identity, PeerId
from .wire import WIRE_VERSION

PRIVATE_NAMES = (
    "_initialize",
    "_is_client",
    "_local_max_data",
    "_loss",
    "_spaces",
    "_ack_delay",
    "_close_event",
    "_max_datagram_size",
    "_payload_received",
    "_send_probe",
    "_logger",
)
PRIVATE_TLS_NAMES = ("_request_client_certificate", "_peer_certificate")
PRIVATE_RECOVERY_NAMES = (
    "_cc",
    "_detect_loss",
    "_in_persistent_congestion",
    "_on_packets_lost",
    "_pacer",
    "_pto_count",
    "_rtt_initialized",
    "_rtt_latest",
    "_rtt_min",
    "_rtt_smoothed",
)

ALPN = f"hopformer/{WIRE_VERSION}"
VIRTUAL_ADDR = ("fd00::686f:7066", 4711)  # every connection's peer, as aioquic sees it; the real one is paths.py's
CONNECTION_ID_BYTES = 8
MIN_DATAGRAM_BYTES = 1200  # RFC 9000, section 14: every path carries them
IDLE_TIMEOUT_S = 15.0  # three of link.py's rare pings; a backstop, as link.py notices earlier
ACK_DELAY_S = 0.005  # what is sent before carries it: the answer to a step of a small span, or a credit
PEER_ACK_DELAY_S = 0.010  # what the other side is granted: its own 5 ms, and a scheduler's time slice
INITIAL_RTT_S = 0.1  # of a path that was never measured; the first resent Initial leaves after twice this
RECEIVE_WINDOW_BYTES = 8 << 20  # twice what congestion.py lets be under way
RELAY_WINDOW_BYTES = 64 << 10  # of a relay, which takes small messages: the longest is wire.MAX_REVOKE_BYTES
_MAX_PACKET_THRESHOLD = 128  # packets that may overtake one: about what 5 ms of reordering holds at 40 MiB/s
_MAX_TIME_THRESHOLD = 2.0  # round trips that one may be late
_REMEMBERED_LOSSES = 1024


class MutualQuic(QuicConnection):
    """One end of a connection, sans I/O. ``peer_id`` is proven once aioquic reports HandshakeCompleted.

    Args:
        original_destination_connection_id: of the Initial that this answers; None at the end that dials.
        retry_source_connection_id: where that was answered by a Retry first, the id in it.
    """

    def __init__(
        self,
        credentials: "Credentials",
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        is_client = original_destination_connection_id is None
        super().__init__(
            configuration=credentials.configuration(is_client),
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        self.num_authentic = 0
        self._receive_limit = _SlidingLimit(self._local_max_data)
        self._local_max_data = self._receive_limit
        self._loss = _TolerantRecovery(
            congestion_control_algorithm=congestion.NAME,
            initial_rtt=INITIAL_RTT_S,
            max_datagram_size=MIN_DATAGRAM_BYTES,
            peer_completed_address_validation=not is_client,
            send_probe=self._send_probe,
            logger=self._logger,
        )
        self._ack_delay = ACK_DELAY_S

    @property
    def is_client(self) -> bool:
        """Whether this end dialled."""
        return bool(self._is_client)

    @property
    def peer_id(self) -> PeerId | None:
        """Whose key the other end has shown; None where it showed none, or another kind than Ed25519."""
        certificate = self.tls._peer_certificate
        key = None if certificate is None else certificate.public_key()
        if not isinstance(key, Ed25519PublicKey):
            return None
        return PeerId.of(key.public_bytes(Encoding.Raw, PublicFormat.Raw))

    @property
    def ending(self) -> ConnectionTerminated | None:
        """Why it ends, as soon as that is known; aioquic tells only when it has waited for stray packets."""
        return self._close_event

    @property
    def smoothed_rtt_s(self) -> float:
        """A round trip, 0 before the first is over."""
        return float(self._loss._rtt_smoothed)

    @property
    def min_rtt_s(self) -> float:
        """The shortest round trip of late: the path's own, without what waits in queues; inf before the first."""
        control = self._loss._cc
        assert isinstance(control, congestion.DeliveryRateControl)
        return control.min_rtt_s

    @property
    def congestion_window(self) -> int:
        """Bytes that may be under way."""
        return int(self._loss.congestion_window)

    @property
    def max_datagram_bytes(self) -> int:
        """The largest datagram that is sent from now on. aioquic garbles streams in those above 16,000 bytes."""
        return int(self._max_datagram_size)

    @max_datagram_bytes.setter
    def max_datagram_bytes(self, value: int) -> None:
        assert MIN_DATAGRAM_BYTES <= value <= 16_000
        self._max_datagram_size = value

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        """See QuicConnection; an acknowledgement that waits goes along."""
        super().send_stream_data(stream_id, data, end_stream)
        space = self._spaces[Epoch.ONE_RTT]
        if space.ack_at is not None:
            space.ack_at = 0.0

    def take_consumed(self, num_bytes: int) -> None:
        """Open the receive window for as much as was read."""
        self._receive_limit.consumed += num_bytes

    def forget_path(self) -> None:
        """The peer is reached on another way: what was measured on the last one is void (RFC 9000, section 9.4)."""
        recovery = self._loss
        assert isinstance(recovery, _TolerantRecovery)
        recovery.forget_path()

    def peer_kept_its_promises(self) -> None:
        """Call when the handshake is over: the other end is of our kind, and acknowledges as soon as we do."""
        self._loss.max_ack_delay = PEER_ACK_DELAY_S

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        if not self._is_client:
            self.tls._request_client_certificate = True

    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        """aioquic calls this for every packet that was decrypted and is no duplicate."""
        self.num_authentic += 1
        outcome: tuple[bool, bool] = super()._payload_received(context, plain, crypto_frame_required)
        return outcome


class Credentials:
    """A node's certificate and key, made once for all its connections, and what each of them may hold."""

    def __init__(self, identity: Identity, receive_window_bytes: int = RECEIVE_WINDOW_BYTES) -> None:
        self.peer_id = identity.peer_id
        self.receive_window_bytes = receive_window_bytes
        self._certificate, self._key = identity.tls_credentials()

    def configuration(self, is_client: bool) -> QuicConfiguration:
        """For one connection: aioquic keeps it, and changes it after a Retry."""
        configuration = QuicConfiguration(
            alpn_protocols=[ALPN],
            congestion_control_algorithm=congestion.NAME,
            connection_id_length=CONNECTION_ID_BYTES,
            idle_timeout=IDLE_TIMEOUT_S,
            is_client=is_client,
            max_data=self.receive_window_bytes,
            max_stream_data=self.receive_window_bytes,
            max_datagram_size=MIN_DATAGRAM_BYTES,
            supported_versions=[QuicProtocolVersion.VERSION_1],
            initial_rtt=INITIAL_RTT_S,
            verify_mode=ssl.CERT_NONE,  # of the chain, which there is none of
        )
        configuration.cipher_suites = [CipherSuite.AES_128_GCM_SHA256]
        configuration.certificate, configuration.private_key = self._certificate, self._key
        return configuration


class _SlidingLimit(Limit):
    """MAX_DATA (RFC 9000, section 19.9): at most so much as at first beyond what was consumed.

    aioquic doubles ``value`` whenever half of it is used; the setter grants no more than there is room for.
    """

    def __init__(self, limit: Limit) -> None:
        self.consumed = 0
        self._window = self._granted = limit.value
        super().__init__(limit.frame_type, limit.name, limit.value)

    @property
    def value(self) -> int:
        """What the peer may send in all."""
        return self._granted

    @value.setter
    def value(self, wanted: int) -> None:
        grant = min(wanted, self.consumed + self._window)
        if grant - self._granted >= self._window // 4:  # not a frame for each packet
            self._granted = grant


class _NoPacer(QuicPacketPacer):
    """Sends at once: a pacer that never learns a rate."""

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """Nothing is kept."""


class _TolerantRecovery(QuicPacketRecovery):
    """Loss detection that learns how far a path reorders, from losses that turn out to be none."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._pacer = _NoPacer(max_datagram_size=MIN_DATAGRAM_BYTES)
        self._packet_threshold = K_PACKET_THRESHOLD
        self._time_threshold = K_TIME_THRESHOLD
        self._declared_lost: deque[int] = deque(maxlen=_REMEMBERED_LOSSES)

    def forget_path(self) -> None:
        """Round trips and rates begin anew, and what is lost is sent again soon."""
        self._rtt_initialized, self._rtt_min, self._pto_count = False, math.inf, 0
        self._packet_threshold, self._time_threshold = K_PACKET_THRESHOLD, K_TIME_THRESHOLD
        control = self._cc
        assert isinstance(control, congestion.DeliveryRateControl)
        control.forget_path()

    def on_ack_received(self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace) -> None:
        """An acknowledgement, which may name what was taken for lost."""
        if self._declared_lost:
            self._learn(ack_rangeset, space)
        super().on_ack_received(ack_rangeset=ack_rangeset, ack_delay=ack_delay, now=now, space=space)

    def _learn(self, ack_rangeset: RangeSet, space: QuicPacketSpace) -> None:
        oldest = self._declared_lost[0]
        acked = [one for one in ack_rangeset if one.stop > oldest]
        late = [one for one in self._declared_lost if any(one in packet_numbers for packet_numbers in acked)]
        if late:
            distance = space.largest_acked_packet - late[0]
            self._packet_threshold = min(_MAX_PACKET_THRESHOLD, max(self._packet_threshold, 2 * distance))
            self._time_threshold = _MAX_TIME_THRESHOLD
            self._declared_lost = deque((one for one in self._declared_lost if one not in late), _REMEMBERED_LOSSES)

    def _detect_loss(self, *, now: float, space: QuicPacketSpace) -> None:
        """As RFC 9002, appendix A.10, with the thresholds that were learned."""
        loss_delay = self._time_threshold * (max(self._rtt_latest, self._rtt_smoothed) or INITIAL_RTT_S)
        lost: list[QuicSentPacket] = []
        space.loss_time = None
        for packet_number, packet in space.sent_packets.items():
            if packet_number > space.largest_acked_packet:
                break
            assert packet.sent_time is not None
            late_at = packet.sent_time + loss_delay
            if packet_number <= space.largest_acked_packet - self._packet_threshold or late_at <= now:
                lost.append(packet)
            elif space.loss_time is None or space.loss_time > late_at:
                space.loss_time = late_at
        self._declared_lost.extend(packet.packet_number for packet in lost if packet.in_flight)
        persistent = self._in_persistent_congestion(packets=lost)
        self._on_packets_lost(now=now, packets=lost, persistent_congestion=persistent, space=space)
