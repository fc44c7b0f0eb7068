"""Data many times larger than the memory that the operating system lets a process take."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from command import run_command
from make import checkpoint, environment
from PIL import Image

from lidar_cli.scoring.open import open_embeddings
from lidar_cli.scoring.streaming import enough_memory
from lidar_cli.settings import ScoreSettings

pytest.importorskip("resource", reason="limits of a process are POSIX")

MB = 2**20
# Once everything is imported, the process may take so many bytes more.
CAPPED = """
import resource, sys, threading
import PIL.Image, h5py, pydantic, rich.table, timm, torch, webdataset
import lidar_cli.cli, lidar_cli.extraction.run, lidar_cli.scoring.run, lidar_cli.report.scores
from lidar_cli.__main__ import main

status = open("/proc/self/status").read()
taken = int(status.split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (taken + int(sys.argv[1]),) * 2)
threading.stack_size(2**18)  # the limit counts stacks whole, and none is used whole
sys.argv = ["lidar", *sys.argv[2:]]
{before}
main()
"""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux limits and reports anonymous memory"
)


def capped(
    room: int, *words: object, cwd: Path, before: str = ""
) -> subprocess.CompletedProcess[str]:
    script = CAPPED.format(before=before)
    return run_command([room, *words], cwd, environment(), timeout=120, script=script)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 MB of embeddings [1600, 512, 128]: every sample is one of eight, its views shuffled."""
    path = tmp_path_factory.mktemp("features") / "z.h5"
    few = np.random.default_rng(0).standard_normal((8, 512, 128), np.float32)
    with h5py.File(path, "w") as file:
        out = file.create_dataset("z", (1600, 512, 128), np.float32)
        for start in range(0, 1600, 8):
            out[start : start + 8] = np.roll(few, start, axis=1)
    return path


def test_features_many_times_the_memory_are_scored(features: Path) -> None:
    room = 192 * MB  # of which --memory are chunks, and the rest is moments and spectra
    words = ["score", features, "--memory", "12MB", "--metrics", "lidar,rankme,alignment", "--json"]
    scored = capped(room, *words, cwd=features.parent)
    assert scored.returncode == 0, scored.stderr
    (found,) = json.loads(scored.stdout)
    assert found["n_samples"] == 1600
    # Eight different samples: their LDA matrix has seven eigenvalues that are not zero.
    with h5py.File(features) as file:
        few = file["z"][:8].astype(np.float64)
    means = few.mean(axis=1)
    within = few - means[:, None]
    unit = few / np.linalg.norm(few, axis=2, keepdims=True)
    spread = unit - unit.mean(axis=1, keepdims=True)
    assert found["alignment"] == pytest.approx(2 / 511 * (spread**2).sum(axis=(1, 2)).mean(), 1e-9)
    scatter = np.tensordot(within, within, ((0, 1), (0, 1))) / (8 * 511) + 1e-4 * np.eye(128)
    centred = means - means.mean(axis=0)
    values = np.linalg.eigvalsh(centred @ np.linalg.solve(scatter, centred.T))[1:]
    shares = np.zeros(128)
    shares[:7] = values / values.sum()
    shares += 1e-7  # epsilon
    assert found["lidar"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), 1e-6)


def test_the_same_memory_does_not_hold_the_features(features: Path) -> None:
    read = f"import h5py; h5py.File({str(features)!r})['z'][:]"
    done = capped(192 * MB, "--version", cwd=features.parent, before=read)
    assert done.returncode == 1
    assert "Unable to allocate" in done.stderr


def test_memory_that_torch_cannot_have_is_one_line(tmp_path: Path) -> None:
    d = 2_000  # 32 MB a matrix, of which the covariance and its decomposition take several
    np.save(tmp_path / "wide.npy", np.random.default_rng(0).normal(size=(4, 2, d)))
    done = capped(64 * MB, "score", "wide.npy", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line)
    assert "not enough memory for moments of d = 2000" in line


def test_another_error_of_torch_is_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", np.ones((4, 2, 8)))
    (embeddings,) = open_embeddings(tmp_path / "z.npy", ScoreSettings())
    with pytest.raises(RuntimeError, match="size"), enough_memory(embeddings):
        torch.ones(2) + torch.ones(3)


def test_shards_many_times_the_memory_are_embedded(tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="the data extra is not installed")
    noise = np.random.default_rng(0)
    (tmp_path / "shards").mkdir()
    size = 0
    for shard in range(3):
        with tarfile.open(tmp_path / "shards" / f"{shard:04}.tar", "w") as tar:
            for k in range(96):
                content = io.BytesIO()
                image = noise.integers(0, 256, (640, 640, 3), np.uint8)
                Image.fromarray(image).save(content, "BMP")
                member = tarfile.TarInfo(f"{shard}{k:03}.jpg")  # whatever the format
                member.size = len(content.getvalue())
                size += member.size
                tar.addfile(member, io.BytesIO(content.getvalue()))
    assert size > 330 * MB
    checkpoint(tmp_path / "ckpt.pt")
    words = ["extract", "ckpt.pt", "--data", "wds/shards", "--data-dir", tmp_path, "-n", 288]
    words += ["-q", 2, "--image-size", 32, "--batch-size", 2, "--workers", 1, "--device", "cpu"]
    done = capped(100 * MB, *words, "-o", "out.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["samples/done"][:].all()
        assert sorted(name.decode() for name in file["samples/id"][:])[0] == "0000"
