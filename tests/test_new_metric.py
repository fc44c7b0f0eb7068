"""One entry of METRICS is all that a metric needs: a toy one through the real commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from command import run_command
from make import environment

from lidar_cli.core.metrics import METRICS, Metric
from lidar_cli.features.schema import Layout
from lidar_cli.features.writer import FeatureWriter

N, Q, D = 90, 4, 5
DELTA = 1e-4
ENTRY = """
from lidar_cli.core.metrics import METRICS, Metric

def top_share(s):
    return float(s.eigenvalues[0] / s.eigenvalues.sum())

def top_share_gradient(s):
    total = s.eigenvalues.sum()
    gradient = (-s.eigenvalues[0] / total**2).repeat(len(s.eigenvalues))
    gradient[0] += 1.0 / total
    return gradient

METRICS["top_share"] = Metric(
    "top_share",
    "lda",
    "lower",
    "The share of the LDA trace that the first direction has. For tests.",
    top_share,
    top_share_gradient,
)
"""
# Of a process that has imported everything; what it imports again sees the entry.
ANEW = """
import sys
for name in [name for name in sys.modules if name.split(".")[0] == "lidar_cli"]:
    del sys.modules[name]
"""
MAIN = "from lidar_cli.__main__ import main\nmain()"


def after_entry(script: str, *arguments: object) -> str:
    """What a process prints that has the entry in METRICS before it imports the rest of lidar."""
    return printed(ANEW + ENTRY + script, *arguments)


def printed(script: str, *arguments: object) -> str:
    ended = run_command(arguments, Path.cwd(), environment(), script=script)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def share(z: np.ndarray) -> float:
    spectrum = reference.lda_spectrum(z, DELTA)
    return float(spectrum[0] / sum(spectrum))


@pytest.fixture(scope="module")
def embeddings() -> dict[str, np.ndarray]:
    """The first has most of its signal in one direction, the second in all alike."""
    rng = np.random.default_rng(2)
    signal, noise = rng.normal(size=(N, 1, D)), rng.normal(size=(N, Q, D))
    scales = {"one": np.array([9.0, 1, 1, 1, 1]), "all": np.full(D, 3.0)}
    drawn = {name: signal * scale + noise for name, scale in scales.items()}
    return {name: z.astype(np.float32).astype(float) for name, z in drawn.items()}


@pytest.fixture
def folder(tmp_path: Path, embeddings: dict[str, np.ndarray]) -> Path:
    """An array, and feature files of both."""
    np.save(tmp_path / "one.npy", embeddings["one"])
    for name, z in embeddings.items():
        layout = Layout({"backbone": D}, N, Q, N)
        ids = [str(i) for i in range(N)]
        (tmp_path / "runs").mkdir(exist_ok=True)
        path = tmp_path / "runs" / f"{name}.h5"
        with FeatureWriter.create(path, layout, ids, None, {"seed": 0}) as writer:
            views = torch.from_numpy(z).float()
            writer.write(range(N), {"backbone": views}, {"backbone": views[:, 0]})
            writer.finish()
    return tmp_path


def test_score_has_its_value_direction_and_interval(
    folder: Path, embeddings: dict[str, np.ndarray]
) -> None:
    z = embeddings["one"]
    words = ["score", folder / "one.npy", "--device", "cpu", "--confidence", 0.95]
    (record,) = json.loads(after_entry(MAIN, *words, "--json"))
    names = [name for name in record if name in METRICS or name == "top_share"]
    assert names == [*METRICS, "top_share"]
    assert record["top_share"] == pytest.approx(share(z), rel=1e-8)
    interval = record["confidence"]["intervals"]["top_share"]
    without = np.array([share(np.delete(z, i, axis=0)) for i in range(N)])
    jackknife = np.sqrt((N - 1) / N * ((without - without.mean()) ** 2).sum())
    assert interval["se"] == pytest.approx(jackknife, rel=0.1)
    assert interval["ci_low"] < record["top_share"] < interval["ci_high"]
    header, line = after_entry(MAIN, *words, "--csv").splitlines()
    assert "top_share" in header.split(",")
    assert header.endswith("top_share_se,top_share_ci_low,top_share_ci_high")
    assert len(line.split(",")) == len(header.split(","))
    table = after_entry(MAIN, *words, "--metrics", "top_share,lidar")
    (row,) = [line for line in table.splitlines() if line.startswith("top_share")]
    assert "lower" in row.split()
    assert "rankme" not in table


def test_rank_orders_by_it(folder: Path, embeddings: dict[str, np.ndarray]) -> None:
    words = ["rank", folder / "runs", "--by", "top_share", "--device", "cpu", "--json"]
    ranking = json.loads(after_entry(MAIN, *words))
    assert (ranking["by"], ranking["direction"]) == ("top_share", "lower")
    first, second = ranking["checkpoints"]
    assert [Path(row["path"]).name for row in (first, second)] == ["all.h5", "one.h5"]
    for row, name in ((first, "all"), (second, "one")):
        assert row["value"] == pytest.approx(share(embeddings[name]), rel=1e-8)
        assert row["ci_low"] < row["value"] < row["ci_high"]
        assert row["metrics"]["top_share"] == row["value"]
    again = json.loads(after_entry(MAIN, *words))  # from the influences that were stored
    assert again["checkpoints"] == ranking["checkpoints"]


def test_what_is_stored_without_it_is_computed_again(folder: Path) -> None:
    words = ["rank", folder / "runs", "--device", "cpu", "--json", "--by"]
    printed(MAIN, *words, "lidar")
    ranking = json.loads(after_entry(MAIN, *words, "top_share"))
    assert all(row["ci_low"] < row["value"] for row in ranking["checkpoints"])


ELSEWHERE = """
import json, sys
from pathlib import Path
import torch
from lidar_cli.integrations import EmbeddingMetric
from lidar_cli.ranking.correlation import correlate
from lidar_cli.report.text import format_metric
from lidar_cli.scoring.convergence import converge_file
from lidar_cli.settings import ScoreSettings

