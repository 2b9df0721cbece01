"""`python -m mnv2_jax evaluate`."""

import json
import shutil

import numpy as np
import pytest
from samples import write_folder

from mnv2_jax.analysis.confusion import by_class
from mnv2_jax.commands.evaluate import print_evaluation
from mnv2_jax.data.stream import load_stream
from mnv2_jax.training.metrics import read_records


@pytest.fixture
def whole(finished):
    """Return the summary of a finished run."""
    return json.loads((finished / "summary.json").read_text())


def test_evaluation_of_a_run_is_what_the_run_says(finished, whole, run, quick):
    for weights in (finished, finished / "network"):
        code, output, errors = run("evaluate", "--weights", weights, "--dataset", "digits", "--json")
        assert (code, errors) == (0, "")
        found = json.loads(output)
        assert (found["dataset"], found["split"], found["skipped"]) == ("digits", "test", [])
        assert found["examples"] == 454
        for name in ("loss", "accuracy", "top5_accuracy"):
            assert found[name] == pytest.approx(whole["test"][name], rel=1e-5)


def test_a_run_knows_what_it_was_trained_on(finished, run, quick):
    (last,) = (r for r in read_records(finished / "metrics.jsonl") if (r.step, r.split) == (5, "validation"))
    code, output, _ = run("evaluate", "--weights", finished, "--split", "validation")
    assert code == 0
    assert "digits validation, 134 images, preprocessing keras" in output
    for name in ("accuracy", "top5_accuracy"):
        assert f"{name.replace('_', ' '):14} {last.metrics[name]:.2%}" in output
    assert f"loss           {last.metrics['loss']:.4f}" in output


def test_of_a_moving_average_the_last_parameters_can_be_taken(finished, whole, run, quick):
    """They come from the checkpoint, since a run saves the averaged network."""
    code, output, errors = run("evaluate", "--weights", finished, "--no-ema", "--json")
    assert code == 0
    assert "using the network after step 5, from a checkpoint of the run" in errors
    assert json.loads(output)["loss"] != pytest.approx(whole["test"]["loss"], rel=1e-4)


