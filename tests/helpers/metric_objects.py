"""The torchmetrics objects, and embeddings for them."""

import torch

from lidar_cli import AlphaReQ, LiDAR, Pillai, RankMe

RANKS = (3, 10)


def cloud(n=60, q=4, d=12, seed=0):
    """Embeddings [n, q, d], float32, with a decaying spectrum and a mean far from 0."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1.0, d + 1).rsqrt()
    centres = 3.0 * scale * torch.randn(n, 1, d, generator=generator)
    return 100.0 + centres + torch.randn(n, q, d, generator=generator)


def objects(q=4, d=12):
    return {
        "lidar": LiDAR(q, d),
        "pillai": Pillai(q, d),
        "rankme": RankMe(d),
        "alpha_req": AlphaReQ(d, ranks=RANKS),
    }


def values(metrics):
    return {name: metric.compute().item() for name, metric in metrics.items()}
