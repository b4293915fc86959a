"""The simulated mesh: what its meter counts, that a seed is a fate, and that moves do what they are for."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hopformer.bench import placement_rows
from hopformer.bench.placement_meter import Meter
from hopformer.bench.placement_rows import bench_placement, placement_as_markdown
from hopformer.bench.placement_sim import WARM_UP_S, SimPlan, Simulation
from hopformer.bench.table import as_markdown
from hopformer.cli.app import run
from hopformer.net.layer_range import LayerRange

SMALL = SimPlan(num_peers=14, num_layers=16, minutes=25, seed=3, churn_percent=1.0)


def test_a_meter_counts_holes_layers_and_balance_over_time() -> None:
    meter = Meter(4, start_s=10.0)
    meter.add(LayerRange(0, 2), 0.1)  # 5 steps a second each
    meter.advance(5.0, 1)
    assert meter.whole_at is None
    meter.add(LayerRange(2, 4), 0.05)  # 10
    meter.advance(20.0, 2)
    assert meter.whole_at == 5.0 and meter.whole_percent == 100 and meter.num_holes == 0
    assert meter.balance_percent == pytest.approx(100 * 5 / 7.5)
    meter.remove(LayerRange(0, 2), 0.1)
    meter.advance(30.0, 1)
    assert (meter.whole_percent, meter.covered_percent) == (50, 75) and meter.num_holes == 1
    assert meter.worst_balance == 0 and meter.mended_s == []
    meter.add(LayerRange(0, 4), 0.1)
    meter.advance(40.0, 2)
    assert meter.mended_s == [10.0] and meter.whole_percent == pytest.approx(200 / 3)
    assert meter.node_hours == pytest.approx((2 * 10 + 10 + 2 * 10) / 3600)


def test_a_seed_is_a_fate_and_another_seed_another() -> None:
    first = Simulation(SMALL).run()
    assert first == Simulation(SMALL).run() != Simulation(replace(SMALL, seed=4)).run()
    assert first.num_joined >= SMALL.num_peers and first.num_gone > 0


def test_who_comes_and_goes_does_not_depend_on_who_moves() -> None:
    moving, staying = (Simulation(replace(SMALL, moves=moves)).run() for moves in (True, False))
    assert (moving.num_joined, moving.num_gone) == (staying.num_joined, staying.num_gone)
    assert staying.moves_per_node_hour == 0 < moving.moves_per_node_hour


@pytest.mark.parametrize("seed", range(3))
def test_a_mesh_without_churn_is_soon_whole_and_stays_so(seed: int) -> None:
    plan = SimPlan(30, 32, 15, seed, churn_percent=0.0)
    result = Simulation(plan).run()
    assert result.whole_percent == result.covered_percent == 100 and result.num_holes == result.num_gone == 0
    assert result.whole_after_s is not None and result.whole_after_s < WARM_UP_S
    assert result.hops is not None and result.hops >= 1


def test_after_a_strike_moves_mend_what_nobody_comes_to_mend() -> None:
    plan = SimPlan(30, 32, 40, 1, strikes=True)
    moving, staying = (Simulation(replace(plan, moves=moves)).run() for moves in (True, False))
    assert staying.num_holes >= 1 and staying.mend_p50_s is None and staying.hops is None
    assert moving.mend_max_s is not None and moving.mend_max_s < 120 and moving.hops is not None
    assert moving.whole_percent > 90 > staying.whole_percent


def test_an_empty_mesh_is_no_error() -> None:
    result = Simulation(SimPlan(1, 8, 10, 1, churn_percent=50.0)).run()
    assert result.balance_percent <= 100 and result.num_gone >= 1


def test_rows_are_of_both_fates_with_and_without_moves_and_make_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement_rows, "_TIMED_PLANS", 1)
    done: list[tuple[int, int]] = []
    rows = [row.as_json() for row in bench_placement(replace(SMALL, minutes=8), lambda *step: done.append(step))]
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(row["strikes"], row["moves"]) for row in rows] == [
        (False, True),
        (False, False),
        (True, True),
        (True, False),
    ]
    assert all(row["bench"] == "placement" and row["device"] and row["plan_ms"] > 0 for row in rows)
    text = as_markdown(json.loads(json.dumps(rows)))
    assert text == placement_as_markdown(rows) and text.startswith("14 peers, 16 layers, 8 minutes, seed 3; 1% of")
    assert [line.split("|")[1].strip() for line in text.splitlines()[-4:]] == [
        "churn",
        "churn, fixed",
        "strike",
        "strike, fixed",
    ]
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_the_command_prints_and_writes_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rows.json"
    small = ["bench", "placement", "--peers", "5", "--layers", "8", "--minutes", "7"]
    assert run([*small, "--json", "--output", str(output)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads(output.read_text()) and [row["num_peers"] for row in rows] == [5] * 4
    assert run(small) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("5 peers, 8 layers, 7 minutes") and "strike, fixed" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "0"], "--peers is 0; it must be between 1 and 4000"),
        (["--peers", "4001"], "--peers is 4001"),
        (["--layers", "513"], "--layers is 513; it must be between 1 and 512"),
        (["--minutes", "5.9"], "--minutes is 5.9"),
        (["--churn", "nan"], "--churn is nan"),
    ],
)
def test_a_mesh_that_means_nothing_is_wrong_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "placement", *arguments]) == 2
    assert message in capsys.readouterr().err
