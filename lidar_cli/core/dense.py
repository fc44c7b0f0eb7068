"""The parts of DSE, from all patch tokens of images: separation, radius and dimension.

Axes: m images, N patch tokens each, d dimensions. z: tokens of unit length, [m N, d]. The images
are clustered alone, for one radius, and in groups of eight, for the other and for the separation.

    s        = sqrt(mean_z |z - mean(z)|^2)                                  the scale
    radius   = mean over clusters of (sum of singular values of Z_c - mean) / sqrt(max(c - 1, d))
    M_intra  = (radius of the clusters of images + that of the clusters of groups) / (2 s)
    M_inter  = mean_z (distance to the nearest centroid that is not its own) / s      in groups
    M_dim    = exp(entropy of the normalised singular values) of one token an image  [m, d]

Source: Dai et al., NeurIPS 2025, arXiv 2510.17299, as their code computes it, with the departures
that `lidar explain dse` lists. What orders checkpoints is M_inter - M_intra + lambda M_dim, where
lambda depends on all the checkpoints that are compared.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lidar_cli.core.metrics import effective_rank
from lidar_cli.errors import DegenerateFeatures

MOST_IMAGES = 2048
GROUP = 8  # images that are clustered together
CLUSTERS = 3  # of each image alone; a group has as many for each of its images
ROUNDS = 20  # of k-means at most
FEWEST_TOKENS = 2 * CLUSTERS  # of an image, so that a cluster can have a radius
COLLAPSED = 1e-6  # scale below which the tokens differ by rounding alone


class DenseParts(NamedTuple):
    """M_inter, M_intra and M_dim of one checkpoint."""

    inter: float
    intra: float
    dim: float


class Clusters(NamedTuple):
    """A cluster number for each row [N], and the means of the clusters [k, d]."""

    labels: Tensor
    centroids: Tensor


class TokenStructure:
    """Accumulates the parts of DSE over images, in order; keeps the tokens of a group at most.

    seed: of the first centroids, which also depend on the number of the image or group alone.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._waiting: list[Tensor] = []  # unit tokens [N, d] of the images of a group
        self._drawn: list[Tensor] = []  # one unit token [d] of each image
        self._radii_of_images: list[float] = []
        self._radii_of_groups: list[float] = []
        self._distances, self._count = 0.0, 0  # sum of distances to other centroids, and tokens
        self._mean: Tensor | None = None
        self._squares = 0.0  # sum of |z - mean|^2

    def update(self, tokens: Tensor, draws: Tensor) -> None:
        """Add images: tokens [b, N, d], and numbers in [0, 1) [b] that draw one token of each.

        Raises DegenerateFeatures for too few tokens, or some that are not finite.
        """
        if tokens.shape[1] < FEWEST_TOKENS:
            raise DegenerateFeatures(
                f"{tokens.shape[1]} patch tokens an image: {CLUSTERS} clusters need "
                f"{FEWEST_TOKENS}; raise --image-size",
                code="few-patches",
            )
        if not bool(tokens.isfinite().all()):
            raise DegenerateFeatures("some patch tokens are not finite", code="not-finite")
        places = (draws * tokens.shape[1]).long()
        for image, place in zip(tokens, places.tolist(), strict=True):
            unit = F.normalize(image.double(), dim=-1)
            self._drawn.append(unit[place].clone())  # a view would keep all tokens in memory
            self._waiting.append(unit)
            if len(self._waiting) == GROUP:
                self._add_group()

    def parts(self) -> DenseParts:
        """M_inter, M_intra and M_dim of all images so far; no image can be added afterwards.

        Raises DegenerateFeatures if the tokens do not differ, in all images or in a group.
        """
        if self._waiting:
            self._add_group()
        scale = (self._squares / self._count) ** 0.5 if self._count else 0.0
        if scale < COLLAPSED:
            raise DegenerateFeatures(
                "all patch tokens are equal: the embedding is constant or collapsed",
                code="collapsed",
            )
        if not math.isfinite(self._distances):
            raise DegenerateFeatures(
                f"all patch tokens of {GROUP} images that follow each other are equal: they have "
                "no other cluster",
                code="equal-patches",
            )
        singular = torch.linalg.svdvals(torch.stack(self._drawn).cpu())
        intra = _mean(self._radii_of_images) + _mean(self._radii_of_groups)
        return DenseParts(
            self._distances / self._count / scale,
            intra / 2.0 / scale,
            effective_rank(singular, 0.0),
        )

    def _add_group(self) -> None:
        images, number = self._waiting, len(self._drawn) - len(self._waiting)
        self._waiting = []
        for i, image in enumerate(images):
            labels = k_means(image, CLUSTERS, self._uniforms(2 * (number + i), CLUSTERS)).labels
            self._radii_of_images.append(_mean(radii(image, labels)))
        rows = torch.cat(images)
        k = CLUSTERS * len(images)
        clusters = k_means(rows, k, self._uniforms(2 * number + 1, k))
        self._radii_of_groups += radii(rows, clusters.labels)
        self._distances += float(distance_to_others(rows, clusters).sum())
        self._add_scatter(rows)

    def _add_scatter(self, rows: Tensor) -> None:
        mean = rows.mean(0)
        self._squares += float((rows - mean).square().sum())
        total = self._count + len(rows)
        if self._mean is None:
            self._mean = mean
        gap = mean - self._mean
        self._squares += float(gap.square().sum()) * self._count * len(rows) / total
        self._mean = self._mean + gap * (len(rows) / total)
        self._count = total

    def _uniforms(self, number: int, count: int) -> Tensor:
        """Numbers in [0, 1) of image i, number 2 i, or of the group that it begins, 2 i + 1."""
        generator = torch.Generator().manual_seed((self._seed * 2**16 + number) % 2**63)
        return torch.rand(count, generator=generator, dtype=torch.float64)


