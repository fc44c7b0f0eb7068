"""Numbers that break arithmetic: each metric is a number, or null with its reason; no traceback.

With intervals and with the convergence of every metric, at any size of chunks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from feature_files import WIDTHS, complete, read_all
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from raising import raises

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import LidarError
from lidar_cli.report.scores import to_csv, to_json
from lidar_cli.scoring.convergence import converge_file
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ScoreSettings

Array = NDArray[np.float64]
KINDS: dict[str, Callable[[np.random.Generator, Array], Array]] = {
    "plain": lambda rng, z: z,
    "constant": lambda rng, z: np.ones_like(z),
    "nought": lambda rng, z: 0 * z,
    "dead dimensions": lambda rng, z: z * (np.arange(z.shape[-1]) % 2),
    "one dimension alive": lambda rng, z: z * (np.arange(z.shape[-1]) == 0),
    "rank one": lambda rng, z: z[..., :1] * np.arange(1, z.shape[-1] + 1),
    "a mean of 1e12": lambda rng, z: z + 1e12,
    "a mean beyond its digits": lambda rng, z: z + 1e30,
    "samples alike": lambda rng, z: np.broadcast_to(z[:1], z.shape),
    "views alike": lambda rng, z: np.broadcast_to(z[:, :1], z.shape),
    "half the samples alike": lambda rng, z: np.where(
        np.arange(len(z))[:, None, None] % 2, z, z[0]
    ),
    "tiny": lambda rng, z: z * 1e-300,
    "subnormal": lambda rng, z: np.sign(z) * 5e-324,
    "huge": lambda rng, z: z * 1e300,
    "largest": lambda rng, z: np.sign(z) * np.finfo(np.float64).max,
    "of all scales": lambda rng, z: z * 10.0 ** rng.integers(-150, 150, z.shape),
    "one NaN": lambda rng, z: np.where(
        np.arange(z.size).reshape(z.shape) == z.size // 2, np.nan, z
    ),
    "infinities": lambda rng, z: np.where(np.arange(z.size).reshape(z.shape) % 5 == 1, np.inf, z),
}
SHAPES = [
    (2, 1, 1),
    (2, 2, 1),
    (1, 3, 2),
    (3, 1, 5),
    (2, 2, 40),
    (7, 2, 1),
    (30, 3, 4),
    (12, 2, 110),
]


def checked(path: Path, **more: Any) -> None:
    """A number or a reason for each metric, in JSON that is JSON; NaN and Inf are refused."""
    known = ScoreSettings(device="cpu", metrics="all", **more)
    if not np.isfinite(np.load(path)).all():
        for job in (score_file, converge_file):
            with pytest.raises(LidarError, match=r"values are NaN or Inf, in \d+ samples, the fir"):
                job(path, known)
        return
    for job in (score_file, converge_file):
        found = job(path, known)
        (record,) = json.loads(to_json(found), parse_constant=pytest.fail)
        to_csv(found)
        for name in METRICS:
            if record[name] is None:
                assert record["notes"][name]
            else:
                assert math.isfinite(record[name])
        for name, interval in (record["confidence"] or {"intervals": {}})["intervals"].items():
            ends = [interval[end] for end in ("se", "ci_low", "ci_high")]
            assert interval["reason"] or None not in ends, name


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of numbers that overflow here
@pytest.mark.parametrize("kind", KINDS)
def test_a_number_or_a_reason(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for at, shape in enumerate(SHAPES):
        z = KINDS[kind](rng, rng.normal(size=shape))
        dtype = (np.float64, np.float32, np.float16)[at % 3]
        np.save(tmp_path / "z.npy", np.ascontiguousarray(z.astype(dtype)))
        more = {"delta": 0.0} if at % 2 else {"normalize": bool(at % 4)}
        checked(tmp_path / "z.npy", confidence=0.9, memory=("1KB", "64MB")[at % 2], **more)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 12)),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    seed=st.integers(0, 99),
    memory=st.sampled_from(["64", "1KB", "64MB"]),
    delta=st.sampled_from([0.0, 1e-4, 1e308]),
    normalize=st.booleans(),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_any_of_them_at_any_chunking(
    tmp_path: Path, kind: str, shape: Any, dtype: Any, seed: int, memory: str, **more: Any
) -> None:
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        z = KINDS[kind](rng, rng.normal(size=shape)).astype(dtype)
    np.save(tmp_path / "z.npy", np.ascontiguousarray(z))
    checked(tmp_path / "z.npy", memory=memory, confidence=0.95, **more)


@settings(max_examples=80)
@given(
    layer=st.sampled_from(sorted(WIDTHS)),
    part=st.sampled_from(["views", "clean", "crc32"]),
    at=st.floats(0, 1, exclude_max=True),
    bits=st.integers(1, 255),
)
def test_a_changed_byte_of_the_numbers_is_always_found(
    tmp_path: Path, layer: str, part: str, at: float, bits: int
) -> None:
    """Of what scores are made: the rows, and their checksums."""
    path = tmp_path / "f.h5"
    if not path.exists():
        complete(path)
    with h5py.File(path) as file:
        array = file[f"embeddings/{layer}/{part}"]
        place = array.id.get_offset() + int(at * array.nbytes)
    content = bytearray(path.read_bytes())
    content[place] ^= bits
    (tmp_path / "damaged.h5").write_bytes(content)
    with raises(LidarError, "checksum"):
        read_all(tmp_path / "damaged.h5", layer)
    read_all(tmp_path / "damaged.h5", next(name for name in WIDTHS if name != layer))
