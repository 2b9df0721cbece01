import json

import pytest

from experiments.scripts import load
from mnv2_jax.errors import UserError
from mnv2_jax.models import create

STAGES = {"mobilenet_v1": ((1, 64, 1, 1), (1, 128, 1, 2)), "mobilenet_v2": ((1, 16, 1, 1), (6, 24, 1, 2))}


@pytest.fixture(scope="module")
def script():
    return load("memory_split")


@pytest.fixture
def few_blocks(monkeypatch):
    """Measure networks of two blocks."""
    whole = create.create_model
    monkeypatch.setattr(create, "create_model", lambda name, **given: whole(name, stages=STAGES[name], **given))


def test_from_flags_to_files_and_drawn_again(script, few_blocks, tmp_path, capsys, monkeypatch):
    options = script.Options(
        width_multiplier=0.1, resolution=32, splits=(5, 2, 900), network_splits=(1, 2), rounds=1, out=tmp_path / "out"
    )
    script.main(options)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["split"] for row in summary["sweep"]] == [1, 2, 5, summary["inner_channels"]]
    inner = [row["inner_bytes"] for row in summary["sweep"]]
    assert inner == sorted(inner, reverse=True)
    assert [block["block"] for block in summary["blocks"]] == ["block_0", "block_1"]
    assert summary["networks"]["MobileNetV1"]["published_bytes"] is None
    assert set(summary["networks"]["MobileNetV2"]["measured_bytes"]) == {"1", "2"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "summary.json",
        "figure.png",
        "figure.svg",
    }
    output = capsys.readouterr().out
    assert all(line[:40] in output for line in summary["findings"])
    for row in summary["sweep"]:
        low, high = row["time_ratio_range"]
        assert low <= row["time_ratio"] <= high

    # Older records, without the range of times, are drawn too.
    for row in summary["sweep"]:
        del row["time_ratio_range"]
    (tmp_path / "out" / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "out" / "figure.png").unlink()
    monkeypatch.setattr(script, "measure", None)
    script.main(options)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert (tmp_path / "out" / "figure.png").exists()
    assert "only the figure is redrawn" in capsys.readouterr().out


def test_the_title_tells_what_the_largest_recommended_split_saves(script):
    def row(split, activation_bytes, time_ratio):
        return {"split": split, "activation_bytes": activation_bytes, "time_ratio": time_ratio}

    sweep = [row(1, 10_800_000, 1.0), row(5, 3_100_000, 2.03), row(48, 1_400_000, 5.6)]
    assert script.finding(sweep).startswith(
        "In 5 parts MobileNetV2's largest block takes 3.1 MB instead of 10.8, and 2.0"
    )
    assert script.finding([sweep[0], sweep[2]]).startswith("In 48 parts")
    assert script.finding(sweep[:1]) == "MobileNetV2's largest block takes 10.8 MB"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"splits": (0,)}, "--splits must be numbers of parts, 1 or more, got 0"),
        ({"network_splits": ()}, "--network-splits must be numbers of parts, 1 or more, got none"),
        ({"resolution": 0}, "--resolution must be from 1"),
        ({"width_multiplier": 0.0}, "--width-multiplier must be greater than 0"),
        ({"rounds": 0}, "--rounds must be 1 or more, got 0"),
        ({"topology": "v9"}, "--topology must be an accelerator type .* got 'v9'"),
        ({"topology": ""}, "--topology must be an accelerator type"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(script, tmp_path, flags, says):
    with pytest.raises(UserError, match=says):
        script.main(script.Options(out=tmp_path / "out", **flags))
    assert not (tmp_path / "out").exists()


@pytest.mark.tpu_compiler
def test_splitting_saves_memory_on_a_tpu(script, tmp_path):
    options = script.Options(splits=(1, 5), network_splits=(1,), rounds=1, topology="v5e:1x1", out=tmp_path / "out")
    script.main(options)
    whole, parts = json.loads((tmp_path / "out" / "summary.json").read_text())["sweep"]
    assert parts["tpu_activation_bytes"] < 0.8 * whole["tpu_activation_bytes"]
