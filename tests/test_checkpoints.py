"""Checkpoints of torchvision and timm embed as those libraries' own models do.

Every model gets random weights and random BatchNorm statistics, so that a block in train mode, a
weight left at its start or two tensors exchanged show in the embeddings.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from layouts import describe
from raising import raises
from safetensors.torch import save_file
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from torchvision.models import ResNet as TorchvisionResNet
from torchvision.models import VisionTransformer as TorchvisionViT
from torchvision.models import resnet as torchvision_resnet

from lidar_cli.checkpoints.families import EXPECTED, FAMILIES, KINDS
from lidar_cli.checkpoints.open import open_checkpoint, wrap_module
from lidar_cli.checkpoints.reading.read import read_checkpoint, sha256
from lidar_cli.checkpoints.shapes.spec import Assumed
from lidar_cli.errors import CheckpointError, NoWeights, SettingsError
from lidar_cli.explain.topics import explain

SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3}


def empty(make: Callable[..., nn.Module], *args: Any, **options: Any) -> nn.Module:
    """A model whose library does not spend time on weights that the test replaces."""
    with torch.device("meta"):
        model = make(*args, **options)
    return model.to_empty(device="cpu")


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode, each tensor random; small gains keep the embeddings near 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.dim() == 1:
            tensor.uniform_(0.2, 0.8, generator=generator)
        elif tensor.is_floating_point():
            fan_in = max(1, tensor[0].numel())
            tensor.normal_(0.0, fan_in**-0.5, generator=generator)
    return model.eval()


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def save(path: Path, tree: Any) -> Path:
    torch.save(tree, path)
    return path


def backbone_of(path: Path, pixels: Tensor, **options: Any) -> Tensor:
    loaded = open_checkpoint(path, **options)
    loaded.set_image_size(pixels.shape[-1])
    return loaded.embed(pixels, ["backbone"])["backbone"]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    expected = expected.detach()
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    assert expected.std() > 1e-3, "constant embeddings would hide every error"


def small_resnet(block: type[nn.Module], layers: list[int], **options: Any) -> nn.Module:
    return TorchvisionResNet(block, layers, num_classes=10, **options)


RESNETS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "resnet50": lambda: torchvision.models.resnet50(num_classes=10),
    "resnet 1-1-1-1": lambda: small_resnet(torchvision_resnet.BasicBlock, [1, 1, 1, 1]),
    "resnet 1-2-1-1 (inner width 128)": lambda: small_resnet(
        torchvision_resnet.Bottleneck, [1, 2, 1, 1], width_per_group=128
    ),
    "resnet 1-1-2-1 (groups 8, inner width 32)": lambda: small_resnet(
        torchvision_resnet.Bottleneck, [1, 1, 2, 1], groups=8, width_per_group=4
    ),
}

TIMM_RESNETS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: timm.create_model("resnet18", num_classes=10),
    "resnet34 (inner width 8)": lambda: TimmResNet(
        BasicBlock, (3, 4, 6, 3), channels=(8, 8, 12, 16), num_classes=10
    ),
    "resnet50 (inner width 8)": lambda: TimmResNet(
        Bottleneck, (3, 4, 6, 3), channels=(8, 16, 16, 32), num_classes=10
    ),
    # Every width scaled, the stem's too, as in the 'x2' models of VICReg and SwAV.
    "resnet26 (width 32)": lambda: TimmResNet(
        Bottleneck, (2, 2, 2, 2), channels=(32, 64, 128, 256), stem_width=32, num_classes=10
    ),
    "resnet18 (width 16)": lambda: TimmResNet(
        BasicBlock, (2, 2, 2, 2), channels=(16, 32, 64, 128), stem_width=16, num_classes=10
    ),
}


@pytest.mark.parametrize("arch", RESNETS)
def test_torchvision_resnets(arch: str, tmp_path: Path) -> None:
    model = randomised(empty(RESNETS[arch]))
    path = save(tmp_path / "a.pt", model.state_dict())
    description = open_checkpoint(path).description
    assert description.arch == arch
    assert description.ignored == ("fc",)
    assert description.image_size is None
    model.fc = nn.Identity()
    assert description.widths == {"backbone": model(images(64)).shape[1]}
    assert description.parameters == sum(p.numel() for p in model.parameters())
    assert_close(backbone_of(path, images(64)), model(images(64)))


@pytest.mark.parametrize("arch", TIMM_RESNETS)
def test_timm_resnets(arch: str, tmp_path: Path) -> None:
    model = randomised(empty(TIMM_RESNETS[arch]))
    if arch.endswith("(width 16)") or arch.endswith("(width 32)"):
        model = scaled(model, arch)
    path = save(tmp_path / "a.pt", model.state_dict())
    assert open_checkpoint(path).description.arch == arch
    expected = model.global_pool(model.forward_features(images(64)))
    assert_close(backbone_of(path, images(64)), expected)


def scaled(model: nn.Module, arch: str) -> nn.Module:
    """timm fixes the plain stem at 64 channels: give the model one as wide as its first stage."""
    width = int(arch.split()[-1].rstrip(")"))
    model.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
    model.bn1 = nn.BatchNorm2d(width)
    first = model.layer1[0]
    first.conv1 = nn.Conv2d(width, *first.conv1.weight.shape[:1], first.conv1.kernel_size,
                            padding=first.conv1.padding, bias=False)  # fmt: skip
    if first.downsample is not None:
        out = first.downsample[0].out_channels
        first.downsample[0] = nn.Conv2d(width, out, 1, bias=False)
    return randomised(model)


def test_cifar_stem_has_stride_one_and_no_max_pool(tmp_path: Path) -> None:
    model = empty(small_resnet, torchvision_resnet.BasicBlock, [1, 1, 1, 1])
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    model.fc = nn.Identity()
    path = save(tmp_path / "a.pt", randomised(model).state_dict())
    assert open_checkpoint(path).description.arch == "resnet 1-1-1-1 (3x3 stem)"
    assert_close(backbone_of(path, images(32)), model(images(32)))


VITS: dict[str, dict[str, Any]] = {
    "class token": {},
    "gap and norm": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "gap and fc_norm": {"class_token": False, "global_pool": "avg"},
    "class token and fc_norm": {"global_pool": "avg"},
    "layer scale": {"init_values": 1e-5},
    "no qkv bias": {"qkv_bias": False},
    "query and key norm": {"qk_norm": True, "num_heads": 6},  # the norm shows the heads
    "registers": {"reg_tokens": 4},
    "registers without position": {"reg_tokens": 4, "no_embed_class": True},
    "class token without position": {"no_embed_class": True},
    "other MLP": {"mlp_ratio": 48 / 11},
    "norm before": {"pre_norm": True},
}


@pytest.mark.parametrize("kind", VITS)
def test_timm_vits(kind: str, tmp_path: Path) -> None:
    norm = {"norm_layer": functools.partial(nn.LayerNorm, eps=1e-6)}
    model = randomised(TimmViT(**(SMALL_VIT | VITS[kind] | norm), num_classes=10))
    path = save(tmp_path / "a.pt", model.state_dict())
    description = open_checkpoint(path).description
    assert description.image_size == 32
    assert description.widths == {"backbone": 192}
    assert description.ignored == ("head",)
    assert_close(backbone_of(path, images(32)), model.forward_head(
        model.forward_features(images(32)), pre_logits=True))  # fmt: skip


def test_published_vit_tiny_by_its_shapes_and_by_its_name(tmp_path: Path) -> None:
    model = randomised(timm.create_model("vit_tiny_patch16_224", num_classes=10))
    path = save(tmp_path / "a.pt", model.state_dict())
    by_shapes = open_checkpoint(path)
    assert by_shapes.description.arch == "vit_tiny_patch16"
    assert by_shapes.description.image_size == 224
    assert by_shapes.description.assumed["heads"] == Assumed(3, "usual for width 192")
    model.reset_classifier(0)
    for loaded in (by_shapes, open_checkpoint(path, arch="vit_tiny_patch16_224")):
        assert_close(loaded.embed(images(224), ["backbone"])["backbone"], model(images(224)))


def small_torchvision_vit() -> nn.Module:
    vit = TorchvisionViT(
        image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=300
    )
    return randomised(vit)


def test_torchvision_vit(tmp_path: Path) -> None:
    model = small_torchvision_vit()
    path = save(tmp_path / "a.pt", {"state_dict": prefixed(model, "module.encoder.")})
    description = open_checkpoint(path).description
    assert description.format == "torchvision ViT state dict"
    assert (description.prefix, description.ignored) == (
        "module.encoder.",
        ("encoder.heads.head",),
    )
    model.heads = nn.Identity()
    assert_close(backbone_of(path, images(32)), model(images(32)))


def test_position_embedding_is_resampled_from_the_file_each_time(tmp_path: Path) -> None:
    model = randomised(TimmViT(**SMALL_VIT, num_classes=0))
    loaded = open_checkpoint(save(tmp_path / "a.pt", model.state_dict()))
    before = loaded.embed(images(32), ["backbone"])["backbone"]
    for size in (16, 64):  # 64 must not come from the blurred 16
        loaded.set_image_size(size)
    model.set_input_size((64, 64))
    assert_close(loaded.embed(images(64), ["backbone"])["backbone"], model(images(64)))
    loaded.set_image_size(32)
    assert_close(loaded.embed(images(32), ["backbone"])["backbone"], before)


def test_image_size_must_be_a_multiple_of_the_patch(tmp_path: Path) -> None:
    model = TimmViT(**SMALL_VIT, num_classes=0)
    loaded = open_checkpoint(save(tmp_path / "a.pt", model.state_dict()))
    with pytest.raises(CheckpointError, match=r"36 is not a multiple .* 8; use --image-size 32"):
        loaded.set_image_size(36)


def prefixed(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in model.state_dict().items()}


def tiny_resnet(seed: int = 0) -> nn.Module:
    model = TimmResNet(BasicBlock, (1, 1, 1, 1), channels=(8, 8, 12, 16), num_classes=0)
    return randomised(model, seed)


@pytest.mark.parametrize("container", ["", "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "backbone.", "module.backbone._orig_mod.", "module.encoder."],
)
def test_containers_and_prefixes(container: str, prefix: str, tmp_path: Path) -> None:
    model = tiny_resnet()
    tree: dict[str, Any] = prefixed(model, prefix)
    if container:
        optimizer = torch.optim.AdamW(model.parameters()).state_dict()
        tree = {"optimizer": optimizer, "epoch": 3, container: tree, "args": {"lr": 0.1}}
    path = save(tmp_path / "a.pt", tree)
    description = describe(path, read_checkpoint(path))
    assert (description.container, description.prefix) == (container, prefix)
    assert_close(backbone_of(path, images(32)), model(images(32)))


def test_nested_containers(tmp_path: Path) -> None:
    model = tiny_resnet()
    path = save(tmp_path / "a.pt", {"state_dict": {"model": prefixed(model, "module.")}})
    assert open_checkpoint(path).description.container == "state_dict.model"


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_file_formats_give_the_same_embeddings(kind: str, tmp_path: Path) -> None:
    model = tiny_resnet()
    path = tmp_path / "checkpoint"  # recognised by its first bytes, not by its name
    if kind == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    assert_close(backbone_of(path, images(32)), model(images(32)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_computed_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_resnet().to(dtype)
    path = save(tmp_path / "a.pt", model.state_dict())
    embeddings = backbone_of(path, images(32))
    assert embeddings.dtype == torch.float32
    assert_close(embeddings, model.float()(images(32)))


def test_missing_counters_of_batch_norm_are_no_loss(tmp_path: Path) -> None:
    model = tiny_resnet()
    old = {k: t for k, t in model.state_dict().items() if "num_batches" not in k}
    assert len(old) < len(model.state_dict())
    assert_close(backbone_of(save(tmp_path / "a.pt", old), images(32)), model(images(32)))


def test_weights_are_copied_out_of_the_file(tmp_path: Path) -> None:
    model = tiny_resnet()
    path = save(tmp_path / "a.pt", model.state_dict())
    loaded = open_checkpoint(path)
    with path.open("r+b") as file:  # a mapped tensor would now be zero
        file.write(bytes(path.stat().st_size))
    assert_close(loaded.embed(images(32), ["backbone"])["backbone"], model(images(32)))


def test_modules_are_frozen_and_in_eval_mode(tmp_path: Path) -> None:
    tree = prefixed(tiny_resnet(), "backbone.") | {"projector.weight": torch.ones(5, 16)}
    loaded = open_checkpoint(save(tmp_path / "a.pt", tree))
    assert set(loaded.modules) == {"backbone", "projector"}
    for module in loaded.modules.values():
        assert not any(part.training for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())


# What is missing, left over or wrong is named.


def change(tree: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    """A copy with tensors replaced, or removed where None; '__' in a name stands for a dot."""
    tree = dict(tree)
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del tree[name]
        else:
            tree[name] = tensor
    return tree


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bn1__running_mean": None}, r"bn1\.running_mean missing of \d+ tensors.*--arch"),
        ({"layer2__0__conv2__weight": None}, r"layer2\.0 are .*missing"),
        ({"layer3__0__downsample__0__weight": None}, r"layer3\.0\.downsample\.0\.weight is mis"),
        ({"extra__weight": torch.ones(2, 2)}, r"1 entries .* extra\.weight; expected .*--model"),
        ({"other__0__weight": torch.ones(2, 2), "a": torch.ones(2), "b": torch.ones(2),
          "c": torch.ones(2)}, r"4 entries .* other\.0\.weight, a, b and 1 more"),
        ({"bn1__weight": torch.ones(3)}, r"bn1\.weight has shape \[3\], expected \[64\]"),
        ({"conv1__weight": torch.ones(64, 3, 5, 5)}, r"stem .* is \[64, 3, 5, 5\]; expected"),
        ({"bn1__bias": torch.full((64,), float("nan"))}, r"bn1\.bias holds NaN or infinite"),
        ({"bn1__bias": torch.ones(64, dtype=torch.int8)}, r"bn1\.bias has type int8"),
        ({"a\nb": torch.ones(1)}, r"not understood: 'a\\nb'; expected"),
        ({"bn1__bias": torch.ones(64).to_sparse()}, r"bn1\.bias is a sparse"),
        ({"module__bn1__bias": torch.ones(64)}, r"bn1\.bias, module\.bn1\.bias are one name"),
    ],
)  # fmt: skip
def test_wrong_tensors_are_named(
    changes: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    tree = change(tiny_resnet().state_dict(), **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(save(tmp_path / "a.pt", tree))
    assert "\n" not in str(caught.value)


def test_every_tensor_matters(tmp_path: Path) -> None:
    """No tensor of the file can be left out, or changed without changing the embeddings."""
    tree = prefixed(tiny_resnet(), "backbone.")
    tree |= prefixed(randomised(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), 1),
                     "projector.")  # fmt: skip
    path = tmp_path / "a.pt"
    before = open_checkpoint(save(path, tree)).embed(images(32), ["projector"])["projector"]
    for name, tensor in tree.items():
        if name.endswith("num_batches_tracked"):
            continue
        rest = {key: value for key, value in tree.items() if key != name}
        if name not in ("projector.0.bias", "projector.2.bias", "projector.2.weight"):
            with pytest.raises(CheckpointError):
                open_checkpoint(save(path, rest))
        changed = rest | {name: tensor * 1.5}
        after = open_checkpoint(save(path, changed)).embed(images(32), ["projector"])["projector"]
        assert not torch.equal(before, after), name


def test_two_backbones_are_ambiguous_unless_one_has_a_usual_name(tmp_path: Path) -> None:
    tree = prefixed(tiny_resnet(), "left.") | prefixed(tiny_resnet(1), "right.")
    message = r"2 backbones, under .* left\., right\.; expected one; choose it: --prefix left\.$"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(save(tmp_path / "a.pt", tree))


def test_unknown_width_asks_for_the_architecture(tmp_path: Path) -> None:
    model = TimmViT(**(SMALL_VIT | {"embed_dim": 120}), num_classes=0)
    with pytest.raises(CheckpointError, match=r"width 120.*heads.*--arch"):
        open_checkpoint(save(tmp_path / "a.pt", model.state_dict()))


def test_unknown_names_say_what_is_expected(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", nn.Linear(2, 2).state_dict())
    with pytest.raises(CheckpointError, match=r"weight, bias form no known backbone.*--model") as e:
        open_checkpoint(path)
    assert f"; expected {EXPECTED}; " in str(e.value)


def test_the_kinds_that_are_expected_are_all_that_are_read() -> None:
    kinds = re.split(", | or ", KINDS)
    vits = ("DINO", "V-JEPA", "CAPI", "CLIP", "ViT")  # by the names of their authors
    for family in FAMILIES.values():
        assert any(kind.lower() in family.title.lower() for kind in (*kinds, *vits)), family.title
    for kind in kinds:
        assert any(kind in family.title for family in FAMILIES.values()), kind
    assert EXPECTED in " ".join(explain("systems").split())


# Names that the user gives.


def test_arch_takes_models_that_shapes_do_not_determine(tmp_path: Path) -> None:
    model = randomised(timm.create_model("convnext_atto", num_classes=10))
    path = save(tmp_path / "a.pt", {"state_dict": prefixed(model, "module.backbone.")})
    loaded = open_checkpoint(path, arch="convnext_atto")
    assert loaded.description.prefix == "module.backbone."
    assert loaded.description.ignored == ("backbone.head.fc",)
    model.reset_classifier(0)
    assert_close(loaded.embed(images(64), ["backbone"])["backbone"], model(images(64)))


def test_arch_takes_the_image_size_from_the_file(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64)
    path = save(tmp_path / "a.pt", randomised(model).state_dict())
    loaded = open_checkpoint(path, arch="vit_tiny_patch16_224")
    assert loaded.description.image_size == 64
    assert_close(loaded.embed(images(64), ["backbone"])["backbone"], model(images(64)))
    loaded.set_image_size(96)
    model.set_input_size((96, 96))
    assert_close(loaded.embed(images(96), ["backbone"])["backbone"], model(images(96)))
    with raises(CheckpointError, "image-size") as raised:
        loaded.set_image_size(90)
    raised.match(r"of 96 pixels and not of 90")


def test_arch_uses_the_conversion_that_timm_has(tmp_path: Path) -> None:
    """ConvNeXt's original names: the same tensors under other keys."""
    model = randomised(timm.create_model("convnext_atto", num_classes=0))
    original = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("stem.", "downsample_layers.0.").replace("head.norm.", "norm.")
        name = name.replace(".conv_dw.", ".dwconv.").replace(".mlp.fc", ".pwconv")
        for i in range(4):
            name = name.replace(f"stages.{i}.downsample.", f"downsample_layers.{i}.")
            name = name.replace(f"stages.{i}.blocks.", f"stages.{i}.")
        original[name] = tensor
    assert original.keys() != model.state_dict().keys()
    path = save(tmp_path / "a.pt", original)
    assert_close(backbone_of(path, images(64), arch="convnext_atto"), model(images(64)))