(score,) = converge_file(Path(sys.argv[1]), ScoreSettings(device="cpu"))
parts = score.convergence.by_samples + score.convergence.by_views
metric = EmbeddingMetric("top_share", dim=5, n_views=4)
metric.update(torch.from_numpy(__import__("numpy").load(sys.argv[1])))
scores = [score.with_value("top_share", value) for value in (0.3, 0.2, 0.1, 0.4)]
(row,) = [row for row in correlate(scores, [2.0, 3.0, 4.0, 1.0]) if row.metric == "top_share"]
print(json.dumps({
    "parts": [part.values["top_share"] for part in parts],
    "whole": score.top_share,
    "trained": metric.compute().item(),
    "higher_is_better": metric.higher_is_better,
    "spearman": row.spearman,
}))
"""


def test_convergence_correlations_and_training_have_it(
    folder: Path, embeddings: dict[str, np.ndarray]
) -> None:
    pytest.importorskip("torchmetrics")
    seen = json.loads(after_entry(ELSEWHERE, folder / "one.npy"))
    z = embeddings["one"]
    parts = [z[:22], z[:45], z, z[:, :2], z]
    assert seen["parts"] == pytest.approx([share(part) for part in parts], rel=1e-8)
    assert seen["whole"] == pytest.approx(share(z), rel=1e-8)
    assert seen["trained"] == pytest.approx(share(z), rel=1e-8)
    assert seen["higher_is_better"] is False
    assert seen["spearman"] == pytest.approx(1.0)  # a lower share with a higher accuracy


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_an_entry_has_a_definition_of_one_paragraph_with_its_source(metric: Metric) -> None:
    assert metric.definition.endswith(".")
    assert "\n" not in metric.definition
    assert "  " not in metric.definition
    assert re.search(r"(19|20)\d\d", metric.definition), "a year, of the source"
    assert (metric.better == "target") == (metric.target is not None)
    assert metric.gradient is None or metric.influence is None
