"""score, rank, compare and inspect from Python: the commands' records, in memory and in files."""

import inspect
import json
import pydoc
import re
import runpy
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from make import lidar
from raising import raises

import lidar_cli
from lidar_cli import LidarWarning
from lidar_cli.api.keywords import OF_THE_SHELL
from lidar_cli.errors import InputError, SettingsError
from lidar_cli.settings import COMMANDS

ROOT = Path(__file__).parent.parent
EXAMPLES = [ROOT / "tests" / "examples" / f"{name}.py" for name in ("rank_arrays", "stop_training")]
N, Q, D = 60, 3, 6
NAMES = ("a", "b", "c")
quiet = pytest.mark.filterwarnings("ignore::lidar_cli.LidarWarning")


@pytest.fixture(scope="module")
def arrays():
    """By name: embeddings [n, q, d] in float32, whose means vary along 2, 4 and 6 directions."""
    generator = np.random.default_rng(0)
    means, noise = generator.normal(size=(N, 1, D)), generator.normal(size=(N, Q, D))
    widths = dict(zip(NAMES, (2, 4, 6), strict=True))
    return {
        name: (2 * means * (np.arange(D) < width) + noise).astype(np.float32)
        for name, width in widths.items()
    }


@pytest.fixture(scope="module")
def files(arrays, tmp_path_factory):
    """The same as feature files, by name."""
    folder = tmp_path_factory.mktemp("files")
    return {
        name: lidar_cli.write_features(folder / f"{name}.h5", views=views)
        for name, views in arrays.items()
    }


def command_json(*words):
    return json.loads(lidar(*words, "--json", cwd=ROOT).stdout)


# The same as in a shell


@quiet
def test_a_score_is_the_json_of_the_command(files):
    result = lidar_cli.score(files["a"], files["b"], confidence=0.9, metrics="lidar,rankme")
    words = ("score", files["a"], files["b"], "--confidence", 0.9, "--metrics", "lidar,rankme")
    assert result.to_dict() == command_json(*words)


@quiet
def test_a_ranking_is_the_json_of_the_command(files, tmp_path):
    result = lidar_cli.rank(*files.values(), by="pillai", top=2, cache=tmp_path / "c")
    words = ("rank", *files.values(), "--by", "pillai", "--top", 2, "--cache", tmp_path / "c")
    assert result.to_dict() == command_json(*words)
    assert [row.path for row in result] == [str(files["c"]), str(files["b"])]


@quiet
def test_a_comparison_and_an_inspection_are_the_json_of_the_command(files):
    pair = files["a"], files["b"]
    assert lidar_cli.compare(*pair).to_dict() == command_json("compare", *pair)
    assert lidar_cli.inspect(*pair).to_dict() == command_json("inspect", *pair)


# In memory


@quiet
def test_arrays_are_ranked_as_their_files(arrays, files, tmp_path):
    of_files = lidar_cli.rank(list(files.values()), cache=tmp_path / "c")
    of_arrays = lidar_cli.rank(arrays)
    paths = {str(path): name for name, path in files.items()}
    for stored, row in zip(of_files, of_arrays, strict=True):
        assert (row.rank, row.name, row.path) == (stored.rank, stored.name, paths[stored.path])
        assert row.tied_with == [paths[path] for path in stored.tied_with]
        for name in ("value", "ci_low", "ci_high"):
            assert getattr(row, name) == pytest.approx(getattr(stored, name), rel=1e-12)
    assert of_arrays.best == "c"
    assert of_arrays.verdict == of_files.verdict


@quiet
def test_an_array_and_a_file_form_one_ranking_and_one_comparison(arrays, files, tmp_path):
    ranking = lidar_cli.rank(files["a"], {"b": arrays["b"]}, cache=tmp_path / "c")
    assert [row.path for row in ranking] == ["b", str(files["a"])]
    assert {row.group for row in ranking} == {1}
    mixed = lidar_cli.compare(files["a"], {"b": arrays["b"]})
    of_files = lidar_cli.compare(files["a"], files["b"])
    for one, other in zip(mixed, of_files, strict=True):
        assert (one.metric, one.values, one.tied) == (other.metric, other.values, other.tied)


