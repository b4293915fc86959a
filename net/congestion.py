"""How many bytes may be under way on a path: as many as the path was seen to deliver in a round trip, times two.

An estimate of bandwidth and of the shortest round trip in the manner of BBR (Cardwell et al., "BBR: Congestion-Based
Congestion Control", ACM Queue 14(5), 2016), much reduced: no pacing, no probing phases. Loss is not taken for
congestion until it is heavy, so that a path which loses one packet in a hundred keeps its speed; a window that halves
at each loss has 1/40 of it at 20 ms. Not here: which packets are lost (quic.py).
"""

from collections import deque
from collections.abc import Iterable

from aioquic.quic.congestion.base import QuicCongestionControl, register_congestion_control
from aioquic.quic.packet_builder import QuicSentPacket

NAME = "hopformer"  # in aioquic's registry of congestion controls

SHORT_PATH_RTT_S = 0.010  # below it two peers are taken to be neighbours; of that a handshake computes 5 ms itself
MIN_WINDOW_BYTES = 128 << 10  # 16 steps of 8 KiB, sent without having asked the path
SHORT_PATH_MIN_WINDOW_BYTES = 512 << 10  # there acknowledgements wait longer (5 ms) than packets travel
SHORT_PATH_WINDOW_BYTES = 1 << 20  # a quarter of the 4 MiB socket buffer that endpoint.py asks for
LONG_PATH_WINDOW_BYTES = 4 << 20  # 40 MiB/s at 100 ms, more than Python sends

_WINDOW_GAIN = 2.0  # what is sent, and what is acknowledged meanwhile
_STARTUP_GAIN = 2.9  # 2 / ln 2: the estimate doubles each round trip (BBR, appendix)
_STARTUP_GROWTH = 1.25  # a round trip that brings less than a quarter more has found the path's rate ...
_STARTUP_ROUNDS = 3  # ... when three in a row do
_HEAVY_LOSS = 0.15  # of a round trip's bytes; above it the path is full
_BACKOFF = 0.7
_RATE_MEMORY_ROUNDS = 10  # how long the best rate is believed
_RATE_MEMORY_S = 0.5  # at least, as a short path's round trips are over in no time
_RTT_MEMORY_S = 10.0  # how long the shortest round trip is believed: routes change


class DeliveryRateControl(QuicCongestionControl):
    """aioquic asks this how much may be in flight (RFC 9002, section 7, leaves the choice to the sender)."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self.congestion_window = MIN_WINDOW_BYTES
        self.min_rtt_s = float("inf")
        self._min_rtt_at = 0.0
        self._delivered = 0  # bytes, ever
        self._delivered_at = 0.0
        self._sent: dict[int, tuple[int, float]] = {}  # packet number: the two above when it left
        self._rates: deque[tuple[float, float]] = deque()  # (time, bytes/s), falling; the first is the best one
        self._round_ends = 0  # the round trip is over when this much is delivered
        self._round_acked = self._round_lost = 0
        self._startup = True
        self._startup_rate = 0.0
        self._startup_stalls = 0

    @property
    def rate(self) -> float:
        """Bytes per second that the path delivers, as far as is known."""
        return self._rates[0][1] if self._rates else 0.0

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        """Something left."""
        if self.bytes_in_flight == 0:
            self._delivered_at = _sent_time(packet)  # after a pause, time counts from here
        self.bytes_in_flight += packet.sent_bytes
        self._sent[packet.packet_number] = (self._delivered, self._delivered_at)

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        """Something arrived."""
        delivered_then, then = self._forget(packet)
        self._delivered += packet.sent_bytes
        self._delivered_at = now
        self._round_acked += packet.sent_bytes
        self._note_rtt(now, now - _sent_time(packet))
        if now > then:
            self._note_rate(now, (self._delivered - delivered_then) / max(now - then, self.min_rtt_s))
        if delivered_then >= self._round_ends:
            self._end_round(now)
        self._set_window(packet.sent_bytes)

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        """Nobody waits for them any more; that says nothing about the path."""
        for packet in packets:
            self._forget(packet)

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        """Nothing is done before the round trip is over: one loss is chance."""
        for packet in packets:
            self._forget(packet)
            self._round_lost += packet.sent_bytes

    def on_persistent_congestion(self) -> None:
        """The path was gone for a while: what was known about it is void."""
        self._rates.clear()
        self.congestion_window = MIN_WINDOW_BYTES
        self._startup, self._startup_rate, self._startup_stalls = True, 0.0, 0

    def forget_path(self) -> None:
        """Packets take another path from now on."""
        self.min_rtt_s = float("inf")
        self.on_persistent_congestion()

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        """Each packet's own time is taken instead."""

    def _forget(self, packet: QuicSentPacket) -> tuple[int, float]:
        self.bytes_in_flight -= packet.sent_bytes
        return self._sent.pop(packet.packet_number)

    def _note_rtt(self, now: float, rtt_s: float) -> None:
        if 0 < rtt_s <= self.min_rtt_s or now - self._min_rtt_at > _RTT_MEMORY_S:
            self.min_rtt_s, self._min_rtt_at = max(rtt_s, 1e-6), now

    def _note_rate(self, now: float, rate: float) -> None:
        rates = self._rates
        while rates and rates[-1][1] <= rate:
            rates.pop()
        rates.append((now, rate))
        oldest = now - max(_RATE_MEMORY_ROUNDS * self.min_rtt_s, _RATE_MEMORY_S)
        while rates[0][0] < oldest:
            rates.popleft()

    def _end_round(self, now: float) -> None:
        self._round_ends = self._delivered
        loss = self._round_lost / max(1, self._round_lost + self._round_acked)
        self._round_acked = self._round_lost = 0
        if loss > _HEAVY_LOSS:
            self._startup = False
            lower = _BACKOFF * self.rate
            self._rates.clear()
            self._rates.append((now, lower))
        elif self._startup:
            if self.rate > _STARTUP_GROWTH * self._startup_rate:
                self._startup_rate, self._startup_stalls = self.rate, 0
            else:
                self._startup_stalls += 1
                self._startup = self._startup_stalls < _STARTUP_ROUNDS

    def _set_window(self, acked_bytes: int) -> None:
        gain = _STARTUP_GAIN if self._startup else _WINDOW_GAIN
        least, most = MIN_WINDOW_BYTES, LONG_PATH_WINDOW_BYTES
        if self.min_rtt_s < SHORT_PATH_RTT_S:
            least, most = SHORT_PATH_MIN_WINDOW_BYTES, SHORT_PATH_WINDOW_BYTES
        target = min(gain * self.rate * min(self.min_rtt_s, 1.0), self.congestion_window + acked_bytes, most)
        if self._startup:
            target = max(target, min(self.congestion_window, most))
        self.congestion_window = max(least, int(target))


def _sent_time(packet: QuicSentPacket) -> float:
    assert packet.sent_time is not None
    return packet.sent_time


register_congestion_control(NAME, DeliveryRateControl)
