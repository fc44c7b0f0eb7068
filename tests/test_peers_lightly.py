"""lightly: its heads, as its benchmarks and examples name them, saved by Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peers import MARKS, assert_embeds, chain, package, resnet, save_by_lightning, scramble, vit
from torch import Tensor, nn

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


Make = Callable[[Any], nn.Module]
ONE: dict[str, tuple[Make, Make | None]] = {
    "simclr": (lambda h: h.SimCLRProjectionHead(WIDTH, 24, 12), None),
    "three layers": (lambda h: h.SimCLRProjectionHead(WIDTH, 24, 12, num_layers=3), None),
    "without norm": (lambda h: h.SimCLRProjectionHead(WIDTH, 24, 12, batch_norm=False), None),
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
}


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


# The attributes of student and teacher in benchmarks and examples, first those evaluated.
PLAIN = ("backbone", "projection_head")
KEY = ("key_backbone", "key_projection_head")
QUERY = ("query_backbone", "query_projection_head")
STUDENT = ("student_backbone", "student_projection_head")
TEACHER = ("teacher_backbone", "teacher_projection_head")
MOMENTUM = ("backbone_momentum", "projection_head_momentum")
PAIRS = {
    "lightly-moco": {"student": PLAIN, "teacher": KEY},
    "lightly-moco-query": {"teacher": PLAIN, "student": QUERY},
    "lightly-moco-example": {"student": PLAIN, "teacher": MOMENTUM},
    "lightly-byol": {"student": PLAIN, "teacher": TEACHER},
    "lightly-byol-example": {"student": PLAIN, "teacher": MOMENTUM},
    "lightly-tico": {"teacher": PLAIN, "student": STUDENT},
}


@pytest.mark.parametrize("in_sequence", [False, True])
@pytest.mark.parametrize("format", PAIRS)
def test_student_and_moving_average(format: str, in_sequence: bool, tmp_path: Path) -> None:
    """in_sequence: the backbone as the children of a ResNet, as the examples have it."""
    byol = "byol" in format
    make = heads().BYOLProjectionHead if byol else heads().MoCoProjectionHead
    modules: dict[str, nn.Module] = {}
    expected = {}
    for seed, (branch, names) in enumerate(PAIRS[format].items()):
        backbone: nn.Module = resnet(seed)
        if in_sequence:
            backbone = nn.Sequential(*list(backbone.children())[:-1])
        head = ready(make(WIDTH, 24, 12), seed + 5)
        modules |= {names[0]: backbone, names[1]: head}
        expected[branch, "backbone"] = chain(backbone, flat)
        expected[branch, "projector"] = chain(backbone, flat, head)
        if byol and branch == "student":
            modules["prediction_head"] = ready(heads().BYOLPredictionHead(12, 24, 12), 8)
            predictor = chain(backbone, flat, head, modules["prediction_head"])
            expected["student", "predictor"] = predictor
    if "moco" in format:
        loss = package("lightly.loss")
        modules["criterion"] = loss.NTXentLoss(memory_bank_size=(16, 12))
    path = save_by_lightning(benchmark(**modules), tmp_path / "a.ckpt")
    assert_embeds(path, format, expected)


def flat(x: Tensor) -> Tensor:
    return x.flatten(start_dim=1)


DINO = {
    "lightly-dino": {"teacher": PLAIN, "student": STUDENT},
    "lightly-dino-example": {
        "teacher": ("teacher_backbone", "teacher_head"),
        "student": ("student_backbone", "student_head"),
    },
    "lightly-dinov2": {
        "teacher": ("teacher_backbone", "teacher_dino_head"),
        "student": ("student_backbone", "student_dino_head"),
    },
}


@pytest.mark.parametrize("format", DINO)
@pytest.mark.parametrize("trunk", ["resnet", "vit"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_dino(format: str, trunk: str, batch_norm: bool, tmp_path: Path) -> None:
    modules: dict[str, nn.Module] = {"criterion": package("lightly.loss").DINOLoss(output_dim=40)}
    expected = {}
    for seed, (branch, names) in enumerate(DINO[format].items()):
        backbone = resnet(seed) if trunk == "resnet" else wrapped_vit(seed)
        width = WIDTH if trunk == "resnet" else 192
        head = heads().DINOProjectionHead(width, 24, 16, 40, batch_norm=batch_norm)
        ready(head, seed + 5)
        modules |= {names[0]: backbone, names[1]: head}
        if format == "lightly-dinov2":  # a wrapper, and the same head again for the patches
            modules[names[1]] = nn.ModuleDict({"_dino_head": head})
            modules[f"{branch}_ibot_head"] = modules[names[1]]
        expected[branch, "backbone"] = chain(backbone)
        expected[branch, "projector"] = chain(backbone, head.layers)
    path = save_by_lightning(benchmark(**modules), tmp_path / "a.ckpt")
    assert_embeds(path, format, expected)


def wrapped_vit(seed: int = 0) -> Any:
    """As in the benchmarks with ViTs: timm's, with its classifier, beside a mask token."""
    options = {"num_classes": 10, "init_values": 0.1, "dynamic_img_size": True}
    backbone = package("lightly.models.modules").MaskedVisionTransformerTIMM(vit(**options))
    scramble(backbone, seed)
    return backbone


def test_a_vit_in_its_wrapper(tmp_path: Path) -> None:
    backbone, head = wrapped_vit(), ready(heads().SimCLRProjectionHead(192, 24, 12))
    module = benchmark(backbone=backbone, projection_head=head)
    path = save_by_lightning(module, tmp_path / "a.ckpt")
    expected = {
        ("encoder", "backbone"): chain(backbone),
        ("encoder", "projector"): chain(backbone, head),
    }
    assert_embeds(path, "lightly", expected)
