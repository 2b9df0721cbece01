"""README.md, docs/ and the notebook: short lines, links that resolve, commands and Python that work.

The Python blocks of a page run as they are, one after the other in one module. A block with a title
(```python title="my_study.py") is written to that file instead, for the commands of its page. All commands go through
the real parsers, and those in `SMALL` are run.
"""

import ast
import contextlib
import glob
import importlib
import itertools
import json
import re
import runpy
import shutil
import sys
import textwrap
import tomllib
import types
from pathlib import Path

import pytest
from campaign.cases import STUDY, flags_of
from campaign.conftest import module_of
from commands.conftest import random_network
from experiments.scripts import EXPERIMENTS
from pages import ROOT, SHELL, Page, broken_links, commands, pages, placeholders, split, unknown_languages, wide_lines
from samples import encoded, write_folder

from mnv2_jax import MobileNetV2, cli
from mnv2_jax.__main__ import COMMANDS, main
from mnv2_jax.ablation import design
from mnv2_jax.errors import UserError
from mnv2_jax.settings import NetworkSettings
from mnv2_jax.training.devices import Devices
from mnv2_jax.weights import mapping
from mnv2_jax.weights.files import safetensors_bytes
from mnv2_jax.weights.torchvision import TORCHVISION

PAGES = pages()
README_LINES = 150
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if "class Options" in path.read_text())

ELSEWHERE = {".", "cd", "curl", "export", "gcloud", "git", "mkdocs", "sh", "source", "tail", "tensorboard", "uv"}
"""Programs of others. Commands of ours that they run are checked."""

RUN = "--epochs 1 --train-images 32 --batch-size 16 --evaluations 1 --resolution 32"
SMALL = {
    "train": RUN,
    **dict.fromkeys(("evaluate", "predict", "convert", "summary", "datasets", "report"), ""),
    "ablate_bottleneck": STUDY,
}
"""Commands that are run here, with flags that make them small; of a repeated flag the last counts."""
WHERE_GIVEN = {"--images": "32", "--validation-images": "16"}
"""Small values of flags, for commands that give the flag."""
STAGES = ((1, 16, 1, 1), (2, 24, 1, 2))

NOT_HERE = re.compile(r"hf://|torchvision://|\.pth|imagenet|--coordinator")
"""Marks commands that need network access, PyTorch, large data or other hosts; they are only parsed."""


# --- Checks of a page that need the package ----------------------------------------------------------------


def python_problems(page):
    """Return blocks that do not compile, and names they import from the package that do not exist."""
    found = []
    for block in (block for block in page.blocks if block.language == "python"):
        try:
            nodes = list(ast.walk(ast.parse(block.text)))
        except SyntaxError as error:
            found.append(f"{page}:{block.line + (error.lineno or 0)} is no Python: {error.msg}")
            continue
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mnv2_jax":
                for name in (alias.name for alias in node.names):
                    with contextlib.suppress(ImportError):
                        if hasattr(importlib.import_module(node.module), name):
                            continue
                    found.append(f"{page}:{block.line + node.lineno} imports {node.module}.{name}, which is not there")
    return found


def command_problems(page, start):
    """Return unknown commands, and commands of ours that their parser refuses."""
    write_scripts(page)
    problems = [(line, problem_of(words, start)) for line, words in commands(page)]
    return [f"{page}:{line}: {problem}" for line, problem in problems if problem]


def write_scripts(page):
    """Write the files that a page shows to the working directory."""
    for block in page.blocks:
        if block.title:
            Path(block.title).write_text(block.text)


def program(words):
    """Return (name, arguments) of a command, without variables set for it and without nohup."""
    while words and (words[0] == "nohup" or re.match(r"\w+=", words[0])):
        words = words[1:]
    name = "." if words[:1] == ["."] else Path(words[0]).name if words else ""
    return re.sub(r"^python3$", "python", name), words[1:]


