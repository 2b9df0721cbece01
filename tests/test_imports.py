"""The package's layers: modules import only from the same part or layers below. And --help loads little."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "mnv2_jax"

LAYERS = (
    {"errors", "wording"},
    {"environment"},
    {"results"},
    {"models"},
    {"data"},
    {"tasks"},
    {"network"},
    {"weights"},
    {"settings"},  # imports only what ONLY allows, so any module above the models may import it
    {"training"},
    {"ablation", "analysis", "export"},
    {"plan"},
    {"flags"},
    {"cli"},
    {"commands"},
)
"""Layers from bottom to top. Parts of one layer do not import each other. Scripts are above all layers."""

ONLY = {
    "flags": {"errors"},
    "cli": {"errors", "environment", "flags"},
    "settings": {"errors", "models.names", "models.strides", "data.catalog"},
    "models.names": set(),
    "models.strides": set(),
    "data.catalog": set(),
    "training.config": {"errors", "wording", "settings", "models.names", "data.catalog"},
    "ablation.statistics": set(),
    "ablation.design": {
        *("errors", "settings", "models.names", "models.strides", "data.catalog"),
        *("training.config", "ablation.statistics"),
    },
}
"""Everything that these modules may import. Command lines are built from them and load without JAX."""

FREE = {
    "__init__": "hands out the package's public names, and imports each when it is asked for",
    "__main__": "is the command line itself: it imports a command when that is named",
}
"""Modules outside of all layers, and why."""


def layer_of(module: str) -> int:
    """Return the index of a module's layer."""
    top = module.partition(".")[0]
    found = [height for height, names in enumerate(LAYERS) if top in names]
    assert found, f"{module} stands in no layer: add it to LAYERS, above whatever it imports"
    return found[0]


def modules(root: Path) -> dict[str, Path]:
    """Return the files of the package's modules by name, such as "training.step"."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    names = [".".join(file.relative_to(root / PACKAGE).with_suffix("").parts) for file in files]
    return {
        name if name in FREE else name.removesuffix(".__init__"): file for name, file in zip(names, files, strict=True)
    }


def imports(module: str, file: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Return (line, module) of all imports from the package, anywhere in a file."""
    package = [PACKAGE, *module.split(".")] if file.name == "__init__.py" else [PACKAGE, *module.split(".")[:-1]]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            # In "from mnv2_jax.models import names", "names" is a module or a name in one.
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == PACKAGE:
                parts = name.split(".")[1:]
                while parts and ".".join(parts) not in known:
                    parts.pop()
                yield node.lineno, ".".join(parts)


