"""The methods of the study: losses against loops written out, and what training does."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from study import byol, dino, ijepa
from study.byol import ByolHyperparameters, byol_loss
from study.dino import DinoHyperparameters, Prototypes, dino_loss, teacher_momentum, update_teacher
from study.ijepa import IjepaHyperparameters, masked_crops, sine_positions
from torch import Tensor, nn

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.data.builtin import embedded_images
from lidar_cli.demo.pretrain import Network, minibatches

DINO = DinoHyperparameters("dino", 2, 3e-3, 1e-4, 0.5, 0.5, 0.04, 0.99)
BYOL = ByolHyperparameters("byol", 2, 3e-3, 1e-4, 0.5, 0.5, 0.99)
IJEPA = IjepaHyperparameters("ijepa", 2, 1e-3, 1e-2, 0.5, 0.6, 0.999)
TRAIN = {
    "byol": (byol.train_byol, BYOL),
    "dino": (dino.train_dino, DINO),
    "ijepa": (ijepa.train_ijepa, IJEPA),
}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return embedded_images(0).images[:256]


@pytest.fixture(scope="module")
def few_images(images) -> np.ndarray:
    return images[:128]


@pytest.fixture(scope="module")
def checkpoints(few_images) -> dict[str, dict]:
    return {name: train(few_images, h, 5) for name, (train, h) in TRAIN.items()}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dino_literally(s: Tensor, t: Tensor, centre: Tensor, temperature: float) -> float:
    """Caron et al. 2021, eq. 3 with two global views: each teacher view against the other."""

    def softmax(logits: list[float]) -> list[float]:
        powers = [math.exp(x) for x in logits]
        return [p / sum(powers) for p in powers]

    total = 0.0
    for i in range(len(s)):
        for view in (0, 1):
            wanted = softmax([(float(t[i, view, k]) - float(centre[k])) / temperature
                              for k in range(s.shape[2])])  # fmt: skip
            guess = softmax([float(x) / 0.1 for x in s[i, 1 - view]])
            total -= sum(p * math.log(g) for p, g in zip(wanted, guess, strict=True))
    return total / (2 * len(s))


def test_dino_loss_equals_the_literal_loop():
    s, t, centre = 0.1 * random(3, 2, 5), 0.1 * random(3, 2, 5, seed=1), 0.1 * random(5, seed=2)
    expected = dino_literally(s, t, centre, 0.05)
    assert dino_loss(s, t, centre, 0.05).item() == pytest.approx(expected)


def test_dino_loss_of_a_collapsed_student_is_the_log_of_the_prototypes():
    flat = torch.zeros(4, 2, 7)
    assert dino_loss(flat, random(4, 2, 7), torch.zeros(7), 0.04).item() == pytest.approx(
        math.log(7)
    )


def test_byol_loss_equals_the_literal_loop():
    predicted, target = random(4, 2, 3), random(4, 2, 3, seed=1)
    total = 0.0
    for i in range(4):
        for view in (0, 1):
            p, z = predicted[i, view], target[i, 1 - view]
            unit = p / p.square().sum().sqrt() - z / z.square().sum().sqrt()
            total += float(unit.square().sum())
    assert byol_loss(predicted, target).item() == pytest.approx(total / 4)


def test_prototypes_are_cosines():
    prototypes, x = Prototypes(6, 4), F.normalize(torch.randn(3, 6), dim=1)
    with torch.no_grad():
        prototypes.weight_v.mul_(100)
    actual = prototypes(x).detach()
    for i in range(3):
        for k in range(4):
            v = prototypes.weight_v[k].detach()
            assert actual[i, k].item() == pytest.approx(float(x[i] @ v / v.norm()), abs=1e-5)


def test_a_teacher_follows_by_its_momentum_which_rises_to_one():
    teacher, student = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        for module, value in ((teacher, 1.0), (student, 3.0)):
            module.weight.fill_(value)
            module.bias.fill_(-value)
    update_teacher(teacher, student, 0.9)
    assert teacher.weight.item() == pytest.approx(0.9 * 1 + 0.1 * 3)
    assert teacher.bias.item() == pytest.approx(-1.2)
    assert [teacher_momentum(0.9, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.9, 0.95, 1.0])


def test_steps_see_every_sample_of_whole_batches_once_an_epoch():
    steps = list(minibatches(150, 2, seed=0))
    assert [step.epoch for step in steps] == [0, 0, 1, 1]
    assert [step.progress for step in steps] == [0, 0.25, 0.5, 0.75]
    for epoch in (0, 1):
        seen = [s for step in steps if step.epoch == epoch for s in step.samples]
        assert len(seen) == len(set(seen)) == 128
    assert steps[0].samples != steps[2].samples


def test_positions_of_patches_differ_and_have_one_length():
    actual = sine_positions(16, 3)
    assert actual.shape == (9, 16)
    torch.testing.assert_close(actual.square().sum(dim=1), torch.full((9,), 8.0))
    # Patch 5 is row 1, column 2; the first and the last frequency are 1 and 10000^(-3/4).
    slow = 10000**-0.75
    assert actual[5, 0].item() == pytest.approx(math.sin(2))
    assert actual[5, 3].item() == pytest.approx(math.sin(2 * slow))
    assert actual[5, 4].item() == pytest.approx(math.cos(2))
    assert actual[5, 8].item() == pytest.approx(math.sin(1))
    assert actual[5, 15].item() == pytest.approx(math.cos(slow))


def test_ijepa_loss_equals_the_loop_over_images_and_hidden_patches(images):
    torch.manual_seed(0)
    encoder, predictor, target = ijepa.new_encoder(4), ijepa.new_predictor(4), ijepa.new_encoder(4)
    crops, mask = masked_crops(images, [3, 8, 20], IJEPA, seed=1)
    loss = ijepa.ijepa_loss(encoder, predictor, target, crops, mask).item()
    assert mask.seen is not None
    assert mask.seen.shape == (3, 6)  # floor(16 (1 - 0.6)) patches are seen
    total, count = 0.0, 0
    for i in range(3):
        seen = mask.seen[i]
        hidden = torch.tensor([p for p in range(16) if p not in seen.tolist()])
        whole = target.tokens(crops[i : i + 1])[0]
        z = encoder.tokens(crops[i : i + 1], seen[None])
        guess = predictor(z, [seen[None]], [hidden[None]])[0]
        for row, patch in zip(guess, hidden, strict=True):
            token = whole[patch]
            wanted = (token - token.mean()) / (token.var(unbiased=False) + 1e-5).sqrt()
            for difference in (row - wanted).abs().tolist():
                total += 0.5 * difference**2 if difference < 1 else difference - 0.5
                count += 1
    assert loss == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("name", TRAIN)
def test_training_is_determined_by_its_seed(name, few_images, checkpoints):
    train, h = TRAIN[name]
    state = torch.random.get_rng_state()
    again = train(few_images, h, 5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(again["losses"]) == h.epochs
    assert again["losses"] == checkpoints[name]["losses"]
    once = dataclasses.replace(h, epochs=1)
    assert len({train(few_images[:64], once, seed)["losses"][0] for seed in (6, 7)}) == 2


@pytest.mark.nightly
@pytest.mark.parametrize("name", TRAIN)
def test_training_learns_what_a_teacher_that_stays_sees(name, images):
    """Against weights that stay too: DINO's centre makes its loss rise at first, whoever learns."""
    train, h = TRAIN[name]
    h = dataclasses.replace(h, momentum=1.0, epochs=6)
    losses = train(images, h, 0)["losses"]
    still = train(images, dataclasses.replace(h, learning_rate=1e-12), 0)["losses"]
    assert losses[-1] < 0.97 * still[-1]


