"""The house: imports point to the same floor or down, nothing heavy before it is needed."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import lidar_cli

ROOT = Path(lidar_cli.__file__).parent
FLOORS = {
    "": 0,  # lidar_cli/__init__.py, which resolves its names lazily
    "errors": 0,
    "settings": 0,
    "configuration": 0,
    "runtime": 1,
    "core": 1,
    "features": 2,
    "embeddings": 2,
    "arrays": 2,
    "samples": 2,
    "embedded": 2,
    "embedded_sets": 2,
    "views": 2,
    "checkpoints": 2,
    "jobs": 3,
    "training": 3,
    "report": 4,
    "cli": 5,
    "__main__": 5,
}


def modules(root):
    """Dotted names below the package -> file; a package's own name is its __init__.py."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(parts)] = path
    return found


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
    known = modules(root)
    package = {f"{name}.{module}" if module else name for module in known}
    graph = {}
    for module, path in known.items():
        absolute = {found for found in imported_names(path, package) if found in package}
        graph[module] = {found.removeprefix(name).removeprefix(".") for found in absolute}
    return graph


def floor_of(module):
    return FLOORS[module.split(".")[0]]


def violations(root):
    """What breaks the house table: imports that point up, and cycles."""
    graph = imports_of(root)
    found = [
        f"{module} (floor {floor_of(module)}) imports {other} (floor {floor_of(other)})"
        for module, others in graph.items()
        for other in others
        if floor_of(other) > floor_of(module)
    ]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("cycle: " + " -> ".join(error.args[1]))
    return found


def third_party(path):
    """Top-level packages a file imports that are neither ours nor Python's."""
    names = {name.split(".")[0] for name in imported_names(path, frozenset())}
    return names - sys.stdlib_module_names - {"lidar_cli"}


def test_every_module_has_a_floor():
    assert {module.split(".")[0] for module in modules(ROOT)} == set(FLOORS)


def test_imports_point_to_the_same_floor_or_down_without_cycles():
    assert violations(ROOT) == []
    assert sum(map(len, imports_of(ROOT).values())) > 50  # the checker has seen the house


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        ({"core/moments.py": "import lidar_cli.features"}, "core.moments (floor 1) imports feat"),
        ({"errors.py": "from lidar_cli import settings, jobs"}, "errors (floor 0) imports jobs"),
        (
            {"features.py": "def late():\n    from lidar_cli.jobs.score import Score"},
            "features (floor 2) imports jobs.score (floor 3)",
        ),
        (
            {"jobs/score.py": "if True:\n    from lidar_cli import cli as c"},
            "jobs.score (floor 3) imports cli (floor 5)",
        ),
        (
            {"arrays.py": "import lidar_cli.features", "features.py": "import lidar_cli.arrays"},
            "cycle: ",
        ),
    ],
)
def test_the_checker_can_fail(tmp_path, planted, message):
    for module in ("__init__", "errors", "settings", "features", "arrays", "cli"):
        (tmp_path / f"{module}.py").touch()
    for package in ("core", "jobs"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    for name in ("core/moments.py", "jobs/score.py"):
        (tmp_path / name).touch()
    (tmp_path / "cli.py").write_text("from lidar_cli import errors\nimport torch\n")
    assert violations(tmp_path) == []
    for name, source in planted.items():
        (tmp_path / name).write_text(source)
    found = violations(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(message)


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
    for name, home in lidar_cli._HOMES.items():
        assert getattr(lidar_cli, name) is getattr(import_module(home), name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = lidar_cli.nothing


HEAVY = ("torch", "torchvision", "timm", "numpy", "h5py", "scipy", "sklearn", "matplotlib")
SCORE_MAY_NOT = ("timm", "torchvision", "scipy", "sklearn", "matplotlib", "PIL")

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
loaded = sorted({{name.split(".")[0] for name in sys.modules}})
sys.stderr.write(f"\\nstatus {{status or 0}} loaded {{' '.join(loaded)}}\\n")
"""


def loaded_by(*arguments, before=""):
    """Exit status and top-level packages in memory after a real run of the command line."""
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
    found, packages = loaded_by(*arguments)
    assert found == status
    assert packages.isdisjoint(HEAVY)


def test_score_loads_neither_timm_nor_scipy_nor_sklearn(tmp_path):
    import numpy as np

    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(20, 3, 4)))
    status, packages = loaded_by("score", tmp_path / "z.npy", "--json")
    assert status == 0
    assert "torch" in packages
    assert packages.isdisjoint(SCORE_MAY_NOT)


def modules_of_tests_imported(folder, prefix, allowed=()):
    """Modules of one folder that are tests or benchmarks themselves and imported by another."""
    files = sorted((Path(__file__).parent / folder).glob("*.py"))
    names = {path.stem for path in files if path.stem.startswith(prefix)}
    return {
        (path.stem, name)
        for path in files
        if path.stem not in allowed
        for name in imported_names(path, {})
        if name.partition(".")[0] in names
    }


def test_what_test_modules_share_lies_in_helpers():
    assert modules_of_tests_imported(".", "test_") == set()
    assert modules_of_tests_imported("helpers", "test_") == set()
    assert modules_of_tests_imported("benchmarks", "bench_", allowed=("run",)) == set()
    assert ("run", "bench_pass") in modules_of_tests_imported("benchmarks", "bench_")


def test_the_check_of_loaded_packages_can_fail():
    _, packages = loaded_by("--help", before="import h5py")
    assert not packages.isdisjoint(HEAVY)