def test_arch_with_other_weights_names_what_is_missing(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", tiny_resnet().state_dict())
    with pytest.raises(CheckpointError, match=r"leave out --arch resnet18, .*layer1\.1\.conv"):
        open_checkpoint(path, arch="resnet18")


def test_unknown_arch_names_the_nearest(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", tiny_resnet().state_dict())
    with pytest.raises(SettingsError, match=r"resnet5o: .* did you mean resnet50\?"):
        open_checkpoint(path, arch="resnet5o")
    with raises(SettingsError, "no-such-model"):
        open_checkpoint(path, arch="hf-hub:someone/something")


OWN_CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, size=None):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4, 3))
        self.norm = nn.BatchNorm1d(4)
        if size:
            self.image_size = size

    def forward(self, x):
        if hasattr(self, "image_size"):
            assert x.shape[-1] == self.image_size
        return self.norm(x.mean((2, 3)) @ self.w.T)

class Layers(Net):
    def forward(self, x):
        rows = super().forward(x)
        return {"backbone": rows, "predictor": rows[:, :2] * 2}

def sized():
    return Net(17)

def broken():
    raise RuntimeError("no\\nluck")

def leaves():
    raise SystemExit(3)

def nothing():
    return 3

class Tokens(Net):
    def forward(self, x):
        return x.mean(3)

