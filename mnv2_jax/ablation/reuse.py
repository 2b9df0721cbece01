"""Take finished runs from other studies, so that a run that several studies have in common is trained once."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnv2_jax.ablation import tuning
from mnv2_jax.ablation.arms import network_of_arm, run_of
from mnv2_jax.ablation.design import FORMAT, Study
from mnv2_jax.data.batch import Dataset
from mnv2_jax.errors import UserError
from mnv2_jax.models.create import model_settings
from mnv2_jax.results import CONFIG, METRICS, append_line, kind_of, read_json, read_lines, write_atomically
from mnv2_jax.tasks.task import Metric
from mnv2_jax.training.metrics import Record, read_records, to_line
from mnv2_jax.wording import counted

FILE = "reused.jsonl"
"""File that says which runs of a study's folder were taken from other studies."""
RUN = "run "
"""Prefix of a run's digest in a study's config.json; the arm's name follows."""


def run_digests(study: Study, dataset: Dataset, weights: str | None) -> dict[str, str]:
    """Return for each arm a digest of everything that determines its runs, except the seed.

    Args:
        study, dataset: the study and its images.
        weights: digest of the trained weights that arms start from, if there are any.
    """
    images = dataset.fingerprint()
    found = {}
    for arm in study.arms:
        run = run_of(study, arm)
        content = {
            "format": FORMAT,
            "model": model_settings(network_of_arm(study, arm, dataset)),
            "training": run.training.settings(),
            "tune": study.tune,
            "images": images,
            "augmentation": repr(getattr(dataset, "augmentation", None)),
            "resolution": [arm.resolution or dataset.image_shape[0], dataset.image_shape[0]],
            "weights": weights if arm.started else None,
            "task": run.task,
        }
        # 6 and 6.0 are the same expansion.
        same = json.loads(json.dumps(content), parse_int=float)
        found[f"{RUN}{arm.name}"] = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
    return found


def check_sources(sources: Sequence[Path]) -> None:
    """Check that each folder holds a study.

    Raises:
        UserError: if one does not; names it.
    """
    for source in sources:
        _config(source)


def _config(source: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(source / CONFIG, {}) if (source / CONFIG).is_file() else {}
    if kind_of(content) != "study":
        raise UserError(f"--reuse {source} contains no study; specify the folders of studies")
    return content


def take_runs(
    study: Study, folder: Path, sources: Sequence[Path], digests: Mapping[str, str], metric: Metric
) -> list[str]:
    """Copy the finished runs that other studies have in common with this one; returns a line about each study.

    Records and tuning trials are copied under the arm's name in this study. Trained networks stay where they are.

    Args:
        study: this study.
        folder, sources: this study's folder, and those of the others.
        digests: of this study's runs, from `run_digests`.
        metric: the study's.
    """
    said = []
    for source in sources:
        config = _config(source).items()
        known = {digest: name.removeprefix(RUN) for name, digest in config if name.startswith(RUN)}
        theirs = read_records(source / METRICS, metric.name)
        trials = tuning.read_trials(source, metric)
        taken = 0
        for arm in study.arms:
            other = known.get(digests[f"{RUN}{arm.name}"])
            if other is not None:
                taken += _take(arm.name, other, theirs, trials, source, folder, study.seeds, metric)
        said.append(f"{source}: {taken} of its runs are used")
    return said


def _take(
    arm: str,
    other: str,
    theirs: Sequence[Record],
    trials: Sequence[Mapping[str, Any]],
    source: Path,
    folder: Path,
    seeds: int,
    metric: Metric,
) -> int:
    """Copy the runs of one arm that are finished there and not here; returns their number."""
    own = read_records(folder / METRICS, metric.name)
    here = {record.seed for record in own if record.arm == arm and record.split == "test"}
    there = {record.seed for record in theirs if record.arm == other and record.split == "test"}
    wanted = {seed for seed in there - here if seed < seeds}
    for trial in trials:
        mine = {**trial, "arm": arm}
        if trial["arm"] == other and mine not in tuning.read_trials(folder, metric):
            append_line(folder / tuning.FILE, mine)
    if wanted:
        # A run that was interrupted here has records too; the finished one replaces them.
        kept = [record for record in own if (record.arm, record.seed) not in {(arm, seed) for seed in wanted}]
        new = [dataclasses.replace(each, arm=arm) for each in theirs if each.arm == other and each.seed in wanted]
        append_line(folder / FILE, {"arm": arm, "seeds": sorted(wanted), "source": source.name, "source_arm": other})
        write_atomically(folder / METRICS, "".join(map(to_line, [*kept, *new])))
    return len(wanted)


def reuse_notes(folder: Path) -> list[str]:
    """Return notes on the runs that were taken from other studies."""
    lines = read_lines(folder / FILE, {"arm": str, "seeds": [int], "source": str, "source_arm": str})
    notes = [
        f"{line['arm']}: {counted(len(line['seeds']), 'run')} trained in the study {line['source']}, as "
        f"{line['source_arm']} there."
        for line in lines
    ]
    # An interruption between the two files that `take_runs` writes leaves a line twice.
    return list(dict.fromkeys(notes))
