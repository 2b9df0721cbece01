"""plan_scaling.py without the TPU compiler, on committed plans."""

import json
import shutil
from types import SimpleNamespace

import pytest

from experiments.scripts import EXPERIMENTS, load

RESULTS = EXPERIMENTS / "results" / "plan_scaling"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Return the committed plans, and the list of slices that are compiled for."""
    for name in ("config.json", "plans.json", "summary.json"):
        (tmp_path / "out").mkdir(exist_ok=True)
        shutil.copy(RESULTS / name, tmp_path / "out")
    script, compiled = load("plan_scaling"), []
    plans = json.loads((RESULTS / "plans.json").read_text())

    def plan(options, topology):
        compiled.append(topology.name)
        found = {**plans["v5e:2x4"], "chips": 16, "topology": topology.name}
        return SimpleNamespace(fits=True, to_json=lambda: found)

    monkeypatch.setattr(script, "open_topology", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(script.plan, "plan", plan)
    return compiled


def test_what_has_been_compiled_is_kept(command, made, tmp_path, capsys):
    assert command("plan_scaling", "--out", "out") == 0
    assert made == []
    kept = json.loads((RESULTS / "summary.json").read_text())
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == kept
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"figure.png", "figure.svg", "plans.json"}
    assert "images per second, at most" in capsys.readouterr().out


def test_another_slice_is_compiled_for(command, made, tmp_path):
    assert command("plan_scaling", "--out", "out", "--topologies", "v5e:2x4", "v5e:4x4") == 0
    assert made == ["v5e:4x4"]
    assert "v5e:4x4" in json.loads((tmp_path / "out" / "plans.json").read_text())


def test_the_title_tells_whether_the_work_of_a_chip_stays_the_same():
    script = load("plan_scaling")
    rows = json.loads((RESULTS / "summary.json").read_text())["plans"]
    assert (
        script.finding(rows)
        == "From 1 to 256 chips, the work of each chip is the same; what it sends reaches 28.2 MB per step"
    )
    grown = [rows[0], {**rows[1], "operations, GFLOP": 1.5 * rows[0]["operations, GFLOP"]}]
    assert "the work of each chip changes by 50 %" in script.finding(grown)
    assert script.finding(rows[1:2]) == "Among 8 chips, a chip sends 24.8 MB per step"


def test_other_settings_are_another_plan(command, made, capsys):
    assert command("plan_scaling", "--out", "out", "--batch-per-device", "64") == 2
    assert "batch_per_device is 128 there and 64 here" in capsys.readouterr().err


def test_damaged_plans_are_named(command, made, tmp_path, capsys):
    (tmp_path / "out" / "plans.json").write_text('{"v5e:1x1": {}}')
    assert command("plan_scaling", "--out", "out") == 2
    assert "plans.json is damaged or from another version" in capsys.readouterr().err
