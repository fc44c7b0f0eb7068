"""Embeds audio, video, a table and sequences by one's own code, and scores them.

    python modalities.py FOLDER

FOLDER gets a feature file of each. On the command line the same is

    lidar extract audio.pt --data modalities:audio --model modalities:audio_network
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import lidar_cli
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ScoreSettings

COUNT, VIEWS = 60, 3


class Samples:
    """COUNT samples, each drawn by its own seed and seen in VIEWS random views."""

    def __init__(self, sample, view):
        self.sample, self.view = sample, view

    def __len__(self):
        return COUNT

    def __getitem__(self, i):
        sample = self.sample(torch.Generator().manual_seed(i))
        # Without a generator: lidar seeds torch before each item.
        return torch.stack([self.view(sample) for _ in range(VIEWS)]), f"sample {i}", i % 4


def audio():
    """Waves of two tones; a view is the spectrogram of a random part, with noise."""
    time = torch.arange(2048) / 2048

    def wave(generator):
        tones = 50 + 400 * torch.rand(2, 1, generator=generator)
        return torch.sin(2 * torch.pi * tones * time).sum(0)

    def view(sample):
        start = int(torch.randint(1024, ()))
        part = sample[start : start + 1024] + 0.1 * torch.randn(1024)
        spectrum = torch.stft(part, 64, 64, window=torch.hann_window(64), return_complex=True)
        return spectrum.abs().log1p()  # [33 bands, 17 frames]

    return Samples(wave, view)


def audio_network():
    return nn.Sequential(nn.Conv1d(33, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())


def video():
    """Clips of a moving square; a view starts at a random frame."""

    def place(generator):
        return torch.rand(4, generator=generator)

    def view(sample):
        x, y, dx, dy = sample.tolist()
        clip, start = torch.zeros(3, 4, 16, 16), int(torch.randint(3, ()))
        for frame in range(4):
            left = int(12 * ((x + 0.1 * dx * (start + frame)) % 1))
            top = int(12 * ((y + 0.1 * dy * (start + frame)) % 1))
            clip[:, frame, top : top + 4, left : left + 4] = 1
        return clip  # [3, T, H, W]

    return Samples(place, view)


def video_network():
    return nn.Sequential(nn.Conv3d(3, 12, (2, 8, 8), (2, 8, 8)), nn.ReLU(), nn.Flatten())


def table():
    """Rows of 10 features; a view lacks some of them."""
    return Samples(
        lambda generator: torch.randn(10, generator=generator),
        lambda row: row * (torch.rand(10) < 0.7),
    )


def table_network():
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU())


def sequences():
    """Sequences of 12 symbols; a view replaces some of them."""

    def view(sample):
        return torch.where(torch.rand(12) < 0.2, torch.randint(20, (12,)), sample)

    return Samples(lambda generator: torch.randint(20, (12,), generator=generator), view)


class PooledOverTime(nn.Module):
    """Embeddings of symbols, averaged over time: their RankMe is RankMe-t."""

    def __init__(self):
        super().__init__()
        self.symbols = nn.Embedding(20, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.symbols(x.long()).mean(dim=1)


def sequence_network():
    return PooledOverTime()


MODALITIES = {
    "audio": audio_network,
    "video": video_network,
    "table": table_network,
    "sequences": sequence_network,
}


def main(folder: Path) -> None:
    for name, network in MODALITIES.items():
        torch.manual_seed(0)
        path = folder / f"{name}.h5"
        lidar_cli.extract(network(), f"modalities:{name}", path, device="cpu")
        (score,) = score_file(path, ScoreSettings(metrics="lidar,rankme"))
        print(f"{name}: lidar {score.value('lidar'):.3g}, rankme {score.value('rankme'):.3g}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
