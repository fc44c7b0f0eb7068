"""The tower: imports point down only, and nothing heavy is loaded before it is needed."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import lidar_cli

ROOT = Path(lidar_cli.__file__).parent
TOWER = (  # from the top down: a package imports from itself and from those after it
    "__main__", "cli", "api", "report", "explain", "demo", "ranking", "scoring", "extraction",
    "integrations", "checkpoints", "probing", "views", "data", "features", "core", "runtime",
    "configuration", "settings", "errors",
    "",  # lidar_cli/__init__.py, which resolves its names lazily
)  # fmt: skip


def modules(root):
    """Dotted names below the package -> file; a package's own name is its __init__.py."""
    files = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        files[".".join(parts)] = path
    return files


def imported_names(path, package):
    """Every dotted name that a file imports, anywhere in it, as absolute names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            # `from package import name` may mean the module package.name
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in package else node.module


def imports_of(root, name="lidar_cli"):
    """Module -> the modules of the same package that it imports."""
    files = modules(root)
    package = {f"{name}.{module}" if module else name for module in files}
    graph = {}
    for module, path in files.items():
        imported = {other for other in imported_names(path, package) if other in package}
        graph[module] = {other.removeprefix(name).removeprefix(".") for other in imported}
    return graph


def height(module):
    """The height of a module's package in the tower."""
    return len(TOWER) - TOWER.index(module.split(".")[0])


def violations(root):
    """Imports that point up the tower, modules that import their own package, and circles."""
    graph = imports_of(root)
    lines = [
        f"{module} imports {other}, which is above it"
        for module, others in graph.items()
        for other in others
        if height(other) > height(module)
    ]
    lines += [
        f"{module} imports {other}, the package that it is in"
        for module, others in graph.items()
        for other in others
        if other and module.startswith(f"{other}.")
    ]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        lines.append("circle: " + " -> ".join(error.args[1]))
    return lines


def third_party(path):
    """Top-level packages a file imports that are neither ours nor Python's."""
    names = {name.split(".")[0] for name in imported_names(path, frozenset())}
    return names - sys.stdlib_module_names - {"lidar_cli"}


def test_every_module_has_a_place_in_the_tower():
    assert {module.split(".")[0] for module in modules(ROOT)} == set(TOWER)


def test_imports_point_down_the_tower_without_circles():
    assert violations(ROOT) == []
    assert sum(map(len, imports_of(ROOT).values())) > 300  # the check has seen the package


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        ({"core/moments.py": "import lidar_cli.features"}, "core.moments imports features, which"),
        ({"errors.py": "from lidar_cli import ranking"}, "errors imports ranking, which is"),
        (
            {"features.py": "def late():\n    from lidar_cli.scoring.run import Score"},
            "features imports scoring.run, which is above it",
        ),
        (
            {"scoring/run.py": "if True:\n    from lidar_cli import cli as c"},
            "scoring.run imports cli, which is above it",
        ),
        (
            {"scoring/run.py": "from lidar_cli.ranking.order import Order"},
            "scoring.run imports ranking.order, which is above it",
        ),
        ({"core/moments.py": "from lidar_cli.core import ten"}, "core.moments imports core, the"),
        (
            {
                "ranking/order.py": "import lidar_cli.ranking.race",
                "ranking/race.py": "import lidar_cli.ranking.order",
            },
            "circle: ",
        ),
    ],
)
def test_the_check_of_imports_can_fail(tmp_path, planted, message):
    for module in ("__init__", "errors", "settings", "features"):
        (tmp_path / f"{module}.py").touch()
    for package in ("core", "scoring", "ranking"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    for name in ("core/moments.py", "scoring/run.py", "ranking/order.py", "ranking/race.py"):
        (tmp_path / name).touch()
    (tmp_path / "cli.py").write_text("from lidar_cli.ranking import race\nimport torch\n")
    assert violations(tmp_path) == []
    for name, source in planted.items():
        (tmp_path / name).write_text(source)
    (line,) = violations(tmp_path)
    assert line.startswith(message)


def test_the_core_knows_torch_alone_and_features_alone_knows_hdf5():
    for path in (ROOT / "core").rglob("*.py"):
        assert third_party(path) <= {"torch"}, path
    assert third_party(ROOT / "errors.py") == set()
    assert third_party(ROOT / "settings.py") == {"annotated_types"}
    assert third_party(ROOT / "configuration.py") == {"pydantic"}
    with_hdf5 = {
        module.split(".")[0]
        for module, path in modules(ROOT).items()
        if "h5py" in third_party(path)
    }
    assert with_hdf5 == {"features"}


def test_every_public_name_resolves():
    for name in lidar_cli.__all__:
        assert getattr(lidar_cli, name) is not None
    for name, home in lidar_cli._MODULES.items():
        assert getattr(lidar_cli, name) is getattr(import_module(home), name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = lidar_cli.nothing


HEAVY = ("torch", "torchvision", "timm", "numpy", "h5py", "scipy", "sklearn", "matplotlib")
SCORE_MAY_NOT = ("timm", "torchvision", "scipy", "sklearn", "matplotlib", "PIL")
# of scipy, the quantile of intervals alone: 0.15 s, where scipy.stats takes a second
SCORE_MAY_NOT_OF_SCIPY = ("stats", "linalg", "optimize", "sparse", "spatial", "integrate")

REPORT_MODULES = """
import sys
{before}
sys.argv = ["lidar", *{arguments!r}]
from lidar_cli.__main__ import main
try:
    main()
except SystemExit as leaving:
    status = leaving.code
else:
    status = 0
loaded = sorted(name for name in sys.modules if name.count(".") < 2)
sys.stderr.write(f"\\nstatus {{status or 0}} loaded {{' '.join(loaded)}}\\n")
"""


def loaded_by(*arguments, before=""):
    """Exit status, packages and their modules in memory after a real run of the command line."""
    script = REPORT_MODULES.format(arguments=list(map(str, arguments)), before=before)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    last = ended.stderr.splitlines()[-1].split()
    return int(last[1]), set(last[3:])


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["score", "--help"], 0),
        (["rank", "--help"], 0),
        (["extract", "--help"], 0),
        (["probe", "--help"], 0),
        (["explain", "lidar"], 0),
        (["probe"], 2),
        (["probe", "z.h5", "--learning-rates", "fast"], 2),
        (["probe", "z.h5", "--json", "--csv"], 2),
        (["score"], 2),
        (["score", "--no-such-option"], 2),
        (["no-such-command"], 2),
        (["score", "z.npy", "--delta", "a lot"], 2),
        (["score", "z.npy", "--delta", "-1"], 2),
        (["score", "z.npy", "--json", "--csv"], 2),
    ],
)
def test_help_and_wrong_arguments_load_nothing_heavy(arguments, status):
    exit_status, packages = loaded_by(*arguments)
    assert exit_status == status
    assert packages.isdisjoint(HEAVY)


