import os
import sys

import pytest

from mnv2_jax import cli


@pytest.fixture
def started(monkeypatch):
    """What the process was started anew with; this one only notes it."""
    calls = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: calls.append((program, arguments)))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "study.py", "--seeds", "2"])
    monkeypatch.setattr(sys, "platform", "linux")
    return calls


@pytest.mark.parametrize(("setting", "starts"), [("always [madvise] never", 1), ("[always] madvise never", 0), ("", 0)])
def test_a_command_starts_anew_where_huge_pages_have_to_be_asked_for(started, monkeypatch, setting, starts):
    # As monkeypatch remembers it, whatever the command does.
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(cli, "_content", lambda path: setting)
    cli.use_huge_pages()
    assert started == [(sys.executable, [sys.executable, "-X", "dev", "study.py", "--seeds", "2"])] * starts
    # The one that it becomes finds the setting there, and goes on.
    if starts:
        assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
        cli.use_huge_pages()
        assert len(started) == 1


def test_a_setting_of_the_user_is_left_alone(started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    monkeypatch.setattr(cli, "_content", lambda path: "[madvise]")
    cli.use_huge_pages()
    assert not started
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=1"
