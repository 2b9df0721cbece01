import json
import re
import runpy

import pytest
from pages import ROOT

HOOKS = runpy.run_path(str(ROOT / "mkdocs_hooks.py"))
REPOSITORY = re.search(r"^repo_url: (\S+)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)[1]


@pytest.mark.parametrize(
    ("page", "target", "found"),
    [
        ("index.md", "docs/design.md", "design.md"),
        ("index.md", "docs/layers.png", "layers.png"),
        ("index.md", "experiments/results/relu_embedding/figure.png", "experiments/results/relu_embedding/figure.png"),
        ("index.md", "LICENSE", f"{REPOSITORY}/blob/main/LICENSE"),
        ("design.md", "../README.md", "index.md"),
        ("design.md", "tour.ipynb", "tour.md"),
        (
            "design.md",
            "../experiments/results/relu_embedding/figure.png",
            "experiments/results/relu_embedding/figure.png",
        ),
        ("design.md", "../experiments/report.py", f"{REPOSITORY}/blob/main/experiments/report.py"),
        ("api/models.md", "../../mnv2_jax/models", f"{REPOSITORY}/tree/main/mnv2_jax/models"),
        ("api/models.md", "../design.md", "../design.md"),
        ("design.md", "images", "images"),
    ],
)
def test_links_of_the_repository_lead_to_the_site_or_to_the_repositorys_address(page, target, found):
    assert HOOKS["in_site"](page, target, REPOSITORY) == found


def test_only_relative_links_are_led_elsewhere_and_keep_their_anchors():
    text = "[a](b.md#c) ![d](e.png) [f](https://g.org/h) [i](#j)"
    assert HOOKS["LINK"].sub("](!", text) == "[a](!#c) ![d](!) [f](https://g.org/h) [i](#j)"


def test_a_notebook_is_a_page_of_its_cells():
    cells = [{"cell_type": "markdown", "source": ["# A\n", "tour"]}, {"cell_type": "code", "source": ["1 + 1"]}]
    assert HOOKS["notebook_page"](json.dumps({"cells": cells})) == "# A\ntour\n\n```python\n1 + 1\n```\n"