class Pair(Net):
    def forward(self, x):
        return super().forward(x), x.mean((2, 3))

class Integers(Net):
    def forward(self, x):
        return x.mean((2, 3)).long()

class Sparse(Net):
    def forward(self, x):
        return x.mean((2, 3)).to_sparse()

class Empty(Net):
    def forward(self, x):
        return x.mean((2, 3))[:, :0]

class Hidden(Net):
    def forward(self, x):
        return {"last_hidden_state": x.mean(3).transpose(1, 2), "pooler_output": x.mean((2, 3))}

class Numbered(Net):
    def forward(self, x):
        return {0: x.mean((2, 3))}

class Nested(Net):
    def forward(self, x):
        return {"head/out": x.mean((2, 3))}
"""


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of Net, in a working directory that holds its code."""
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_code", raising=False)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    tree = {
        "module.w": torch.arange(12.0).view(4, 3),
        "module.norm.weight": torch.ones(4),
        "module.norm.bias": torch.full((4,), 0.5),
        "module.norm.running_mean": torch.ones(4),
        "module.norm.running_var": torch.full((4,), 4.0),
        "module.norm.num_batches_tracked": torch.tensor(1),
    }
    return save(tmp_path / "a.pt", {"epoch": 1, "model": tree})


def own_embedding(pixels: Tensor) -> Tensor:
    """What Net computes in eval mode with the weights of the fixture."""
    rows = pixels.mean((2, 3)) @ torch.arange(12.0).view(4, 3).T
    return (rows - 1) / (4.0 + 1e-5) ** 0.5 + 0.5