def violations(root: Path) -> list[str]:
    """Return imports from the same layer or a higher one, as "FILE:LINE imports MODULE"."""
    known = modules(root)
    found = []
    for module, file in known.items():
        if module in FREE:
            continue
        for line, other in imports(module, file, known):
            top, other_top = module.partition(".")[0], other.partition(".")[0]
            if module in ONLY:
                fine = other in ONLY[module]
            elif top == "data" and other_top == "models":
                fine = other == "models.strides"  # data sets tell networks their strides without needing a network
            else:
                # The package itself ("") exports names of higher layers.
                fine = bool(other) and (top == other_top or layer_of(other) < layer_of(module))
            if not fine:
                found.append(f"{file.relative_to(root)}:{line} imports {other or PACKAGE}")
    return found


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """Create a copy of the package with empty modules."""
    root = tmp_path_factory.mktemp("empty")
    for file in modules(ROOT).values():
        (root / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        (root / file.relative_to(ROOT)).write_text("")
    return root


@pytest.fixture
def write(empty):
    """Write code into one module for one check, and empty it again."""
    written = []

    def write(module, source):
        written.append(empty / PACKAGE / f"{module}.py")
        written[-1].write_text(source)
        return violations(empty)

    yield write
    for path in written:
        path.write_text("")


def test_no_module_imports_from_above():
    assert violations(ROOT) == []


def test_every_module_has_a_layer():
    assert {layer_of(module) for module in modules(ROOT) if module not in FREE} <= set(range(len(LAYERS)))
    assert set(ONLY) <= set(modules(ROOT))


@pytest.mark.parametrize(
    ("module", "source", "other"),
    [
        ("models/blocks", "from mnv2_jax.training.step import train_step", "training.step"),
        ("models/blocks", "import mnv2_jax.network", "network"),
        ("tasks/task", "from mnv2_jax import network", "network"),
        ("tasks/task", "from mnv2_jax import create_model", "mnv2_jax"),
        ("network", "def f():\n    from mnv2_jax.weights.load import load_weights", "weights.load"),
        ("training/run", "if TYPE_CHECKING:\n    from mnv2_jax.commands.train import Options", "commands.train"),
        ("training/step", "from ..commands import train", "commands.train"),
        ("training/step", "from .. import cli", "cli"),
        ("data/batch", "from mnv2_jax.models.layers import relu6", "models.layers"),
        ("analysis/memory", "from mnv2_jax.ablation import design", "ablation.design"),
        ("ablation/study", "from mnv2_jax.plan.chips import CHIPS", "plan.chips"),
        ("cli", "def f():\n    from mnv2_jax.training.config import Recipe", "training.config"),
        ("settings", "from mnv2_jax.models.create import create_model", "models.create"),
        ("settings", "from mnv2_jax.training.config import Recipe", "training.config"),
        ("training/config", "from mnv2_jax.training.step import Learner", "training.step"),
        ("ablation/design", "from mnv2_jax.ablation.study import study_main", "ablation.study"),
        ("errors", "from mnv2_jax.environment import environment", "environment"),
    ],
)
def test_an_import_from_above_is_found_wherever_it_stands(module, source, other, write):
    line = 1 + source.count("\n")
    assert write(module, source) == [f"{PACKAGE}/{module}.py:{line} imports {other}"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("models/blocks", "from mnv2_jax.models import names\nfrom . import layers"),
        ("data/stream", "from mnv2_jax.models.strides import unit_strides_for\nfrom mnv2_jax.data.batch import Batch"),
        ("training/run", "import mnv2_jax.network\nfrom mnv2_jax import errors, settings\nimport jax"),
        ("plan/plan", "from mnv2_jax.ablation.arms import families\nfrom mnv2_jax.plan import Step"),
        ("commands/plan", "from mnv2_jax import cli"),
    ],
)
def test_an_import_from_below_is_fine(module, source, write):
    assert write(module, source) == []


# --- What --help loads -----------------------------------------------------------------------------------

HEAVY = ("jax", "flax", "optax", "orbax", "tensorflow_datasets", "matplotlib")

PRINT_HELP = """
import contextlib, io, json, runpy, sys

heavy, commands, scripts = json.loads(sys.argv[1])
from mnv2_jax.__main__ import main

def run_command(name):
    sys.argv = ["mnv2_jax", name, "--help"]
    main()

def run_script(path):
    sys.argv = [path, "--help"]
    runpy.run_path(path, run_name="__main__")

found = {}
for name in [*commands, *scripts]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        (run_command if name in commands else run_script)(name)
    found[name] = ["usage" in output.getvalue(), [module for module in heavy if module in sys.modules]]
print(json.dumps(found))
"""


def study_scripts() -> list[str]:
    """Return the scripts that train a study, and the one that trains a run."""
    scripts = sorted((ROOT / "experiments").glob("*.py"))
    studies = [path for path in scripts if "from mnv2_jax.ablation.study import" in path.read_text()]
    return [str(path) for path in (*studies, ROOT / "experiments" / "train_imagenet.py")]


def test_a_help_loads_neither_jax_nor_tfds_nor_matplotlib():
    from mnv2_jax.__main__ import COMMANDS

    scripts = study_scripts()
    assert len(scripts) > 5
    # Without the import hook that checks types, which itself loads JAX.
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "experiments"), "GLIBC_TUNABLES": ""}
    command = [sys.executable, "-c", PRINT_HELP, json.dumps([HEAVY, list(COMMANDS), scripts])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {name: [True, []] for name in [*COMMANDS, *scripts]}
