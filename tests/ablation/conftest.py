"""Fixtures of a finished study."""

import shutil

import pytest

from ablation import studies


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with studies.quick():
        yield


@pytest.fixture(scope="session")
def finished_folder(tiny, tmp_path_factory):
    """Train a study and write its figure and report; return (folder, `Trained`)."""
    from mnv2_jax.ablation.report import write_files

    folder = tmp_path_factory.mktemp("study") / "out"
    with studies.quick():
        trained = studies.run(tiny, folder)
    assert trained.runs == 4
    write_files(trained.summary, trained.records, folder)
    return folder, trained


@pytest.fixture(scope="session")
def finished(finished_folder):
    """Return the `Trained` of the finished study."""
    return finished_folder[1]


@pytest.fixture
def copy(finished_folder, tmp_path):
    """Return a copy of the finished study's folder, to be changed."""
    return shutil.copytree(finished_folder[0], tmp_path / "copy")
