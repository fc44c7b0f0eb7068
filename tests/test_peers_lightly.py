"""lightly: its heads, as its benchmarks and examples name them, saved by Lightning's Trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peers import MARKS, assert_embeds, chain, package, resnet, save_by_lightning, scramble, vit
from torch import nn

pytestmark = MARKS

WIDTH = 512  # of the small ResNet


def heads() -> Any:
    return package("lightly.models.modules.heads")


def benchmark(**modules: nn.Module) -> Any:
    """A LightningModule with these attributes, as the benchmarks have them."""
    lightning = package("pytorch_lightning")
    benchmarking = package("lightly.utils.benchmarking")

    class Benchmark(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self, batch_size_per_device: int, num_classes: int) -> None:
            super().__init__()
            self.save_hyperparameters()
            for name, module in modules.items():
                self.add_module(name, module)
            self.online_classifier = benchmarking.OnlineLinearClassifier(WIDTH, num_classes)

    return Benchmark(batch_size_per_device=8, num_classes=10)


def ready(head: nn.Module, seed: int = 1) -> Any:
    scramble(head, seed)
    return head.eval()


ONE: dict[str, tuple[Callable[[Any], nn.Module], Callable[[Any], nn.Module] | None]] = {
    "simclr": (lambda h: h.SimCLRProjectionHead(WIDTH, 24, 12), None),
    "simclr, three layers": (lambda h: h.SimCLRProjectionHead(WIDTH, 24, 12, num_layers=3), None),
    "simclr, without norm": (lambda h: h.SimCLRProjectionHead(WIDTH, 24, 12, batch_norm=False), None),
    "barlow": (lambda h: h.BarlowTwinsProjectionHead(WIDTH, 24, 12), None),
    "vicreg": (lambda h: h.VICRegProjectionHead(WIDTH, 24, 12, num_layers=2), None),
    "simsiam": (
        lambda h: h.SimSiamProjectionHead(WIDTH, 24, 12),
        lambda h: h.SimSiamPredictionHead(12, 6, 12),
    ),
    "nnclr": (
        lambda h: h.NNCLRProjectionHead(WIDTH, 24, 12),
        lambda h: h.NNCLRPredictionHead(12, 24, 12),
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", ONE)
def test_one_branch(method: str, tmp_path: Path) -> None:
    make, predict = ONE[method]
    backbone, head = resnet(), ready(make(heads()))
    modules: dict[str, nn.Module] = {"backbone": backbone, "projection_head": head}
    expected = {
        ("encoder", "backbone"): chain(backbone),
        ("encoder", "projector"): chain(backbone, head),
    }
    if predict is not None:
        modules["prediction_head"] = ready(predict(heads()), 2)
        expected["encoder", "predictor"] = chain(backbone, head, modules["prediction_head"])
    if method == "nnclr":
        bank = package("lightly.models.modules.memory_bank")
        modules["memory_bank"] = bank.MemoryBankModule(size=(16, 12))
    path = save_by_lightning(benchmark(**modules), tmp_path / "a.ckpt")
    assert_embeds(path, "lightly", expected)


def test_swav(tmp_path: Path) -> None:
    """Prototypes, and a queue for each large crop, are no part of the embedding."""
    backbone, head = resnet(), ready(heads().SwaVProjectionHead(WIDTH, 24, 12))
    bank = package("lightly.models.modules.memory_bank").MemoryBankModule
    module = benchmark(
        backbone=backbone,
        projection_head=head,
        prototypes=heads().SwaVPrototypes(12, 30, n_steps_frozen_prototypes=1),
        criterion=package("lightly.loss").SwaVLoss(),
        queues=nn.ModuleList([bank(size=(16, 12)) for _ in range(2)]),
    )
    path = save_by_lightning(module, tmp_path / "a.ckpt")
    expected = {
        ("encoder", "backbone"): chain(backbone),
        ("encoder", "projector"): chain(backbone, head),
    }
    assert_embeds(path, "lightly", expected)


# Attributes of the second branch: in the benchmarks, and in the examples.
PAIRS = {
    "moco": ("lightly-moco", "key_backbone", "key_projection_head"),
    "moco example": ("lightly-moco-example", "backbone_momentum", "projection_head_momentum"),
    "byol": ("lightly-byol", "teacher_backbone", "teacher_projection_head"),
    "byol example": ("lightly-byol-example", "backbone_momentum", "projection_head_momentum"),
}


@pytest.mark.parametrize("method", PAIRS)
def test_student_and_moving_average(method: str, tmp_path: Path) -> None:
    format, other_backbone, other_head = PAIRS[method]
    byol = method.startswith("byol")
    make = heads().BYOLProjectionHead if byol else heads().MoCoProjectionHead
    backbone, head = resnet(), ready(make(WIDTH, 24, 12))
    second, second_head = resnet(3), ready(copy.deepcopy(head), 4)
    modules: dict[str, nn.Module] = {"backbone": backbone, "projection_head": head}
    modules |= {other_backbone: second, other_head: second_head}
    expected = {
        ("student", "backbone"): chain(backbone),
        ("student", "projector"): chain(backbone, head),
    }
    if byol:
        modules["prediction_head"] = ready(heads().BYOLPredictionHead(12, 24, 12), 5)
        expected["student", "predictor"] = chain(backbone, head, modules["prediction_head"])
    else:
        loss = package("lightly.loss")
        modules["criterion"] = loss.NTXentLoss(memory_bank_size=(16, 12))
    expected |= {
        ("teacher", "backbone"): chain(second),
        ("teacher", "projector"): chain(second, second_head),
    }
    path = save_by_lightning(benchmark(**modules), tmp_path / "a.ckpt")
    assert_embeds(path, format, expected)


DINO = {
    "benchmark": (
        "lightly-dino", ("backbone", "projection_head"),
        ("student_backbone", "student_projection_head"),
    ),
    "example": (
        "lightly-dino-example", ("teacher_backbone", "teacher_head"),
        ("student_backbone", "student_head"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", DINO)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_dino(layout: str, batch_norm: bool, tmp_path: Path) -> None:
    format, teacher, student = DINO[layout]
    modules: dict[str, nn.Module] = {"criterion": package("lightly.loss").DINOLoss(output_dim=40)}
    expected = {}
    for seed, (branch, names) in enumerate({"teacher": teacher, "student": student}.items()):
        backbone = resnet(seed)
        head = heads().DINOProjectionHead(WIDTH, 24, 16, 40, batch_norm=batch_norm)
        modules |= {names[0]: backbone, names[1]: ready(head, seed + 5)}
        expected[branch, "backbone"] = chain(backbone)
        expected[branch, "projector"] = chain(backbone, head.layers)
    path = save_by_lightning(benchmark(**modules), tmp_path / "a.ckpt")
    assert_embeds(path, format, expected)


def test_a_vit_in_its_wrapper(tmp_path: Path) -> None:
    """As in the benchmarks with ViTs: `vit` inside the backbone, beside a mask token."""
    wrapper = package("lightly.models.modules").MaskedVisionTransformerTIMM
    backbone = wrapper(vit())
    scramble(backbone)
    head = ready(heads().SimCLRProjectionHead(192, 24, 12))
    module = benchmark(backbone=backbone, projection_head=head)
    path = save_by_lightning(module, tmp_path / "a.ckpt")
    expected = {
        ("encoder", "backbone"): chain(backbone),
        ("encoder", "projector"): chain(backbone, head),
    }
    assert_embeds(path, "lightly", expected)
