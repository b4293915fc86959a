"""The window follows what a simulated path delivers, and forgives single losses."""

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from aioquic.quic.congestion.base import create_congestion_control

from hopformer.net import congestion
from hopformer.net.congestion import MIN_WINDOW_BYTES, DeliveryRateControl

PACKET_BYTES = 1400


@dataclass
class Packet:
    packet_number: int
    sent_bytes: int
    sent_time: float


@dataclass
class Bottleneck:
    """A queue that empties at ``rate`` bytes/s, then a delay; what does not fit is lost."""

    rate: float
    rtt_s: float
    loss: float = 0.0
    queue_bytes: float = 1 << 20
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def run(self, control: DeliveryRateControl, seconds: float, now: float = 1.0) -> float:
        """Send as much as the window allows, all the time. Bytes per second that arrived in the second half."""
        end, free_at, number, delivered = now + seconds, now, 0, 0
        half = now + seconds / 2
        under_way: deque[tuple[float, Packet, bool]] = deque()
        while now < end:
            while control.bytes_in_flight + PACKET_BYTES <= control.congestion_window:
                packet = Packet(number, PACKET_BYTES, now)
                number += 1
                control.on_packet_sent(packet=packet)
                is_lost = self.chance.random() < self.loss or (free_at - now) * self.rate > self.queue_bytes
                if not is_lost:
                    free_at = max(free_at, now) + PACKET_BYTES / self.rate
                under_way.append((max(free_at, now) + self.rtt_s, packet, is_lost))
            at, packet, is_lost = under_way.popleft()
            now = max(now, at)
            if is_lost:
                control.on_packets_lost(now=now, packets=[packet])
            else:
                control.on_packet_acked(now=now, packet=packet)
                delivered += PACKET_BYTES if now > half else 0
        return delivered / (seconds / 2)


def forget_all(control: DeliveryRateControl) -> None:
    control.on_packets_expired(packets=[Packet(number, PACKET_BYTES, 0.0) for number in tuple(control._sent)])
    assert control.bytes_in_flight == 0


@pytest.mark.parametrize("rtt_s", [0.02, 0.1])
@pytest.mark.parametrize("loss", [0.0, 0.01, 0.03])
def test_loss_by_chance_costs_no_more_than_what_is_lost(rtt_s: float, loss: float) -> None:
    path = Bottleneck(rate=16e6, rtt_s=rtt_s, loss=loss)
    assert path.run(DeliveryRateControl(max_datagram_size=1200), seconds=4) > 0.85 * path.rate


def test_the_window_is_about_two_round_trips_of_what_the_path_delivers() -> None:
    control = DeliveryRateControl(max_datagram_size=1200)
    Bottleneck(rate=10e6, rtt_s=0.05, queue_bytes=8 << 20).run(control, seconds=5)
    assert control.rate == pytest.approx(10e6, rel=0.1)
    assert control.congestion_window == pytest.approx(2 * 10e6 * control.min_rtt_s, rel=0.2)


@pytest.mark.parametrize(
    ("rtt_s", "most"),
    [(0.001, congestion.SHORT_PATH_WINDOW_BYTES), (0.1, congestion.LONG_PATH_WINDOW_BYTES)],
)
def test_the_window_has_a_limit(rtt_s: float, most: int) -> None:
    control = DeliveryRateControl(max_datagram_size=1200)
    Bottleneck(rate=1e12, rtt_s=rtt_s, queue_bytes=1e12).run(control, seconds=100 * rtt_s)
    assert control.congestion_window == most


@pytest.mark.parametrize(
    ("rtt_s", "least"), [(0.02, MIN_WINDOW_BYTES), (0.0001, congestion.SHORT_PATH_MIN_WINDOW_BYTES)]
)
def test_the_window_never_falls_below_its_floor(rtt_s: float, least: int) -> None:
    control = DeliveryRateControl(max_datagram_size=1200)
    Bottleneck(rate=20e3, rtt_s=0.02, queue_bytes=3e3).run(control, seconds=3)
    control.min_rtt_s = rtt_s
    Bottleneck(rate=20e3, rtt_s=rtt_s, queue_bytes=3e3).run(control, seconds=3, now=5.0)
    assert control.congestion_window == least
    control.on_persistent_congestion()
    assert control.congestion_window == MIN_WINDOW_BYTES and control.rate == 0


def test_heavy_loss_is_taken_for_congestion() -> None:
    control = DeliveryRateControl(max_datagram_size=1200)
    Bottleneck(rate=16e6, rtt_s=0.05).run(control, seconds=3)
    forget_all(control)
    before = control.rate
    Bottleneck(rate=16e6, rtt_s=0.05, loss=0.5).run(control, seconds=2, now=10.0)
    assert control.rate < 0.8 * before


def test_a_pause_is_not_taken_for_a_slow_path() -> None:
    control = DeliveryRateControl(max_datagram_size=1200)
    Bottleneck(rate=16e6, rtt_s=0.05).run(control, seconds=3)
    forget_all(control)
    late = Packet(10**9, PACKET_BYTES, 8.0)
    control.on_packet_sent(packet=late)
    control.on_packet_acked(now=8.05, packet=late)
    assert control.rate > 1e4


def test_what_is_forgotten_leaves_nothing_behind() -> None:
    control = DeliveryRateControl(max_datagram_size=1200)
    packets = [Packet(number, PACKET_BYTES, 1.0) for number in range(9)]
    for packet in packets:
        control.on_packet_sent(packet=packet)
    control.on_packet_acked(now=1.1, packet=packets[0])
    control.on_packets_lost(now=1.1, packets=packets[1:5])
    control.on_packets_expired(packets=packets[5:])
    assert control.bytes_in_flight == 0 and control._sent == {}


def test_aioquic_finds_it_by_its_name() -> None:
    assert isinstance(create_congestion_control(congestion.NAME, max_datagram_size=1200), DeliveryRateControl)
