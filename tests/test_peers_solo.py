"""solo-learn: its own methods, built from their arguments and saved by Lightning's Trainer.

The package index holds a release of its first layout alone, whose backbone is called `encoder`.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import MARKS, assert_embeds, chain, package, save_by_lightning, scramble

from lidar_cli.checkpoints.reading.read import read_contents

pytestmark = MARKS

SHARED = {
    "num_classes": 10, "max_epochs": 2, "batch_size": 8, "optimizer": "sgd", "lars": False,
    "lr": 0.1, "weight_decay": 1e-4, "classifier_lr": 0.1, "exclude_bias_n_norm": False,
    "accumulate_grad_batches": 1, "extra_optimizer_args": {}, "scheduler": "cosine",
    "min_lr": 0.0, "warmup_start_lr": 0.0, "warmup_epochs": 1, "num_large_crops": 2,
    "num_small_crops": 0,
}  # fmt: skip
MOMENTUM = {"base_tau_momentum": 0.99, "final_tau_momentum": 1.0, "momentum_classifier": True}
HEAD = {"proj_hidden_dim": 24, "proj_output_dim": 12}
METHODS: dict[str, dict[str, Any]] = {
    "simclr": HEAD | {"temperature": 0.1},
    "barlow_twins": HEAD | {"lamb": 0.1, "scale_loss": 0.1},
    "vicreg": HEAD | {"sim_loss_weight": 1.0, "var_loss_weight": 1.0, "cov_loss_weight": 1.0},
    "simsiam": HEAD | {"pred_hidden_dim": 6},
    "nnsiam": HEAD | {"pred_hidden_dim": 6, "queue_size": 16},
    "nnclr": HEAD | {"pred_hidden_dim": 6, "temperature": 0.1, "queue_size": 16},
    "wmse": HEAD | {"whitening_iters": 1, "whitening_size": 8, "whitening_eps": 0.0},
    "swav": HEAD | {
        "num_prototypes": 30, "sk_iters": 3, "sk_epsilon": 0.05, "temperature": 0.1,
        "queue_size": 16, "epoch_queue_starts": 15, "freeze_prototypes_epochs": 1,
    },
    "deepclusterv2": HEAD | {"num_prototypes": [30, 30, 30], "temperature": 0.1, "kmeans_iters": 1},
    "byol": HEAD | MOMENTUM | {"pred_hidden_dim": 24},
    "nnbyol": HEAD | MOMENTUM | {"pred_hidden_dim": 24, "queue_size": 16},
    "mocov2plus": HEAD | MOMENTUM | {"temperature": 0.1, "queue_size": 16},
    "ressl": HEAD | MOMENTUM | {"temperature_q": 0.1, "temperature_k": 0.1, "queue_size": 16},
}  # fmt: skip
DINO = HEAD | MOMENTUM | {
    "num_prototypes": 40, "norm_last_layer": True, "clip_grad": 0, "freeze_last_layer": 1,
    "student_temperature": 0.1, "teacher_temperature": 0.07, "warmup_teacher_temperature": 0.04,
    "warmup_teacher_temperature_epochs": 1,
}  # fmt: skip
ENCODERS = {  # name -> its arguments, image size
    "resnet18": ({}, 64),
    "resnet18 for CIFAR": ({"cifar": True}, 32),
    "vit_tiny": ({"patch_size": 16}, 224),
}


def methods(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package's methods. It imports one schedule from a package that no longer imports."""
    schedule = types.ModuleType("pl_bolts.optimizers.lr_scheduler")
    schedule.LinearWarmupCosineAnnealingLR = torch.optim.lr_scheduler.CosineAnnealingLR  # type: ignore[attr-defined]
    for name in ("pl_bolts", "pl_bolts.optimizers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, schedule.__name__, schedule)
    return package("solo.methods", of="solo-learn")


def saved(
    monkeypatch: pytest.MonkeyPatch, method: str, encoder: str, arguments: Any, path: Path
) -> tuple[Any, Path]:
    """A method with random weights, and its checkpoint."""
    make = methods(monkeypatch).METHODS[method]
    backbone_args = dict(ENCODERS[encoder][0])
    module = make(encoder=encoder.split()[0], backbone_args=backbone_args, **SHARED | arguments)
    scramble(module)
    return module.eval(), save_by_lightning(
        module, path / f"{method}-ep=1.ckpt", with_optimizer=True
    )


@pytest.mark.parametrize("encoder", ["resnet18", "resnet18 for CIFAR"])
@pytest.mark.parametrize("method", METHODS)
def test_methods(
    method: str, encoder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module, path = saved(monkeypatch, method, encoder, METHODS[method], tmp_path)
    expected = {
        ("student", "backbone"): chain(module.encoder),
        ("student", "projector"): chain(module.encoder, module.projector),
    }
    if hasattr(module, "predictor"):
        expected["student", "predictor"] = chain(module.encoder, module.projector, module.predictor)
    if hasattr(module, "momentum_encoder"):
        expected["teacher", "backbone"] = chain(module.momentum_encoder)
        expected["teacher", "projector"] = chain(module.momentum_encoder, module.momentum_projector)
    assert_embeds(path, "solo-learn-old", expected, ENCODERS[encoder][1])
    if method in ("simsiam", "nnsiam"):  # a schedule of theirs holds a function of theirs
        names = read_contents(path).stand_ins
        assert {"functools.partial", "solo.methods.base.static_lr"} <= set(names)


@pytest.mark.parametrize("encoder", ["resnet18", "vit_tiny"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_dino(
    encoder: str, batch_norm: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = DINO | {"use_bn_in_head": batch_norm}
    module, path = saved(monkeypatch, "dino", encoder, arguments, tmp_path)
    expected = {
        ("teacher", "backbone"): chain(module.momentum_encoder),
        ("teacher", "projector"): chain(module.momentum_encoder, module.momentum_head.mlp),
        ("student", "backbone"): chain(module.encoder),
        ("student", "projector"): chain(module.encoder, module.head.mlp),
    }
    assert_embeds(path, "solo-learn-old-dino", expected, ENCODERS[encoder][1])


def test_a_vit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module, path = saved(monkeypatch, "simclr", "vit_tiny", METHODS["simclr"], tmp_path)
    expected = {
        ("student", "backbone"): chain(module.encoder),
        ("student", "projector"): chain(module.encoder, module.projector),
    }
    assert_embeds(path, "solo-learn-old", expected, 224)