def problem_of(words, start):
    """Return what is wrong with a command; None if nothing is, or if it is not ours."""
    name, arguments = program(words)
    if name == "pip":
        asked = re.search(r"\.\[([\w,]+)\]", " ".join(arguments))
        extras = set(asked[1].split(",")) if asked else set()
        missing = extras - set(PROJECT["project"]["optional-dependencies"])
        return f"there are no extras {missing}" if missing else None
    if name == "pytest":
        markers = {each.partition(":")[0] for each in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
        asked = set(re.findall(r"\w+", arguments[1])) - {"or", "and", "not"} if arguments[:1] == ["-m"] else set()
        return f"there are no markers {asked - markers}" if asked - markers else None
    if name == "python" and arguments[:2] != ["-m", "venv"]:
        try:
            return start(arguments)
        except UserError as error:
            return f"{' '.join(words)}: {error}"
    known = not name or name in ELSEWHERE or name == "python" or (ROOT / words[0]).is_file()
    return None if known else f"nothing here knows {name}; add it to ELSEWHERE if it is another's program"


@pytest.fixture
def start(monkeypatch, tmp_path, capsys):
    """Run `python ARGUMENTS` in this process and an empty folder; return the error if it fails."""
    # These would change this process permanently.
    for name in ("silence_libraries", "use_compilation_cache", "leave_absent_tpus_alone", "use_huge_pages"):
        monkeypatch.setattr(cli, name, lambda: None)
    monkeypatch.syspath_prepend(EXPERIMENTS)
    monkeypatch.chdir(tmp_path)

    def start(arguments):
        monkeypatch.setattr(sys, "argv", arguments[1:] if arguments[0] == "-m" else arguments)
        capsys.readouterr()
        try:
            if arguments[:2] == ["-m", "mnv2_jax"]:
                main()
            elif script := next(filter(Path.is_file, (folder / arguments[0] for folder in (tmp_path, ROOT))), None):
                runpy.run_path(str(script), run_name="__main__")
            else:
                return f"there is no {arguments[0]}"
        except SystemExit as stop:
            if stop.code:
                return f"python {' '.join(arguments)} ended with {stop.code}: {capsys.readouterr().err}"
        return None

    return start


@pytest.fixture
def parse(start, monkeypatch):
    """Run commands only up to the parsing of their flags."""

    def run(main, options, description, arguments=None, program=None, default=None):
        with contextlib.suppress(SystemExit):  # --help
            cli.parse(options, description, arguments, program, default)

    monkeypatch.setattr(cli, "run", run)
    return start


# --- All pages ---------------------------------------------------------------------------------------------


def none(problems):
    """Fail if there are problems, listing all of them."""
    if found := list(problems):
        pytest.fail("\n".join(found), pytrace=False)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("check", [wide_lines, broken_links, unknown_languages, placeholders, python_problems])
def test_pages_have_no(check):
    none(problem for page in PAGES for problem in check(page))


def test_commands_of_pages_are_accepted(parse):
    none(problem for page in PAGES for problem in command_problems(page, parse))


def test_flags_in_sentences_are_flags_of_some_command():
    named = (name for command in (*COMMANDS, *SCRIPTS) for name, _ in flags_of(module_of(command).Options))
    known = {"--help", *(f"--{name.replace('_', '-')}" for name in named)}
    # Flags of other programs count as known if a page runs them.
    known |= {word.partition("=")[0] for page in PAGES for _, words in commands(page) for word in words}
    said = [(page, line, code) for page in PAGES for line, code in page.code if not code.startswith("python ")]
    found = [
        (f"{page}:{line}", flag) for page, line, code in said for flag in re.findall(r"(?<!\S)--[a-z][\w-]+", code)
    ]
    none(f"{where} speaks of {flag}" for where, flag in found if flag not in known)


# --- Pages that are made up: what each check finds ---------------------------------------------------------


@pytest.fixture
def page(tmp_path):
    """Write a page in docs/ of a repository with a README.md and a picture."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(
        "# The house\n\n## Two words, twice\n\n## Two words, twice\n\n### `code` & more\n"
    )
    (tmp_path / "docs" / "picture.png").write_bytes(b"")

    def page(text):
        (tmp_path / "docs" / "page.md").write_text(text)
        return Page(tmp_path / "docs" / "page.md", tmp_path)

    return page


LONG = "word " * 25


@pytest.mark.parametrize("text", [f"Short.\n\n{LONG}", f"- item\n\n  {LONG}", f"| a |\n|---|\n| {LONG} |", f"# {LONG}"])
def test_a_long_line_is_found(page, text):
    (problem,) = wide_lines(page(text))
    assert re.fullmatch(r"docs/page.md:\d has 12\d characters|docs/page.md:3 has 128 characters", problem)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 120,
        f"```text\n{LONG}\n```",
        f"- item\n\n  ```bash\n  echo {LONG}\n  ```",
        f"<!-- {LONG} -->",
        f"| a |\n|---|\n| [a link](https://example.org/{'x' * 120}) |",
        f"![A picture](../{'x' * 120}.png)",
    ],
)
def test_code_comments_and_targets_of_links_may_be_long(page, text):
    assert wide_lines(page(text)) == []


@pytest.mark.parametrize(
    "target",
    ["nowhere.md", "../README.md#nothing", "#nothing", "picture.svg", "../../outside", "picture.png#part"],
)
def test_a_link_that_leads_nowhere_is_found(page, target):
    assert broken_links(page(f"# Here\n\nSee [this]({target}).\n")) == [
        f"docs/page.md:3 links to {target}, which is not there"
    ]


def test_links_in_html_are_found(page):
    assert len(broken_links(page('<img src="picture.png">\n\nA <a href="x">link</a>.'))) == 2


def test_links_to_files_folders_headings_and_the_web_are_whole(page):
    targets = ["picture.png", "..", "../README.md", "#here-and-there", "../README.md#two-words-twice-1"]
    targets += ["../README.md#code--more", "https://example.org/#x", "page.md#mnv2_jax.network.Network"]
    assert broken_links(page("# Here, and there\n\n" + " ".join(f"[a]({target})" for target in targets))) == []


@pytest.mark.parametrize("text", ["```\nls\n```", "```shell\nls\n```", "Say:\n\n    ls\n"])
def test_a_block_that_nothing_would_check_is_found(page, text):
    assert len(unknown_languages(page(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "TODO: more",
        "Fill in <your name>.",
        "`--data-files /path/to/images`",
        "```bash\npython x.py --out NAME/DIR\n```",
    ],
)
def test_what_was_to_be_filled_in_is_found(page, text):
    assert placeholders(page(text))


def test_a_name_in_capitals_that_the_page_explains_is_none(page):
    text = "HOST is the first host.\n\n```bash\nexport ZONE=a\nls --zone=$ZONE HOST:1 V1 README.md\n```"
    assert placeholders(page(text)) == []


def test_python_that_is_none_and_imports_of_nothing_are_found(page):
    text = "```python\nfrom mnv2_jax import create_model, nothing\nfrom mnv2_jax.nowhere import a\n```\n\n```python\n1 +\n```"
    assert python_problems(page(text)) == [
        "docs/page.md:2 imports mnv2_jax.nothing, which is not there",
        "docs/page.md:3 imports mnv2_jax.nowhere.a, which is not there",
        "docs/page.md:7 is no Python: invalid syntax",
    ]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("python -m mnv2_jax train --no-such-flag", "unrecognized option --no-such-flag"),
        ("python -m mnv2_jax train \\\n  --epochs 0", "--epochs must be"),
        ("cd x && A=1 ~/bin/python3 experiments/ablate_bottleneck.py --seeds one > log 2>&1", "--seeds takes"),
        ("python -m mnv2_jax fly", "ended with 2"),
        ("python experiments/nowhere.py", "there is no experiments/nowhere.py"),
        ("python own.py --seeds one", "--seeds takes"),
        ("gcloud ssh --command='cd x && python -m mnv2_jax train --epochs 0'", "--epochs must be"),
        ("pip install -e '.[nothing]'", "there are no extras"),
        ("pytest -m 'slow or nothing'", "there are no markers"),
        ("$ ls", "nothing here knows $"),
    ],
)
def test_a_command_that_would_fail_is_found(page, parse, command, says):
    own = (EXPERIMENTS / "ablate_bottleneck.py").read_text()
    made = page(f'```bash\n{command}\n```\n\n```python title="own.py"\n{own}```\n')
    (problem,) = command_problems(made, parse)
    assert says in problem


def test_commands_that_would_work_are_accepted(page, parse):
    text = """
    python3 -m venv .venv && . .venv/bin/activate && pip install -e '.[test,hub]' && pytest -m "slow and not peers"
    python -m mnv2_jax --help; python -m mnv2_jax train --help
    LD_PRELOAD=x.so nohup python experiments/train_imagenet.py --recipe cosine | tail -n 3  # a comment
    .ci/run
    """
    sentence = "Or `python experiments/report.py a b`, with `python` alone."
    assert command_problems(page(f"{sentence}\n\n```bash{textwrap.dedent(text)}```"), parse) == []


# --- Pages run ---------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Train networks of two blocks instead of seventeen if from scratch, and each run on one device."""
    create = Devices.create
    monkeypatch.setattr(Devices, "create", lambda runs=1, per_run=1, **named: create(runs, per_run, **named))
    of_study, of_run = design.shared_settings, NetworkSettings.settings

    def settings(self, from_weights=False):
        return {**of_run(self, from_weights), **({} if from_weights else {"stages": STAGES})}

    monkeypatch.setattr(design, "shared_settings", lambda options: {**of_study(options), "stages": STAGES})
    monkeypatch.setattr(NetworkSettings, "settings", settings)


@pytest.fixture
def world(tmp_path):
    """Create the files that pages assume: photos/, photo.jpg, mobilenet_v2.safetensors and the experiments."""
    write_folder(tmp_path / "photos", images=20)
    (tmp_path / "photo.jpg").write_bytes(encoded(0))
    network = random_network(MobileNetV2(convention="pytorch"))
    tensors = mapping.export(TORCHVISION, network.model, network.variables)
    (tmp_path / "mobilenet_v2.safetensors").write_bytes(safetensors_bytes(tensors))
    shutil.copytree(EXPERIMENTS, tmp_path / "experiments")  # reports are written beside their records


def small(words):
    """Return arguments that make one of our commands small; None for a command that is not run here."""
    name, arguments = program(words)
    if name != "python" or NOT_HERE.search(" ".join(words)):
        return None
    if arguments[:2] == ["-m", "mnv2_jax"] or arguments[0].startswith("experiments/"):
        flags = SMALL.get(" ".join(arguments[2:3]) if arguments[0] == "-m" else Path(arguments[0]).stem)
    else:
        flags = STUDY if Path(arguments[0]).is_file() else None  # a script that the page shows
    if flags is None:
        return None
    if "fashion_mnist" in arguments and "--data-files" in arguments:
        place = arguments.index("--data-files")
        arguments = arguments[:place] + arguments[place + 2 :]
    arguments = ["digits" if word == "fashion_mnist" else word for word in arguments]
    arguments = [path for word in arguments for path in (sorted(glob.glob(word)) or [word])]
    given = [each for flag, value in WHERE_GIVEN.items() if flag in arguments for each in (flag, value)]
    if "folder" in arguments:
        given += ["--train-images", "32"]  # as many as photos/ has
    return [*arguments, *flags.split(), *given]


def test_commands_are_made_small_or_left_out(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("own.py").touch()
    train = "python -m mnv2_jax train --dataset fashion_mnist --data-files /files --images 5000 --out runs/a"
    expected = f"-m mnv2_jax train --dataset digits --images 5000 --out runs/a {SMALL['train']} --images 32"
    assert small(train.split()) == expected.split()
    assert small(["A=1", "python3", "own.py", "*.py"]) == ["own.py", "own.py", *STUDY.split()]
    for left_out in ("gcloud x", "python experiments/null_studies.py", "python -m mnv2_jax train --weights hf://a/b"):
        assert small(left_out.split()) is None


RUNNING = [page for page in PAGES if any(block.language in {"python", *SHELL} for block in page.blocks)]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING, ids=str)
@pytest.mark.usefixtures("world", "quick")
def test_a_page_runs_from_its_first_block_to_its_last(page, start, monkeypatch):
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    write_scripts(page)
    missing = set()  # what commands would have written that do not run here
    for block in page.blocks:
        if block.language == "python" and not block.title:
            exec(compile(block.text, f"{page}:{block.line}", "exec"), module.__dict__)
        for _, words in split(block.text, inner=False) if block.language in SHELL else ():
            arguments = None if missing & set(words) else small(words)
            if arguments:
                problem = start(arguments)
                assert problem is None, problem
            else:
                missing |= {path for flag, path in itertools.pairwise(words) if flag in ("--out", "--output")}


# --- The notebook ------------------------------------------------------------------------------------------

NOTEBOOK = ROOT / "docs" / "tour.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
PARAMETERS = "SEEDS, IMAGES = 2, 32"
"""Replaces the cell tagged "parameters"."""


def test_the_notebook_is_kept_without_outputs():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_the_notebook_opens_in_colab_and_installs_from_where_the_site_says_that_the_repository_is():
    text = "".join(line for cell in CELLS for line in cell["source"])
    repository = re.search(r"^repo_url: https://github.com/(\S+)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)[1]
    assert f"(https://colab.research.google.com/github/{repository}/blob/main/docs/{NOTEBOOK.name})" in text
    assert f'"mnv2-jax @ git+https://github.com/{repository}"' in text


@pytest.mark.slow
@pytest.mark.usefixtures("start", "quick")
def test_the_notebook_runs_from_its_first_cell_to_its_last(monkeypatch):
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)  # there is no window here
    module = types.ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", module)
    assert [cell["metadata"] for cell in CELLS].count({"tags": ["parameters"]}) == 1
    for index, cell in enumerate(CELLS):
        source = PARAMETERS if cell["metadata"].get("tags") == ["parameters"] else "".join(cell["source"])
        if cell["cell_type"] == "code":
            exec(compile(source, f"{NOTEBOOK.name}, cell {index}", "exec"), module.__dict__)
    assert Path("runs/tour/figure.png").is_file()
