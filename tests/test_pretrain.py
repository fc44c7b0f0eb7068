import dataclasses
import math

import numpy as np
import pytest
import torch

from lidar_cli.checkpoints.open import build
from lidar_cli.checkpoints.shapes import resnet as resnet_spec
from lidar_cli.data.builtin import embedded_images
from lidar_cli.demo import pretrain as module
from lidar_cli.demo.pretrain import (
    Hyperparameters,
    Network,
    draw_hyperparameters,
    learning_rate_share,
    nt_xent,
    pretrain,
    training_views,
    vicreg,
)
from lidar_cli.runtime.progress import Progress

SIMCLR = Hyperparameters("simclr", 2, 3e-3, 1e-4, 0.8, 0.5, temperature=0.2)
VICREG = Hyperparameters(
    "vicreg", 2, 3e-3, 1e-4, 0.8, 0.5, similarity=5.0, variance=25.0, covariance=1.0
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def nt_xent_literally(z: torch.Tensor, t: float) -> float:
    """Chen et al. 2020, eq. 1: z [b, 2, d], every pair in both directions."""
    rows = [(i, j) for i in range(len(z)) for j in (0, 1)]

    def sim(a: tuple[int, int], b: tuple[int, int]) -> float:
        u, v = z[a], z[b]
        return float(u @ v / (u.norm() * v.norm()))

    total = 0.0
    for i, j in rows:
        others = sum(math.exp(sim((i, j), k) / t) for k in rows if k != (i, j))
        total -= math.log(math.exp(sim((i, j), (i, 1 - j)) / t) / others)
    return total / len(rows)


def vicreg_literally(z: torch.Tensor, lam: float, mu: float, nu: float) -> float:
    """Bardes et al. 2022, eqs. 1 to 6, s as a mean over dimensions; z [b, 2, d]."""
    b, _, d = z.shape
    loss = lam * sum(float((z[i, 0, k] - z[i, 1, k]) ** 2) for i in range(b) for k in range(d))
    loss /= b * d
    for view in (0, 1):
        mean = [float(z[:, view, k].mean()) for k in range(d)]
        for j in range(d):
            for k in range(d):
                pairs = [float(z[i, view, j] - mean[j]) * float(z[i, view, k] - mean[k])
                         for i in range(b)]  # fmt: skip
                entry = sum(pairs) / (b - 1)
                if j == k:
                    loss += mu * max(0.0, 1 - math.sqrt(entry + 1e-4)) / d
                else:
                    loss += nu * entry**2 / d
    return loss


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_xent_equals_the_literal_loop(temperature):
    z = random(5, 2, 4)
    assert nt_xent(z, temperature).item() == pytest.approx(nt_xent_literally(z, temperature))


def test_nt_xent_of_identical_embeddings_is_the_log_of_the_alternatives():
    z = torch.ones(6, 2, 3)
    assert nt_xent(z, 0.2).item() == pytest.approx(math.log(2 * 6 - 1))


def test_nt_xent_of_orthogonal_samples_is_known():
    z = torch.eye(4)[:, None].expand(4, 2, 4)  # own view at similarity 1, six others at 0
    assert nt_xent(z, 0.5).item() == pytest.approx(math.log(1 + 6 * math.exp(-2)))


def test_nt_xent_ignores_lengths():
    z, lengths = random(5, 2, 4), random(5, 2, 1, seed=1).exp()
    assert nt_xent(z * lengths, 0.3).item() == pytest.approx(nt_xent(z, 0.3).item())


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (25, 9, 2)])
def test_vicreg_equals_the_literal_loop(weights):
    z = 0.8 * random(6, 2, 3)
    assert vicreg(z, *weights).item() == pytest.approx(vicreg_literally(z, *weights))


def test_vicreg_of_collapsed_embeddings_is_the_variance_term_alone():
    z = torch.full((8, 2, 5), 3.0, dtype=torch.float64)
    assert vicreg(z, 25.0, 7.0, 1.0).item() == pytest.approx(2 * 7 * (1 - math.sqrt(1e-4)))


def test_vicreg_is_zero_for_equal_spread_and_uncorrelated_views():
    signs = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])  # orthogonal columns
    z = signs[:, None].expand(4, 2, 3)
    assert vicreg(z, 25.0, 25.0, 1.0).item() == 0
    assert vicreg(0.5 * z, 25.0, 25.0, 1.0).item() > 1


def test_learning_rate_rises_then_falls_to_zero():
    shares = [learning_rate_share(step, 100) for step in range(101)]
    assert shares[0] == pytest.approx(1 / 11)
    assert np.argmax(shares) == 10
    assert shares[10] == 1
    assert shares[55] == pytest.approx(0.5)
    assert shares[100] == pytest.approx(0, abs=1e-12)
    assert (np.diff(shares[:11]) > 0).all()
    assert (np.diff(shares[10:]) < 0).all()


