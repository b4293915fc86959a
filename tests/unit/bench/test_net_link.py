"""What `bench net` measures of a hop: that it runs, and what it makes of its numbers."""

import json

import pytest

from hopformer.bench import net_link
from hopformer.bench.net_echo import BULK, CONFIRMED, ECHO, FrameBuffer, frame, parse, reply
from hopformer.bench.net_link import CUBIC, LINES, STOCK, Load, PathQuality, bench_link, bench_path, percentile

SMALL = Load(num_steps=5, bulk_bytes=4 << 20, busy_bulk_bytes=4 << 20)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0 and percentile([1.0], 99) == 1.0
    assert percentile(list(range(100)), 99) == 99


def test_the_baselines_frames_survive_any_pieces() -> None:
    stream = frame(ECHO, b"abc") + frame(BULK, b"") + frame(ECHO, b"d" * 1000)
    buffer, frames = FrameBuffer(), []
    for index in range(0, len(stream), 7):
        frames += buffer.feed(stream[index : index + 7])
    assert frames == [(ECHO, b"abc"), (BULK, b""), (ECHO, b"d" * 1000)]
    assert reply(ECHO, b"abc") == frame(ECHO, b"abc") and reply(BULK, b"abc") == frame(BULK, CONFIRMED)


def test_a_server_without_a_key_says_so() -> None:
    assert parse('{"peer": "", "addr": "127.0.0.1:1"}') == (None, "127.0.0.1:1")


@pytest.mark.slow
def test_every_contender_can_be_measured() -> None:
    rows = bench_link(1, SMALL)
    assert [row.runs for row in rows] == [line.name for line in LINES]
    for row in rows:
        assert row.step_p50_us > 0 and row.bulk_mib_per_s > 0 and row.busy_p99_ms > 0 and row.cpu_us_per_step > 0
        assert json.loads(json.dumps(row.as_json()))["bench"] == "link"
    assert next(row for row in rows if row.runs == STOCK).step_times_stock == 1.0


@pytest.mark.slow
def test_a_worse_path_can_be_measured() -> None:
    rows = bench_path(PathQuality(rtt_s=0.02, loss=0.0), rounds=1, num_steps=5, bulk_s=1.0)
    assert [row.runs for row in rows] == [line.name for line in net_link.PATH_LINES]
    assert all(20 < row.step_p50_ms < 200 for row in rows) and rows[1].runs == CUBIC
    assert json.loads(json.dumps(rows[0].as_json()))["bench"] == "path"