def test_explain_loads_no_torch():
    status, packages = loaded_by("explain", "vicreg")
    assert status == 0
    assert packages.isdisjoint({*HEAVY} - {"numpy"})


def test_score_loads_neither_timm_nor_scipy_nor_sklearn(tmp_path):
    import numpy as np

    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(20, 3, 4)))
    status, packages = loaded_by("score", tmp_path / "z.npy", "--json")
    assert status == 0
    assert "torch" in packages
    assert packages.isdisjoint(SCORE_MAY_NOT)


def test_intervals_load_no_more_of_scipy_than_its_special_functions(tmp_path):
    import numpy as np

    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(40, 3, 4)))
    words = ("score", tmp_path / "z.npy", "--json", "--confidence", "0.95")
    status, packages = loaded_by(*words)
    assert status == 0
    assert "scipy.special" in packages
    assert packages.isdisjoint(set(SCORE_MAY_NOT) - {"scipy"})
    assert packages.isdisjoint(f"scipy.{name}" for name in SCORE_MAY_NOT_OF_SCIPY)
    _, packages = loaded_by("--help", before="import scipy.linalg")
    assert not packages.isdisjoint(f"scipy.{name}" for name in SCORE_MAY_NOT_OF_SCIPY)


def modules_of_tests_imported(folder, prefix, allowed=()):
    """Modules of one folder that are tests or benchmarks themselves and imported by another."""
    files = sorted((Path(__file__).parent / folder).glob("*.py"))
    names = {path.stem for path in files if path.stem.startswith(prefix)}
    return {
        (path.stem, name)
        for path in files
        if path.stem not in allowed
        and re.search(rf"\b(?:from|import) {prefix}", path.read_text(encoding="utf-8"))
        for name in imported_names(path, {})
        if name.partition(".")[0] in names
    }


def test_test_modules_share_helpers_alone():
    assert modules_of_tests_imported(".", "test_") == set()
    assert modules_of_tests_imported("helpers", "test_") == set()
    assert modules_of_tests_imported("benchmarks", "bench_", allowed=("run", "gpu")) == set()
    assert ("run", "bench_pass") in modules_of_tests_imported("benchmarks", "bench_")


def test_the_check_of_loaded_packages_can_fail():
    _, packages = loaded_by("--help", before="import h5py")
    assert not packages.isdisjoint(HEAVY)