@pytest.mark.parametrize("method", ["simclr", "vicreg"])
def test_search_covers_its_ranges(method):
    draws = [draw_hyperparameters(method, 3, index) for index in range(400)]
    ranges = {"learning_rate": module.LEARNING_RATE, "weight_decay": module.WEIGHT_DECAY}
    if method == "simclr":
        ranges |= {"temperature": module.TEMPERATURE}
        assert {draw.similarity for draw in draws} == {None}
    else:
        ranges |= {"similarity": module.SIMILARITY, "variance": module.VARIANCE}
        ranges |= {"covariance": module.COVARIANCE}
        assert {draw.temperature for draw in draws} == {None}
    shares = []
    for name, (low, high) in ranges.items():
        values = np.array([getattr(draw, name) for draw in draws])
        shares.append(np.log(values / low) / np.log(high / low))  # log-uniform: flat on 0..1
    for name, (low, high) in {"strength": module.STRENGTH, "crop": module.CROP}.items():
        values = np.array([getattr(draw, name) for draw in draws])
        shares.append((values - low) / (high - low))
    for share in shares:
        assert share.min() >= 0
        assert share.max() <= 1
        assert abs(share.mean() - 0.5) < 5 * math.sqrt(1 / 12 / 400)
        assert abs(share.var() - 1 / 12) < 0.02
    correlation = np.corrcoef(shares) - np.eye(len(shares))
    assert np.abs(correlation).max() < 5 / math.sqrt(400)
    epochs = {draw.epochs for draw in draws}
    assert epochs == set(range(module.EPOCHS[0], module.EPOCHS[1] + 1))


def test_search_depends_on_seed_and_index_alone():
    first = draw_hyperparameters("simclr", 0, 1)
    assert first == draw_hyperparameters("simclr", 0, 1)
    assert first != draw_hyperparameters("simclr", 0, 2)
    assert first != draw_hyperparameters("simclr", 1, 1)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return embedded_images(0).images[:256]


@pytest.fixture(scope="module")
def checkpoint(images):
    return pretrain(images, SIMCLR, seed=5)


def test_views_are_new_in_each_epoch_and_two_differ(images):
    def views(epoch: int, seed: int = 1, **change: float) -> torch.Tensor:
        settings = {"strength": 0.5, "crop": 0.3} | change
        return training_views(images, [4, 9, 11], **settings, seed=seed, epoch=epoch)

    first = views(0)
    assert first.shape == (3, 2, 3, 32, 32)
    assert torch.equal(first, views(0))
    assert not torch.equal(first[:, 0], first[:, 1])
    for other in (views(1), views(0, seed=2), views(0, strength=1.0), views(0, crop=0.8)):
        assert not torch.equal(first, other)


def test_training_is_determined_by_its_seed(images, checkpoint):
    state = torch.random.get_rng_state()
    again = pretrain(images, SIMCLR, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert again["losses"] == checkpoint["losses"]
    for name, weight in checkpoint["state_dict"].items():
        assert torch.equal(weight, again["state_dict"][name])
    other = pretrain(images, SIMCLR, seed=6)
    assert other["losses"] != checkpoint["losses"]


@pytest.mark.parametrize("settings", [SIMCLR, VICREG])
def test_training_lowers_the_loss(images, settings):
    losses = pretrain(images, dataclasses.replace(settings, epochs=8), seed=0)["losses"]
    still = dataclasses.replace(settings, epochs=8, learning_rate=1e-12)
    untrained = pretrain(images, still, seed=0)["losses"]
    assert len(losses) == 8
    assert losses[-1] < 0.95 * losses[0]
    assert losses[-1] < 0.95 * min(untrained)


def test_progress_is_reported_epoch_by_epoch(images):
    reports = []

    class Listener(Progress):
        def update(self, task: str, done: int, total: int) -> None:
            reports.append((done, total))

    pretrain(images[:64], SIMCLR, seed=0, progress=Listener())
    assert reports == [(1, 2), (2, 2)]


def test_checkpoint_is_what_a_training_script_saves(checkpoint, tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save(checkpoint, path)
    loaded = torch.load(path, weights_only=True)
    assert loaded["epoch"] == 2
    assert Hyperparameters(**loaded["hyper_parameters"]) == SIMCLR
    assert loaded["optimizer"]["state"]
    weights = loaded["state_dict"]
    assert {name.split(".")[1] for name in weights} == {"backbone", "projector"}
    assert {name.split(".")[2] for name in weights if ".projector." in name} == {"0", "1", "3"}
    assert all(weight.is_contiguous() for weight in weights.values())
    assert weights["module.projector.3.weight"].shape[0] >= 128


def test_backbone_is_read_back_from_its_shapes_alone(checkpoint):
    prefix = "module.backbone."
    weights = {
        name.removeprefix(prefix): weight
        for name, weight in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    backbone = build(resnet_spec.spec({n: tuple(w.shape) for n, w in weights.items()}, "here"))
    backbone.load_state_dict(weights, assign=True)
    network = Network()
    stripped = {n.removeprefix("module."): w for n, w in checkpoint["state_dict"].items()}
    network.load_state_dict(stripped)
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = network.eval().backbone(x)
    assert expected.shape == (4, module.WIDTHS[-1])
    assert expected.std(dim=0).max() > 1e-3
    torch.testing.assert_close(backbone.eval()(x), expected)
