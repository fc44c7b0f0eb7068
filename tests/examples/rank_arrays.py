"""Which of several embeddings of the same recordings is best, as a table and a picture.

    python rank_arrays.py FOLDER

FOLDER gets ranking.csv and ranking.png.
"""

import sys
from pathlib import Path

import numpy as np

import lidar_cli

RECORDINGS, SEGMENTS, WIDTH = 200, 5, 24


def embeddings(directions: int) -> np.ndarray:
    """Segments of recordings [n, q, d], which differ along some directions; the rest is noise."""
    generator = np.random.default_rng(0)  # the same recordings in each
    recordings = 2 * generator.normal(size=(RECORDINGS, 1, WIDTH))
    noise = generator.normal(size=(RECORDINGS, SEGMENTS, WIDTH))
    return recordings * (np.arange(WIDTH) < directions) + noise


def main(folder: Path) -> None:
    """Rank three embeddings, and write the table and the picture."""
    arrays = {f"{count} directions": embeddings(count) for count in (4, 8, 16)}
    ranking = lidar_cli.rank(arrays, by="lidar", confidence=0.9)
    print(ranking.verdict)
    ranking.to_pandas().to_csv(folder / "ranking.csv", index=False)
    ranking.plot().savefig(folder / "ranking.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