def as_memory_map(views):
    path = Path("z.npy")
    np.save(path, views)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize(
    "form",
    [
        np.ndarray.tolist,
        torch.from_numpy,
        lambda views: torch.from_numpy(views.copy()).requires_grad_(),
        lambda views: views.astype(">f4"),
        lambda views: views[:, :, ::-1][:, :, ::-1].copy(order="F"),
        as_memory_map,
    ],
    ids=["list", "tensor", "with gradient", "big endian", "fortran", "memory map"],
)
@quiet
def test_every_form_of_an_array_has_the_same_score(arrays, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = lidar_cli.lidar(torch.from_numpy(arrays["b"]))
    (score,) = lidar_cli.score(form(arrays["b"]), metrics="lidar")
    assert score.lidar == pytest.approx(expected, rel=1e-9)
    assert (score.n_samples, score.n_views, score.dim) == (N, Q, D)


@quiet
def test_rows_become_views_and_lists_of_arrays_become_several(arrays):
    rows = arrays["a"].reshape(-1, D)
    (of_rows,) = lidar_cli.score(rows, metrics="lidar,rankme")
    assert of_rows.lidar is None
    assert of_rows.rankme == pytest.approx(lidar_cli.rankme(torch.from_numpy(rows)), rel=1e-9)
    (of_views,) = lidar_cli.score(rows, views_per_sample=Q, metrics="lidar")
    several = lidar_cli.score([arrays["a"], arrays["b"]], metrics="lidar")
    assert [score.file for score in several] == ["array 1", "array 2"]
    assert several[0].lidar == of_views.lidar
    assert several[:1].scores == several.scores[:1]


@quiet
def test_rows_in_memory_are_grouped_by_the_ids_of_a_file(arrays, tmp_path):
    rows, counts = torch.from_numpy(arrays["a"].reshape(-1, D))[:90], [2, 3, 4] * 10
    ids = [str(at) for at, count in enumerate(counts) for _ in range(count)]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    (score,) = lidar_cli.score(rows, group_by="ids", ids=tmp_path / "ids.txt", metrics="lidar")
    expected = lidar_cli.Moments.of(list(rows.split(counts))).lidar()
    assert score.lidar == pytest.approx(expected, rel=1e-9)


# Settings, errors and warnings


@pytest.mark.parametrize("name", ["score", "rank", "compare", "inspect"])
def test_every_setting_is_a_keyword_in_signature_and_help(name):
    function = getattr(lidar_cli, name)
    parameters = inspect.signature(function).parameters
    names = set(COMMANDS[name].__dataclass_fields__) - OF_THE_SHELL
    assert names == parameters.keys() - {"sources", "paths"}
    for field in COMMANDS[name].__dataclass_fields__.values():
        if field.name in names:
            assert parameters[field.name].default == field.default
            assert f"{field.name}: " in function.__doc__


@pytest.mark.parametrize(
    ("keywords", "code", "words"),
    [
        ({"confidense": 0.9}, "unknown-key", "did you mean confidence?"),
        ({"confidence": 95}, "wrong-value", "confidence = 95: expected less than 1"),
        ({"delta": "much"}, "wrong-value", "delta = 'much': expected a number"),
        ({"converge": 3}, "wrong-value", "converge = 3: "),
        ({"metrics": ["lidar", "rankmee"]}, "unknown-metric", "did you mean rankme?"),
    ],
)
def test_a_wrong_keyword_is_refused_by_name(arrays, keywords, code, words):
    with raises(SettingsError, code) as raised:
        lidar_cli.score(arrays["a"], **keywords)
    assert words in str(raised.value)


def test_an_option_of_one_letter_is_answered_with_its_keyword(arrays):
    with raises(SettingsError, "unknown-key") as raised:
        lidar_cli.rank(arrays, n=100)
    assert "did you mean n_samples?" in str(raised.value)


@pytest.mark.parametrize(
    ("sources", "code"),
    [
        ((), "nothing-given"),
        ((np.ones((4, 2, 2), int),), "no-floats"),
        (([[1.0, 2.0], [3.0]],), "no-array"),
        (({"z": np.ones((4, 2, 2))}, {"z": np.ones((4, 2, 2))}), "names"),
        (("nowhere.npy",), "no-such-file"),
    ],
)
def test_what_is_no_embedding_is_an_input_error(sources, code):
    with raises(InputError, code):
        lidar_cli.score(*sources)


def test_the_command_alone_watches(arrays):
    with raises(SettingsError, "shell-only") as raised:
        lidar_cli.rank(arrays, watch=True)
    assert "lidar rank FOLDER --watch" in str(raised.value)


def test_neither_environment_nor_file_changes_a_result(arrays, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lidar.toml").write_text("delta = 5.0\n")
    monkeypatch.setenv("LIDAR_EPSILON", "0.1")
    (score,) = lidar_cli.score(arrays["a"], metrics="lidar")
    assert (score.delta, score.epsilon) == (1e-4, 1e-7)


def test_remarks_of_the_command_are_warnings_at_the_caller_and_nothing_is_printed(
    arrays, files, capfd
):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lidar_cli.score(files["a"], delta=1.0, metrics="lidar,alpha_req")
        lidar_cli.rank(arrays)
    assert capfd.readouterr() == ("", "")
    assert {one.category for one in caught} == {LidarWarning}
    assert {one.filename for one in caught} == {__file__}
    printed = lidar("score", files["a"], "--delta", 1, "--metrics", "lidar,alpha_req", cwd=ROOT)
    texts = [str(one.message) for one in caught]
    for line in printed.stderr.splitlines():
        assert line.removeprefix("caution: ") in texts
    assert any("assumed the same samples" in text for text in texts)


@quiet
def test_a_thread_can_rank(arrays):
    results = []
    thread = threading.Thread(target=lambda: results.append(lidar_cli.rank(arrays)))
    thread.start()
    thread.join()
    assert results[0].to_dict() == lidar_cli.rank(arrays).to_dict()


# Tables and pictures


@quiet
def test_tables_have_a_row_a_record(arrays, files):
    ranking = lidar_cli.rank(arrays)
    table = ranking.to_pandas()
    assert table["name"].tolist() == [row.name for row in ranking]
    assert table["value"].tolist() == table["lidar"].tolist() == [row.value for row in ranking]
    scores = lidar_cli.score(arrays, confidence=0.9).to_pandas()
    assert scores["file"].tolist() == list(NAMES)
    assert (scores["lidar_ci_low"] < scores["lidar"]).all()
    difference = lidar_cli.compare({name: arrays[name] for name in "ab"})
    assert difference.to_pandas()["metric"].tolist() == [one.metric for one in difference]
    assert lidar_cli.inspect(files["a"]).to_pandas()["file"].tolist() == [str(files["a"])]


@quiet
def test_a_notebook_gets_the_cells_of_the_table(arrays, files):
    ranking = lidar_cli.rank(arrays)
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", ranking._repr_html_())
    assert cells[cells.index("1") + 1] == "c"
    comparison = lidar_cli.compare({name: arrays[name] for name in "ab"})
    for result, words in (
        (comparison, ["lidar", "rankme"]),
        (lidar_cli.score(arrays["a"]), ["lidar", "rankme"]),
        (lidar_cli.score(arrays), list(NAMES)),
        (lidar_cli.inspect(files["a"]), ["format", "embedding"]),
        (ranking, list(NAMES)),
    ):
        html = result._repr_html_()
        assert all(word in html for word in words)
        assert html.count("<table") == html.count("</table>") > 0
        assert len(repr(result)) < 200
        assert "\n" not in repr(result)
    escaped = lidar_cli.rank({"<b>": arrays["a"], "b": arrays["b"]})._repr_html_()
    assert "<b>" not in escaped
    assert "&lt;b&gt;" in escaped


@quiet
def test_pictures_hold_the_values(arrays):
    ranking = lidar_cli.rank(arrays)
    (axes,) = ranking.plot().axes
    points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert points == [row.value for row in ranking]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "b", "a"]
    comparison = lidar_cli.compare({name: arrays[name] for name in "ab"})
    (axes,) = comparison.plot().axes
    points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    first = comparison[0]
    assert points[0] == pytest.approx(100 * (first.values[0] / first.values[1] - 1), rel=1e-9)
    assert len(lidar_cli.score(arrays["a"]).plot().axes) == 3
    assert ranking.plot()._repr_png_().startswith(b"\x89PNG")


# Names, types, examples


def test_the_stub_has_every_name_and_the_names_are_listed():
    stub = (ROOT / "lidar_cli" / "__init__.pyi").read_text(encoding="utf-8")
    named = {name: home for home, name in re.findall(r"from (\S+) import (\w+) as", stub)}
    assert named == lidar_cli._MODULES
    assert set(dir(lidar_cli)) == {"__version__", *named}
    assert set(lidar_cli.__all__) < set(dir(lidar_cli))


def test_help_of_the_package_shows_its_functions_and_classes():
    text = pydoc.render_doc(lidar_cli, renderer=pydoc.plaintext)
    for name in ("score", "rank", "compare", "inspect", "lidar", "extract", "write_features"):
        assert re.search(rf"^    {name}\(.*\) -> ", text, re.MULTILINE), name
    for name in ("Moments", "FeatureWriter", "RankResult", "LidarWarning"):
        assert f"    class {name}(" in text


NO_TORCH = """
import sys, lidar_cli
functions = lidar_cli.score, lidar_cli.rank, lidar_cli.compare, lidar_cli.inspect
for name, keywords in (("score", {"delta": -1}), ("rank", {"bye": "lidar"})):
    try:
        getattr(lidar_cli, name)("z.npy", **keywords)
    except lidar_cli.SettingsError:
        assert not {"torch", "numpy", "h5py", "pandas", "matplotlib"} & sys.modules.keys()
    else:
        raise AssertionError(name)
"""


def test_names_and_refused_keywords_load_no_torch():
    subprocess.run([sys.executable, "-c", NO_TORCH], check=True)


TYPED = """
import lidar_cli
from lidar_cli import LidarWarning, RankResult

def ranked(path: str) -> RankResult:
    return lidar_cli.rank(path, by="lidar")

values: list[float | None] = [row.value for row in ranked("runs")]
files: list[str] = [one.file for one in lidar_cli.score("a.h5")]
kind: type[Warning] = LidarWarning
wrong: int = lidar_cli.compare("a", "b").sentence
"""


@pytest.mark.nightly  # a minute without a cache of mypy
def test_a_users_script_is_checked_strictly(tmp_path):
    from mypy import api

    script = tmp_path / "script.py"
    script.write_text(TYPED)
    printed, _, _ = api.run(["--strict", "--cache-dir", str(tmp_path / "cache"), str(script)])
    errors = [line for line in printed.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert 'has type "str", variable has type "int"' in errors[0]


def test_moments_have_the_lidar_of_all_that_they_saw(arrays):
    views = torch.from_numpy(arrays["b"])
    moments = lidar_cli.Moments(n_views=Q, dim=D)
    for chunk in views.split(7):
        moments.update(chunk)
    assert moments.lidar(delta=0.5) == pytest.approx(lidar_cli.lidar(views, delta=0.5), rel=1e-9)
    assert repr(moments) == f"Moments(n_views={Q}, dim={D}): {N} samples, on cpu"


@quiet
@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_runs(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [str(example), str(tmp_path)])
    monkeypatch.syspath_prepend(str(example.parent))  # as where a script is run
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    if example.stem == "rank_arrays":
        table = pd.read_csv(tmp_path / "ranking.csv")
        assert table["name"].tolist() == ["16 directions", "8 directions", "4 directions"]
        assert printed.startswith("16 directions is best by lidar")
        assert (tmp_path / "ranking.png").stat().st_size > 1000
    elif example.stem == "modalities":
        names = [line.partition(":")[0] for line in printed.splitlines()]
        assert names == ["audio", "video", "table", "sequences"]
    else:
        assert printed.splitlines()[-1] == "lidar falls: stop"


@quiet
def test_the_code_that_explain_shows_runs(capsys):
    text = (ROOT / "lidar_cli" / "explain" / "python.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, {})
    assert "wide wide is best by lidar" in capsys.readouterr().out


CELLS = [
    "import numpy as np, lidar_cli, warnings\nwarnings.simplefilter('ignore')\n"
    "from lidar_cli.report import progress\nprogress.DELAY = -1.0",
    "z = np.random.default_rng(0).normal(size=(40, 3, 4))\nlidar_cli.rank({'a': z, 'b': z + 1})",
    "lidar_cli.score(z, metrics='lidar').plot()",
    "lidar_cli.score(z, metrics='lidarr')",
]


@pytest.mark.filterwarnings("ignore")  # of the packages that start a kernel
def test_a_notebook_shows_a_table_progress_and_a_picture():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in CELLS])
    nbclient.NotebookClient(notebook, timeout=120, allow_errors=True).execute()
    _, ranked, drawn, failed = (cell["outputs"] for cell in notebook.cells)
    results = [out["data"] for out in ranked if out["output_type"] == "execute_result"]
    assert "<table" in results[0]["text/html"]
    assert results[0]["text/plain"].startswith("RankResult(2 by lidar")
    assert [out["output_type"] for out in ranked] == ["display_data", "execute_result"]
    assert ranked[0]["data"]["text/plain"] == "", "the line of progress is removed in the end"
    assert "image/png" in drawn[-1]["data"]
    assert failed[-1]["ename"] == "SettingsError"