def test_a_run_that_is_not_finished_is_evaluated_from_its_checkpoint(finished, whole, run, quick, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(folder / "network")
    (folder / "summary.json").unlink()
    code, output, errors = run("evaluate", "--weights", folder, "--json")
    assert code == 0
    assert "using the network after step 5" in errors
    assert json.loads(output)["loss"] == pytest.approx(whole["test"]["loss"], rel=1e-5)


@pytest.fixture
def pets(tmp_path):
    """Write a folder of images with the classes of `saved` and `hub_network`; one image is damaged."""
    folder = write_folder(tmp_path / "pets", ("bird", "cat", "dog"), images=10)
    broken = folder / "cat" / "000.jpg"
    broken.write_bytes(broken.read_bytes()[:500])
    return folder


def test_published_weights_by_reference_on_one_s_own_images(run, quick, hub_network, pets):
    reference, _ = hub_network
    flags = ["evaluate", "--weights", reference, "--dataset", "folder", "--data-files", pets, "--split", "train"]
    code, output, errors = run(*flags)
    assert (code, output) == (2, "")
    assert "000.jpg cannot be read as an image" in errors
    assert errors.count("\n") == 1
    code, output, errors = run(*flags, "--on-bad-image", "skip", "--json")
    assert code == 0
    assert "pets: 30 images of 3 classes (bird 10, cat 10, dog 10): train 24, validation 3, test 3" in errors
    assert "photographs are rotated upright by their EXIF tag" in errors
    assert "evaluates 24 of 30 images: the train split" in errors
    found = json.loads(output)
    (skipped,) = found["skipped"]
    assert "000.jpg" in skipped
    assert found["weights"] == reference
    assert found["examples"] == len(list(pets.rglob("*.jpg"))) * 8 // 10 - 1


@pytest.fixture
def pets_run(saved, pets, tmp_path):
    """Create the folder of a run on these images."""
    folder = tmp_path / "run"
    shutil.copytree(saved, folder / "network")
    (folder / "checkpoints").mkdir()
    trained_on = load_stream("folder", data_files=pets).fingerprint()
    settings = {"dataset": "folder", "seed": 0, "data_files": str(pets), "data_sha256": trained_on}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_a_run_knows_the_folder_that_it_was_trained_on(run, quick, pets_run, pets):
    flags = ["evaluate", "--weights", pets_run, "--on-bad-image", "skip"]
    code, output, _ = run(*flags, "--split", "all")
    assert code == 0
    assert f"{pets}: 30 images of 3 classes" in output
    assert "folder all, 29 images" in output
    assert "top5" not in output  # there are only three classes
    assert run(*flags)[0] == 0
    # With other images the splits differ, so it is refused unless --data-files asks for it.
    (pets / "cat" / "009.jpg").unlink()
    code, output, errors = run(*flags)
    assert (code, output) == (2, "")
    assert f"error: {pets}: files were added, removed or renamed since training, so its splits differ" in errors
    code, output, _ = run(*flags, "--data-files", pets)
    assert code == 0
    assert "since training: images that it was trained on may be evaluated" in output


def test_a_folder_that_is_gone_is_one_line(refused, pets_run, pets):
    pets.rename(pets.with_name("moved"))
    said = refused("evaluate", "--weights", pets_run)
    assert said == (
        f"{pets_run} was trained on the images in {pets}, a folder that no longer exists; specify its location with "
        "--data-files"
    )


# --- Class by class --------------------------------------------------------------------------------------


def test_each_class_is_scored_and_the_confusion_matrix_written(run, quick, pets_run, pets, tmp_path):
    flags = [
        "evaluate",
        "--weights",
        pets_run,
        "--split",
        "all",
        "--on-bad-image",
        "skip",
        "--out",
        tmp_path / "scores",
    ]
    code, output, _ = run(*flags)
    assert code == 0
    assert output.splitlines()[-3:] == [
        str(tmp_path / "scores" / name) for name in ("evaluation.json", "confusion.png", "confusion.svg")
    ]
    found = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert [each["name"] for each in found["classes"]] == ["cat", "dog", "bird"]  # in the network's order
    assert [each["images"] for each in found["classes"]] == [9, 10, 10]
    assert [sum(row) for row in found["confusion"]] == [9, 10, 10]
    right = [found["confusion"][index][index] for index in range(3)]
    assert [each["correct"] for each in found["classes"]] == right
    assert sum(right) == round(29 * found["accuracy"])
    assert found["data_files"] == str(pets)
    for each in found["classes"]:
        (line,) = [line.split() for line in output.splitlines() if line.startswith(each["name"])]
        assert line[1:3] == [str(each["images"]), f"{each['accuracy']:.2%}"]
    # Existing files are not replaced without --overwrite.
    code, output, errors = run(*flags)
    assert (code, output) == (2, "")
    assert (
        "already contains evaluation.json, confusion.png, confusion.svg; choose another or use --overwrite to replace them"
        in errors
    )
    code, output, _ = run(*flags, "--overwrite", "--json")
    assert code == 0
    assert json.loads(output)["classes"] == found["classes"]
    assert "confusion" not in json.loads(output)


def test_of_many_classes_the_worst_are_shown(capsys):
    classes = by_class(np.diag(np.arange(12)) + np.eye(12, k=1), [f"kind {index}" for index in range(12)])
    content = {"dataset": "x", "split": "test", "examples": 77, "classes": classes, "skipped": []}
    print_evaluation(content, {"loss": 1.0, "accuracy": 0.9}, ["preprocessing none"])
    shown = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("kind")]
    assert shown == ["kind 0", "kind 1", "kind 2", "kind 3", "kind 4"]


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/mine"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(refused, tmp_path, out):
    (tmp_path / "file").write_text("mine")
    assert f"--out {tmp_path / out} " in refused("evaluate", "--weights", "nowhere", "--out", tmp_path / out)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--weights", "nowhere"], "nowhere does not exist"),
        (["--weights", "gs://bucket/x"], "gs://bucket/x is not a supported reference to weights"),
        (["--weights", "x", "--resolution", "0"], "--resolution must be from 1 to 4096 pixels, got 0"),
    ],
)
def test_weights_that_are_not_there(refused, arguments, says):
    assert says in refused("evaluate", *arguments)


def test_images_have_to_be_named_and_of_the_network_s_classes(refused, saved, tmp_path):
    assert "specify --dataset" in refused("evaluate", "--weights", saved)
    folder = ["evaluate", "--weights", saved, "--dataset", "folder"]
    assert "does not record which folder it was trained on; specify --data-files" in refused(*folder)
    others = write_folder(tmp_path / "others", ("cow", "hen", "pig"), images=10)
    said = refused(*folder, "--data-files", others)
    assert "only in the network: bird, cat, dog; only in the data: cow, hen, pig" in said
    assert "3 in the network, 10 in the data" in refused("evaluate", "--weights", saved, "--dataset", "digits")


def test_a_study_is_not_one_network(refused, tmp_path):
    folder = tmp_path / "study"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"experiment": "x", "baseline": "linear"}))
    said = refused("evaluate", "--weights", folder)
    assert f"{folder} is a study; choose one of its networks, {folder / 'checkpoints'}/ARM-SEED" in said