def test_own_module(model_file: Path) -> None:
    loaded = open_checkpoint(model_file, model="own_code:Net")
    assert loaded.description.widths == {"backbone": 4}
    assert (loaded.description.container, loaded.description.image_size) == ("model", None)
    assert_close(loaded.embed(images(20), ["backbone"])["backbone"], own_embedding(images(20)))


def test_own_module_with_layers_of_its_own(model_file: Path) -> None:
    loaded = open_checkpoint(model_file, model="own_code:Layers")
    assert loaded.description.widths == {"backbone": 4, "predictor": 2}
    embeddings = loaded.embed(images(20), ["predictor"])
    assert list(embeddings) == ["predictor"]
    assert_close(embeddings["predictor"], own_embedding(images(20))[:, :2] * 2)


def test_own_module_may_name_its_image_size(model_file: Path) -> None:
    assert open_checkpoint(model_file, model="own_code:sized").description.image_size == 17


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("own_code", "expected package.module:factory"),
        ("not_there:f", "ModuleNotFoundError: No module named 'not_there'"),
        ("own_code:missing", "AttributeError: .*missing"),
        ("own_code:broken", "RuntimeError: no$"),
        ("own_code:leaves", "SystemExit: 3"),
        ("own_code:nothing", "returned a int; expected a torch.nn.Module"),
        ("own_code:Tokens", r"gave \[2, 3, 224\] for backbone; expected .* \[2, width\]"),
        ("own_code:Pair", "gave tuple for backbone; expected floating-point"),
        ("own_code:Integers", r"gave int64 \[2, 3\] for backbone; expected floating-point"),
        ("own_code:Sparse", r"gave sparse_coo \[2, 3\] for backbone"),
        ("own_code:Empty", r"gave \[2, 0\] for backbone"),
        ("own_code:Hidden", r"gave \[2, 224, 3\] for last_hidden_state; expected"),
        ("own_code:Numbered", "gave a dict with the key '0'; expected names"),
        ("own_code:Nested", "gave a dict with the key 'head/out'; expected names"),
    ],
)
def test_failures_of_own_code_are_one_line(model_file: Path, target: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        open_checkpoint(model_file, model=target)
    assert "\n" not in str(caught.value)


def test_own_module_must_have_the_names_of_the_file(model_file: Path) -> None:
    tree = torch.load(model_file, weights_only=True)
    tree["model"]["module.surplus"] = torch.ones(1)
    del tree["model"]["module.w"]
    with pytest.raises(CheckpointError, match=r"lacks w and has surplus, unlike the --model"):
        open_checkpoint(save(model_file, tree), model="own_code:Net")


def test_own_module_refuses_other_shapes_and_broken_numbers(model_file: Path) -> None:
    tree = torch.load(model_file, weights_only=True)
    for bad, message in ((torch.ones(4, 5), r"w has shape \[4, 5\]"),
                         (torch.full((4, 3), float("inf")), "w holds NaN")):  # fmt: skip
        tree["model"]["module.w"] = bad
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(save(model_file, tree), model="own_code:Net")


def test_own_module_for_an_optimizer_state_is_no_weights(model_file: Path) -> None:
    with pytest.raises(NoWeights):
        open_checkpoint(save(model_file, {"state": {}, "param_groups": []}), model="own_code:Net")


def test_module_from_memory_is_wrapped_in_eval_mode() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5)).train()
    loaded = wrap_module(model)
    assert loaded.description.widths == {"backbone": 3}
    assert_close(loaded.embed(images(8), ["backbone"])["backbone"], images(8).mean((2, 3)))


def test_arch_and_model_exclude_each_other(tmp_path: Path) -> None:
    with raises(SettingsError, "arch-and-model") as raised:
        open_checkpoint(tmp_path / "a.pt", arch="resnet18", model="a:b")
    raised.match("give one of them")


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # the example of FIPS 180-2
    assert sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")