def test_dino_teacher_moves_towards_the_student(checkpoints):
    name = "module.backbone.conv1.weight"
    start = dict(dino.DinoNetwork().named_parameters())["backbone.conv1.weight"]
    teacher, student = checkpoints["dino"]["teacher"][name], checkpoints["dino"]["student"][name]
    assert teacher.shape == start.shape
    assert not torch.equal(teacher, student)
    assert (teacher - student).norm() < student.norm()


@pytest.mark.parametrize(
    ("name", "layers", "recognised", "branch"),
    [
        ("byol", "backbone,projector", "ResNet state dict", "encoder"),
        ("dino", "backbone,projector", "dino", "teacher"),
        ("ijepa", "backbone,predictor", "ijepa", "student"),
    ],
)
def test_the_layout_is_read_without_a_flag_and_gives_what_was_trained(
    name, layers, recognised, branch, checkpoints, tmp_path
):
    path = tmp_path / "checkpoint.pt"
    torch.save(checkpoints[name], path)
    torch.load(path, weights_only=True)
    loaded = open_checkpoint(path, layer=layers)
    actual = loaded.description
    assert (actual.format, actual.branch) == (recognised, branch)
    assert actual.widths == dict.fromkeys(layers.split(","), 128)
    loaded.set_image_size(32)
    x = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = loaded.embed(x, layers.split(","))
    if name == "dino":
        network = dino.DinoNetwork().eval()
        saved = checkpoints["dino"]["teacher"]
        network.load_state_dict({k.removeprefix("module."): v for k, v in saved.items()})
        with torch.no_grad():
            expected = network.backbone(x)
            torch.testing.assert_close(outputs["backbone"], expected)
            torch.testing.assert_close(outputs["projector"], network.head.mlp(expected))
    elif name == "byol":
        network = Network().eval()
        saved = {k.removeprefix("module."): v for k, v in checkpoints["byol"]["state_dict"].items()}
        network.load_state_dict({k: v for k, v in saved.items() if not k.startswith("predictor.")})
        with torch.no_grad():
            torch.testing.assert_close(outputs["projector"], network(x))
    else:
        encoder = ijepa.new_encoder(4).eval()
        saved = checkpoints["ijepa"]["encoder"]
        encoder.weights.load_state_dict({k.removeprefix("module."): v for k, v in saved.items()})
        with torch.no_grad():
            torch.testing.assert_close(outputs["backbone"], encoder.tokens(x).mean(dim=1))
