"""The parts of DSE: a literal twin, values by hand, and what cannot change them."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import torch
from raising import raises
from torch import Tensor

from lidar_cli.core.dense import DenseParts, TokenStructure, k_means, radii
from lidar_cli.errors import DegenerateFeatures


def measured(tokens: Tensor, draws: Tensor, seed: int = 0, batch: int = 100) -> DenseParts:
    structure = TokenStructure(seed)
    for some, its in zip(tokens.split(batch), draws.split(batch), strict=True):
        structure.update(some, its)
    return structure.parts()


def uniforms(seed: int, number: int, count: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed * 2**16 + number)
    return torch.rand(count, generator=generator, dtype=torch.float64).numpy()


def literal_clusters(rows: np.ndarray, k: int, u: np.ndarray) -> list[int]:
    """The cluster of each row after twenty rounds, by loops."""
    centroids = [rows[int(u[0] * len(rows))]]
    while len(centroids) < k:
        nearest = [min(math.dist(row, c) for c in centroids) for row in rows]
        target, passed, chosen = u[len(centroids)] * sum(nearest), 0.0, len(rows) - 1
        for place, distance in enumerate(nearest):
            passed += distance
            if passed > target:
                chosen = place
                break
        centroids.append(rows[chosen])
    labels: list[int] = []
    for _ in range(20):
        labels = [min(range(k), key=lambda c: math.dist(row, centroids[c])) for row in rows]
        for c in range(k):
            members = [row for row, label in zip(rows, labels, strict=True) if label == c]
            if members:
                centroids[c] = np.mean(members, axis=0)
    return labels


def literal_radii(rows: np.ndarray, labels: list[int]) -> list[float]:
    values = []
    for c in sorted(set(labels)):
        members = rows[np.array(labels) == c]
        if len(members) > 1:
            singular = np.linalg.svd(members - members.mean(0), compute_uv=False)
            values.append(singular.sum() / math.sqrt(max(len(members) - 1, rows.shape[1])))
    return values


def literal_parts(tokens: np.ndarray, draws: np.ndarray, seed: int) -> tuple[float, float, float]:
    z = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    m, n, d = z.shape
    of_images, of_groups, distances = [], [], []
    for i, image in enumerate(z):
        labels = literal_clusters(image, 3, uniforms(seed, 2 * i, 3))
        of_images.append(np.mean(literal_radii(image, labels)))
    for first in range(0, m, 8):
        group = z[first : first + 8]
        rows, k = group.reshape(-1, d), 3 * len(group)
        labels = literal_clusters(rows, k, uniforms(seed, 2 * first + 1, k))
        of_groups += literal_radii(rows, labels)
        means = {c: rows[np.array(labels) == c].mean(0) for c in set(labels)}
        distances += [
            min(math.dist(row, mean) for c, mean in means.items() if c != label)
            for row, label in zip(rows, labels, strict=True)
        ]
    flat = z.reshape(-1, d)
    scale = math.sqrt(((flat - flat.mean(0)) ** 2).sum(1).mean())
    drawn = np.stack([image[int(u * n)] for image, u in zip(z, draws, strict=True)])
    shares = np.linalg.svd(drawn, compute_uv=False)
    shares = shares / shares.sum()
    intra = (np.mean(of_images) + np.mean(of_groups)) / 2 / scale
    return np.mean(distances) / scale, intra, math.exp(-(shares * np.log(shares)).sum())


def random_tokens(images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    places = 3 * torch.randn(images, 3, 5, generator=generator)
    tokens = places.repeat_interleave(3, dim=1) + torch.randn(images, 9, 5, generator=generator)
    return tokens, torch.rand(images, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("images", [8, 11])
def test_the_parts_are_those_of_the_literal_twin(images: int) -> None:
    tokens, draws = random_tokens(images)
    expected = literal_parts(tokens.double().numpy(), draws.numpy(), seed=3)
    # Singular values are roots of eigenvalues: one that is 0 comes out as large as 1e-8.
    assert measured(tokens, draws, seed=3) == pytest.approx(expected, rel=1e-7)


def test_three_tokens_that_repeat() -> None:
    """The clusters are the three axes: no radius, sqrt(2) apart, and a scale of sqrt(2/3)."""
    tokens = torch.eye(4)[:3].repeat(9, 3, 1)
    places = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    parts = measured(tokens, (places + 0.5) / 9)
    assert parts == pytest.approx((math.sqrt(3), 0.0, 3.0), abs=1e-6)


def test_pairs_of_tokens() -> None:
    """Within an image a cluster is a pair, 2 sin(t) apart; in a group of equal images, a token.

    A centred pair has the singular value sqrt(2) sin(t), over sqrt(d) = sqrt(6). The mean of all
    tokens has the square length cos(t)^2 / 3. One token is drawn of all images: M_dim = 1.
    """
    t = 0.01
    pairs = torch.eye(3, dtype=torch.float64).repeat_interleave(2, dim=0) * math.cos(t)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(3)[:, None]
    apart = torch.eye(3, dtype=torch.float64).repeat_interleave(2, dim=0) * signs * math.sin(t)
    tokens = torch.cat([pairs, apart], dim=1).repeat(8, 1, 1)
    scale = math.sqrt(1 - math.cos(t) ** 2 / 3)
    radius = math.sqrt(2) * math.sin(t) / math.sqrt(6)
    expected = 2 * math.sin(t) / scale, radius / 2 / scale, 1.0
    assert measured(tokens, torch.zeros(8)) == pytest.approx(expected, abs=1e-6)


def test_batches_scales_and_rotations_change_nothing() -> None:
    tokens, draws = random_tokens(20)
    whole = measured(tokens, draws)
    assert measured(tokens, draws, batch=3) == whole
    lengths = torch.linspace(0.1, 10, 20 * 9).reshape(20, 9, 1)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    turned = (tokens * lengths).double() @ rotation
    assert measured(turned, draws) == pytest.approx(whole, rel=1e-5)
    assert measured(tokens, draws, seed=1)[:2] != whole[:2]


def bytes_of_tensors() -> int:
    """Memory of all tensors that Python can reach; a view counts with all that it is a view of."""
    gc.collect()  # else tensors of earlier tests are freed between two counts
    tensors = [one for one in gc.get_objects() if type(one) is Tensor and not one.is_sparse]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def test_one_token_of_each_image_stays_in_memory() -> None:
    structure, tokens = TokenStructure(0), torch.randn(8, 12, 64)
    structure.update(tokens, torch.zeros(8))
    before = bytes_of_tensors()
    for _ in range(5):
        structure.update(tokens, torch.zeros(8))
    assert bytes_of_tensors() - before == 5 * 8 * 64 * 8


def test_tighter_clusters_that_are_further_apart_are_better() -> None:
    centres = 3 * torch.randn(16, 3, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(16, 12, 8, generator=torch.Generator().manual_seed(1))
    spread = [
        measured(centres.repeat_interleave(4, dim=1) + sd * noise, torch.zeros(16))
        for sd in (0.1, 0.5, 2.0)
    ]
    gaps = [parts.inter - parts.intra for parts in spread]
    assert gaps == sorted(gaps, reverse=True)


def test_a_cluster_wider_than_long_and_one_longer_than_wide() -> None:
    for count in (4, 30):
        rows = torch.randn(count, 10, dtype=torch.float64)
        expected = literal_radii(rows.numpy(), [0] * count)
        assert radii(rows, torch.zeros(count, dtype=torch.long)) == pytest.approx(expected)


def test_a_cluster_that_no_row_is_nearest_to_keeps_its_centroid() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    clusters = k_means(rows, 3, torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64))
    assert clusters.labels.tolist() == [0, 1]
    assert clusters.centroids.tolist() == [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]


def test_why_there_are_no_parts() -> None:
    with raises(DegenerateFeatures, "few-patches") as caught:
        TokenStructure(0).update(torch.randn(2, 4, 3), torch.zeros(2))
    assert str(caught.value).startswith("4 patch tokens an image: 3 clusters need 6")
    with raises(DegenerateFeatures, "collapsed"):
        measured(torch.ones(9, 6, 3), torch.zeros(9))
    blank = torch.eye(3)[0].expand(8, 6, 3)
    with raises(DegenerateFeatures, "equal-patches"):
        measured(torch.cat([torch.randn(8, 6, 3), blank]), torch.zeros(16))
    with raises(DegenerateFeatures, "not-finite"):
        measured(torch.full((9, 6, 3), math.nan), torch.zeros(9))