def k_means(rows: Tensor, k: int, uniforms: Tensor) -> Clusters:
    """Clusters of rows [N, d], by Lloyd's rounds until no row changes its cluster, ROUNDS at most.

    The first centroids are rows: number floor(u N), then each with a chance proportional to its
    distance to the nearest one before. uniforms: the k numbers u, in [0, 1). A cluster that loses
    all its rows keeps its centroid.
    """
    first = [rows[int(uniforms[0] * len(rows))]]
    nearest = rows.new_full((len(rows),), torch.inf)
    for u in uniforms[1:].tolist():
        nearest = torch.minimum(nearest, (rows - first[-1]).norm(dim=1))
        chances = nearest.cumsum(0)
        place = torch.searchsorted(chances, u * chances[-1], right=True)
        first.append(rows[place.clamp_max(len(rows) - 1)])
    centroids = torch.stack(first)
    labels = torch.full((len(rows),), -1, device=rows.device)
    for _ in range(ROUNDS):
        closest = torch.cdist(rows, centroids).argmin(1)
        if bool((closest == labels).all()):
            break
        labels = closest
        members = F.one_hot(labels, k).to(rows.dtype)
        counts = members.sum(0)
        means = members.T @ rows / counts.clamp_min(1.0)[:, None]
        centroids = torch.where(counts[:, None] > 0, means, centroids)
    return Clusters(labels, centroids)


def radii(rows: Tensor, labels: Tensor) -> list[float]:
    """The sum of the singular values of each centred cluster / sqrt(max(c - 1, d)); c > 1 only."""
    values = []
    for label in torch.unique(labels).tolist():
        cluster = rows[labels == label]
        count, d = cluster.shape
        if count > 1:
            centred = cluster - cluster.mean(0)
            gram = centred @ centred.T if count <= d else centred.T @ centred
            singular = torch.linalg.eigvalsh(gram.cpu()).clamp_min(0.0).sqrt()
            values.append(float(singular.sum()) / max(count - 1, d) ** 0.5)
    return values


def distance_to_others(rows: Tensor, clusters: Clusters) -> Tensor:
    """The distance of each row to the nearest centroid of another cluster that has rows, [N].

    Infinite if there is none.
    """
    distances = torch.cdist(rows, clusters.centroids)
    members = F.one_hot(clusters.labels, len(clusters.centroids)).bool()
    return distances.masked_fill(members | ~members.any(0), torch.inf).amin(1)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
