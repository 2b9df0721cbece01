"""`python -m mnv2_jax datasets`."""

import pytest


def test_sets_are_listed_and_prepared(run, data_dir):
    code, output, _ = run("datasets", "prepare", "digits")
    assert code == 0
    # The first time, TFDS prints its progress before this.
    assert output.endswith(f"digits is prepared in {data_dir}/digits/1.0.0: train 1,343, test 454\n")
    code, output, _ = run("datasets")
    assert code == 0
    rows = {line.split()[0]: line for line in output.splitlines() if line}
    assert str(data_dir) in rows["digits"]
    assert "resident" in rows["digits"]
    assert "not prepared" in rows["cifar10"]
    assert "streamed" in rows["imagenet2012"]
    assert "--data-files DIR" in rows["folder"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prepare"], "datasets prepare NAME"),
        (["prepare", "nothing"], "unknown data set 'nothing'; choose from digits"),
        (["prepare", "digits", "--data-files", "x"], "digits needs no files from you; remove --data-files"),
        (["list", "digits"], "datasets list takes no other arguments"),
        (["list", "--data-files", "x"], "datasets list takes no other arguments"),
    ],
)
def test_what_cannot_be_prepared(refused, arguments, says):
    assert says in refused("datasets", *arguments)
