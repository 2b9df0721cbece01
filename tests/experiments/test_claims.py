"""What all scripts have in common. Nothing is trained."""

import re

import pytest

from experiments.scripts import EXPERIMENTS, STUDIES, load
from mnv2_jax import cli
from mnv2_jax.ablation.design import identity
from mnv2_jax.results import plain

COMMANDS = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if "cli.run(" in path.read_text())


def test_there_are_scripts():
    assert len(STUDIES) >= 8
    assert len(COMMANDS) >= 17


@pytest.mark.parametrize("name", COMMANDS)
def test_a_script_says_its_question_its_command_its_cost_and_what_to_expect(name):
    text = load(name).__doc__
    parts = re.findall(r"^(Question|Command|Cost|Expect): +\S", text, re.MULTILINE)
    assert parts == ["Question", "Command", "Cost", "Expect"]
    assert f"python experiments/{name}.py" in text


@pytest.mark.parametrize("name", [name for name in COMMANDS if hasattr(load(name), "Options")])
def test_a_script_explains_every_flag(name, capsys):
    script = load(name)
    with pytest.raises(SystemExit) as stop:
        cli.parse(script.Options, script.__doc__, ["--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert text.count("(default: ") + text.count("(required)") + text.count("(repeatable)") >= len(re.findall(r"^│ --|^│ -h", text, re.MULTILINE)) - 1  # fmt: skip


@pytest.mark.parametrize("name", [name for name in STUDIES if name not in ("compare_v1_v2", "transfer")])
def test_a_study_can_be_kept_in_its_folder(name):
    study = load(name).create(load(name).Options(seeds=2))
    kept = plain(identity(study))
    assert kept["experiment"].startswith(name)
    assert len({arm.name for arm in study.arms}) == len(study.arms) >= 2
