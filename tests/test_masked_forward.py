"""Models under masks: image by image and view by view, against loops written out."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import literal
import numpy as np
import pytest
import torch
from fake_cuda import embed_on_fake_cuda
from literal import assert_close, linear, normed, random_weights
from make import checkpoint, image_folder, lidar, lidar_here
from raising import raises
from torch import Tensor

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.data.open import open_samples
from lidar_cli.errors import CheckpointError
from lidar_cli.extraction.run import extract_checkpoint
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import ExtractSettings
from lidar_cli.views.masks import Mask, draw_mask, group_by_length
from lidar_cli.views.methods import find_recipe
from lidar_cli.views.pipeline import Views
from lidar_cli.views.recipes import Blocks, InverseBlocks, MultiBlock

WIDTH, INNER, HEADS, PATCH, GRID, DEPTH = 192, 24, 3, 4, 12, 2
SIZE = PATCH * GRID
B, Q = 3, 4

Weights = dict[str, Tensor]
# One image [3, S, S]; patches that are seen; how often the loss compares each; blocks of targets.
OneView = Callable[[Tensor, list[int], list[float], list[list[int]]], Tensor]


def vit_shapes(prefix: str, width: int = WIDTH) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        f"{prefix}patch_embed.proj.bias": (width,),
        f"{prefix}norm.weight": (width,),
        f"{prefix}norm.bias": (width,),
    }
    for i in range(DEPTH):
        shapes |= literal.block_shapes(f"{prefix}blocks.{i}", width, 2 * width)
    return shapes


def ijepa_weights() -> Weights:
    p = "predictor."
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.pos_embed": (1, GRID**2, WIDTH),
        "target_encoder.pos_embed": (1, GRID**2, WIDTH),
        f"{p}predictor_embed.weight": (INNER, WIDTH),
        f"{p}predictor_embed.bias": (INNER,),
        f"{p}mask_token": (1, 1, INNER),
        f"{p}predictor_pos_embed": (1, GRID**2, INNER),
        f"{p}predictor_norm.weight": (INNER,),
        f"{p}predictor_norm.bias": (INNER,),
        f"{p}predictor_proj.weight": (WIDTH, INNER),
        f"{p}predictor_proj.bias": (WIDTH,),
    }
    shapes |= vit_shapes("encoder.") | vit_shapes("target_encoder.")
    for i in range(DEPTH):
        shapes |= literal.block_shapes(f"{p}predictor_blocks.{i}", INNER, 2 * INNER)
    return random_weights(shapes)


def save_ijepa(path: Path) -> Path:
    weights = ijepa_weights()
    torch.save(
        {
            part: {
                f"module.{name.removeprefix(f'{part}.')}": tensor
                for name, tensor in weights.items()
                if name.startswith(f"{part}.")
            }
            for part in ("encoder", "predictor", "target_encoder")
        }
        | {"opt": {}, "epoch": 3},
        path,
    )
    return path


def vit_tokens(w: Weights, prefix: str, image: Tensor, seen: list[int]) -> Tensor:
    """[K, width] of one image."""
    proj = f"{prefix}patch_embed.proj"
    x = literal.patches(image[None], w[f"{proj}.weight"], w[f"{proj}.bias"])
    x = (x + w[f"{prefix}pos_embed"])[:, seen]
    for i in range(DEPTH):
        x = literal.block(x, w, f"{prefix}blocks.{i}", HEADS)
    return normed(x, w, f"{prefix}norm", 1e-6)[0]


def jepa_student(image: Tensor, seen: list[int], *_: Any) -> Tensor:
    return vit_tokens(ijepa_weights(), "encoder.", image, seen).mean(0)


def jepa_teacher(
    image: Tensor, seen: list[int], compared: list[float], targets: list[list[int]]
) -> Tensor:
    tokens = vit_tokens(ijepa_weights(), "target_encoder.", image, list(range(GRID**2)))
    picked = [tokens[k] for block in targets for k in block]
    return torch.stack(picked).mean(0)


def jepa_predictor(
    image: Tensor, seen: list[int], compared: list[float], targets: list[list[int]]
) -> Tensor:
    w, p = ijepa_weights(), "predictor."
    z = linear(vit_tokens(w, "encoder.", image, seen), w, f"{p}predictor_embed")
    positions = w[f"{p}predictor_pos_embed"][0]
    predicted = []
    for block in targets:  # each target block on its own, as in training
        rows = [row + positions[k] for row, k in zip(z, seen, strict=True)]
        rows += [w[f"{p}mask_token"][0, 0] + positions[k] for k in block]
        x = torch.stack(rows)[None]
        for i in range(DEPTH):
            x = literal.block(x, w, f"{p}predictor_blocks.{i}", HEADS)
        x = normed(x, w, f"{p}predictor_norm", 1e-6)[0, len(seen) :]
        predicted += list(linear(x, w, f"{p}predictor_proj"))
    return torch.stack(predicted).mean(0)


def beit_weights() -> Weights:
    """data2vec's layout with absolute positions, which spare the table, and its lm_head."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "mask_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + GRID**2, WIDTH),
        "lm_head.weight": (WIDTH, WIDTH),
        "lm_head.bias": (WIDTH,),
    }
    for name, shape in vit_shapes("").items():
        if name.endswith("attn.qkv.bias"):
            shapes |= {name.replace("qkv.bias", f"{part}_bias"): (WIDTH,) for part in "qv"}
        else:
            shapes[name] = shape
    for i in range(DEPTH):
        shapes |= {f"blocks.{i}.gamma_1": (WIDTH,), f"blocks.{i}.gamma_2": (WIDTH,)}
    return random_weights(shapes)


def beit_tokens(w: Weights, image: Tensor, masked: list[bool]) -> Tensor:
    """Patch tokens [N, width] of one image after the norm."""
    x = literal.patches(image[None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"])[0]
    x = torch.stack([w["mask_token"][0, 0] if hide else row
                     for row, hide in zip(x, masked, strict=True)])  # fmt: skip
    x = (torch.cat([w["cls_token"][0], x]) + w["pos_embed"][0])[None]
    for i in range(DEPTH):
        name = f"blocks.{i}"
        y = normed(x, w, f"{name}.norm1", 1e-6)
        q, k, v = (y @ w[f"{name}.attn.qkv.weight"].T).chunk(3, dim=-1)
        q, v = q + w[f"{name}.attn.q_bias"], v + w[f"{name}.attn.v_bias"]
        attended = linear(literal.attend(q, k, v, HEADS), w, f"{name}.attn.proj")
        x = x + w[f"{name}.gamma_1"] * attended
        x = x + w[f"{name}.gamma_2"] * literal.mlp(
            normed(x, w, f"{name}.norm2", 1e-6), w, f"{name}.mlp"
        )
    return normed(x, w, "norm", 1e-6)[0, 1:]


def beit_student(image: Tensor, seen: list[int], compared: list[float], *_: Any) -> Tensor:
    tokens = beit_tokens(beit_weights(), image, [count > 0 for count in compared])
    return torch.stack([t for t, count in zip(tokens, compared, strict=True) if count]).mean(0)


def beit_head(image: Tensor, seen: list[int], compared: list[float], *_: Any) -> Tensor:
    """lm_head token by token, as in training, and then the mean."""
    w = beit_weights()
    tokens = linear(beit_tokens(w, image, [count > 0 for count in compared]), w, "lm_head")
    return torch.stack([t for t, count in zip(tokens, compared, strict=True) if count]).mean(0)


def beit_teacher(image: Tensor, seen: list[int], compared: list[float], *_: Any) -> Tensor:
    tokens = beit_tokens(beit_weights(), image, [False] * GRID**2)
    return torch.stack([t for t, count in zip(tokens, compared, strict=True) if count]).mean(0)


IMAGE = "modality_encoders.IMAGE"


def d2v2_weights() -> Weights:
    shapes: dict[str, tuple[int, ...]] = {
        f"{IMAGE}.local_encoder.proj.weight": (WIDTH, 3, PATCH, PATCH),
        f"{IMAGE}.local_encoder.proj.bias": (WIDTH,),
        f"{IMAGE}.fixed_positional_encoder.positions": (1, GRID**2, WIDTH),
        f"{IMAGE}.extra_tokens": (1, 1, WIDTH),
        f"{IMAGE}.context_encoder.norm.weight": (WIDTH,),
        f"{IMAGE}.context_encoder.norm.bias": (WIDTH,),
    }
    for name in (f"{IMAGE}.context_encoder.blocks.0", "blocks.0"):
        shapes |= literal.block_shapes(name, WIDTH, 2 * WIDTH)
    return random_weights(shapes)


def d2v2_tokens(image: Tensor, seen: list[int]) -> Tensor:
    w = d2v2_weights()
    proj = f"{IMAGE}.local_encoder.proj"
    x = literal.patches(image[None], w[f"{proj}.weight"], w[f"{proj}.bias"])
    x = (x + w[f"{IMAGE}.fixed_positional_encoder.positions"])[:, seen]
    x = torch.cat([w[f"{IMAGE}.extra_tokens"], x], dim=1)
    x = normed(x, w, f"{IMAGE}.context_encoder.norm", 1e-6)
    for name in (f"{IMAGE}.context_encoder.blocks.0", "blocks.0"):
        x = normed(x + literal.fused_attention(x, w, f"{name}.attn", HEADS), w, f"{name}.norm1",
                   1e-6)  # fmt: skip
        x = normed(x + literal.mlp(x, w, f"{name}.mlp"), w, f"{name}.norm2", 1e-6)
    return x[0, 1:]


def d2v2_student(image: Tensor, seen: list[int], *_: Any) -> Tensor:
    return d2v2_tokens(image, seen).mean(0)


def d2v2_teacher(image: Tensor, seen: list[int], compared: list[float], *_: Any) -> Tensor:
    tokens = d2v2_tokens(image, list(range(GRID**2)))
    return torch.stack([t for t, count in zip(tokens, compared, strict=True) if count]).mean(0)


SAVED: dict[str, Callable[[Path], Any]] = {
    "ijepa": save_ijepa,
    # Student and teacher alike, so that they differ by what they see alone.
    "data2vec": lambda path: torch.save(
        {"model": beit_weights(), "model_ema": beit_weights()}, path
    ),
    "data2vec2": lambda path: torch.save(
        {"model": {**d2v2_weights(), "_ema": d2v2_weights()}}, path
    ),
}
FORWARDS: dict[tuple[str, str, str], OneView] = {
    ("ijepa", "student", "backbone"): jepa_student,
    ("ijepa", "student", "predictor"): jepa_predictor,
    ("ijepa", "teacher", "backbone"): jepa_teacher,
    ("data2vec", "student", "backbone"): beit_student,
    ("data2vec", "student", "projector"): beit_head,
    ("data2vec", "teacher", "backbone"): beit_teacher,
    ("data2vec2", "student", "backbone"): d2v2_student,
    ("data2vec2", "teacher", "backbone"): d2v2_teacher,
}
CASES = [(method, branch) for method, branch, _ in FORWARDS]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("masked")
    for method, save in SAVED.items():
        save(folder / f"{method}.pth")
    return {method: folder / f"{method}.pth" for method in SAVED}


def pixels(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(*shape, 3, SIZE, SIZE, generator=generator)


def masks_of(method: str, samples: list[int], seed: int = 5) -> list[Mask]:
    masks = Views(find_recipe(method, "auto"), seed, Q, SIZE, PATCH).masks(samples)
    assert masks is not None
    return masks


def loop(forward: OneView, views: Tensor, masks: list[Mask]) -> Tensor:
    """[b, q, d], one image and one view at a time; views [b, 1 or q, 3, S, S]."""
    rows = []
    for i in range(len(views)):
        for j, mask in enumerate(masks):
            image = views[i, j if views.shape[1] > 1 else 0]
            seen = [] if mask.seen is None else mask.seen[i].tolist()
            targets = [] if mask.targets is None else mask.targets[:, i].tolist()
            rows.append(forward(image, seen, mask.compared[i].tolist(), targets))
    return torch.stack(rows).view(len(views), len(masks), -1)


@pytest.mark.parametrize("crops", [False, True])
@pytest.mark.parametrize(("method", "branch"), dict.fromkeys(CASES))
@torch.no_grad()
def test_masked_embeddings_equal_loops_over_images_and_views(
    method: str, branch: str, crops: bool, saved: dict[str, Path]
) -> None:
    loaded = open_checkpoint(saved[method], branch=branch)
    views, masks = pixels(B, Q if crops else 1), masks_of(method, [0, 8, 3])
    layers = [layer for m, b, layer in FORWARDS if (m, b) == (method, branch)]
    embeddings = loaded.embed_masked(views, masks, layers)
    assert list(embeddings) == layers
    for layer in layers:
        expected = loop(FORWARDS[method, branch, layer], views, masks)
        assert_close(embeddings[layer], expected)
        # The least are means over four patches in five of a teacher who sees all.
        assert expected.std(dim=1).mean() > 1e-3, "masks that change nothing would hide a mix-up"
        alone = loaded.embed_masked(views, masks, [layer])[layer]
        assert torch.equal(alone, embeddings[layer])


@torch.no_grad()
def test_the_clean_predictor_sees_all_and_predicts_all(saved: dict[str, Path]) -> None:
    loaded = open_checkpoint(saved["ijepa"], branch="student")
    every = list(range(GRID**2))
    expected = torch.stack([jepa_predictor(x, every, [], [every]) for x in pixels(2)])
    both = loaded.embed(pixels(2), ["backbone", "predictor"])
    assert_close(both["predictor"], expected)
    assert_close(both["backbone"], torch.stack([jepa_student(x, every) for x in pixels(2)]))


def test_masks_of_equal_lengths_go_together() -> None:
    """I-JEPA's lengths are the view's own, the others' are all alike."""
    assert group_by_length(masks_of("data2vec", [0, 1])) == [[0, 1, 2, 3]]
    assert group_by_length(masks_of("data2vec2", [0, 1])) == [[0, 1, 2, 3]]
    masks = masks_of("ijepa", [0, 1])
    groups = group_by_length(masks)
    assert sorted(j for group in groups for j in group) == [0, 1, 2, 3]
    assert len(groups) > 1
    for group in groups:
        assert len({masks[j].lengths for j in group}) == 1


def test_a_mask_counts_what_the_loss_compares() -> None:
    mask = draw_mask(MultiBlock(), 0, range(50), 0, (14, 14))
    assert mask.targets is not None
    assert mask.seen is not None
    by_hand = torch.zeros(50, 196)
    for block in mask.targets:
        for i, patches in enumerate(block.tolist()):
            for k in patches:
                by_hand[i, k] += 1
    assert torch.equal(mask.compared, by_hand)
    assert mask.compared.max() > 1  # targets overlap
    assert not mask.compared.gather(1, mask.seen).any()  # and no context overlaps a target
    mask = draw_mask(InverseBlocks(), 0, range(50), 0, (14, 14))
    assert mask.seen is not None
    assert not mask.compared.gather(1, mask.seen).any()
    assert (mask.compared.sum(1) == 196 - mask.seen.shape[1]).all()


@pytest.mark.parametrize(
    ("rule", "side", "most"),
    # round(share N): 120 and 75 of 196; 256 * 120 / 196 = 156.7; 144 * 75 / 196 = 55.1
    [(Blocks(), 14, 120), (Blocks(masked=75 / 196), 14, 75), (Blocks(), 16, 157),
     (Blocks(masked=75 / 196), 12, 55)],
)  # fmt: skip
def test_blocks_mask_a_share_of_any_grid(rule: Blocks, side: int, most: int) -> None:
    counts = draw_mask(rule, 0, range(500), 0, (side, side)).compared.sum(1)
    assert counts.max() == most
    assert counts.mean() > 0.98 * most


def test_blocks_that_fit_nowhere_are_refused() -> None:
    with pytest.raises(Exception, match=r"no block of at least 190 patches could be placed on a"):
        draw_mask(Blocks(masked=0.5, smallest=190), 0, range(50), 0, (14, 14))


# Through extract and score.


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "images", 9)


def extracted(path: Path, output: Path, images: Path, **more: Any) -> dict[str, Any]:
    """The embeddings of five samples in batches of two, by layer and kind."""
    defaults = {"n_samples": 5, "n_views": Q, "clean_samples": 7, "batch_size": 2, "device": "cpu"}
    settings = ExtractSettings(data=str(images), output=output, **(defaults | more))
    extract_checkpoint(path, settings)
    return stored(output)


def stored(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = {}
    with h5py.File(path) as file:
        for layer, group in file["embeddings"].items():
            report |= {f"{layer}/{kind}": group[kind][:] for kind in ("views", "clean")}
        report["provenance"] = json.loads(file.attrs["provenance"])
    return report


@torch.no_grad()
@pytest.mark.parametrize(
    ("method", "options", "branch"),
    [
        ("ijepa", [], "teacher"),
        ("ijepa", ["--layer", "backbone,predictor"], "student"),
        ("data2vec", ["--layer", "backbone,projector"], "student"),
        ("data2vec2", ["--branch", "teacher"], "teacher"),
    ],
)
def test_extract_and_score_under_masks(
    method: str,
    options: list[str],
    branch: str,
    saved: dict[str, Path],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out.h5"
    words = ["extract", saved[method], "--data", images, "-n", 5, "-q", Q, "--clean-samples", 7]
    done = lidar(*words, "--batch-size", 2, "-o", output, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = stored(output)
    provenance = rows.pop("provenance")
    assert provenance["views"] == find_recipe(method, "auto").describe()
    assert provenance["branch"] == branch
    samples = open_samples(ExtractSettings(data=str(images), n_samples=7))
    maker = Views(find_recipe(method, "auto"), 0, Q, SIZE, PATCH)
    clean = torch.stack([maker.clean([samples.decode(i)])[0] for i in range(7)])
    masks = masks_of(method, [0, 1, 2, 3, 4], seed=0)
    for layer in {key.split("/")[0] for key in rows}:
        expected = loop(FORWARDS[method, branch, layer], clean[:5, None], masks)
        assert_close(torch.from_numpy(rows[f"{layer}/views"]), expected)
        whole = open_checkpoint(saved[method], branch=branch).embed(clean, [layer])[layer]
        assert_close(torch.from_numpy(rows[f"{layer}/clean"]), whole)
    done = lidar_here("score", output, "--json", monkeypatch=monkeypatch, capfd=capfd)
    assert done.returncode == 0, done.stderr
    for row in json.loads(done.stdout):
        assert (row["n_samples"], row["n_views"], row["dim"]) == (5, Q, WIDTH)
        assert 1 <= row["lidar"] <= 5


class Notes(Progress):
    """Progress that keeps its notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_the_predictor_alone_takes_the_branch_that_has_it(
    saved: dict[str, Path], images: Path, tmp_path: Path
) -> None:
    settings = ExtractSettings(
        data=str(images), n_samples=2, n_views=2, layer="predictor", output=tmp_path / "out.h5"
    )
    notes = Notes()
    extract_checkpoint(saved["ijepa"], settings, notes)
    assert [note for note in notes.lines if ": assumed " not in note] == [
        f"{saved['ijepa']}: the teacher has no predictor, so the student is embedded"
    ]
    assert all(": assumed " in note for note in notes.lines[1:])
    assert stored(tmp_path / "out.h5")["provenance"]["branch"] == "student"
    teacher = dataclasses.replace(settings, branch="teacher", output=tmp_path / "no.h5")
    with pytest.raises(CheckpointError, match=r"no layer 'predictor' in .* it has backbone"):
        extract_checkpoint(saved["ijepa"], teacher)


CROPS = """
[recipe]
base = "ijepa"
crop_scale = [0.3, 1.0]
masks = { targets = 2, min_keep = 8 }
"""


def test_crops_under_changed_masks(
    saved: dict[str, Path],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "c.toml").write_text(CROPS)
    words = ["extract", saved["ijepa"], "--data", images, "-n", 3, "-q", Q, "--layer", "predictor"]
    words += ["--config", tmp_path / "c.toml", "-o", tmp_path / "out.h5"]
    done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
    assert done.returncode == 0, done.stderr
    recipe = find_recipe("auto", "auto", {"base": "ijepa", "crop_scale": [0.3, 1.0],
                                          "masks": {"targets": 2, "min_keep": 8}})  # fmt: skip
    samples = open_samples(ExtractSettings(data=str(images), n_samples=3))
    maker = Views(recipe, 0, Q, SIZE, PATCH)
    views = torch.cat([maker.views([samples.decode(i)], [i]) for i in range(3)])
    masks = maker.masks(range(3))
    assert masks is not None
    assert masks[0].targets is not None
    assert masks[0].targets.shape[0] == 2
    assert not torch.equal(views[:, 0], views[:, 1])
    with torch.no_grad():
        expected = loop(jepa_predictor, views, masks)
    rows = stored(tmp_path / "out.h5")
    assert_close(torch.from_numpy(rows["predictor/views"]), expected)
    (tmp_path / "c.toml").write_text(CROPS.replace("min_keep", "min_kept"))
    done = lidar_here(*words[:-1], tmp_path / "no.h5", monkeypatch=monkeypatch, capfd=capfd)
    assert done.returncode == 2
    assert done.stderr == (
        "error: unknown key 'min_kept' in [recipe.masks]; did you mean min_keep?\n"
    )


def test_a_view_does_not_depend_on_its_company(
    saved: dict[str, Path], images: Path, tmp_path: Path
) -> None:
    """Batches, workers and fewer views change rounding at most; the masks are the same."""
    layer = "predictor"
    one = extracted(saved["ijepa"], tmp_path / "one.h5", images, layer=layer)
    changes: dict[str, dict[str, Any]] = {
        "workers": {"workers": 3},
        "batch": {"batch_size": 5},
        "fewer": {"n_views": 2},
    }
    for name, more in changes.items():
        two = extracted(saved["ijepa"], tmp_path / f"{name}.h5", images, layer=layer, **more)
        count = two["predictor/views"].shape[1]
        difference = np.abs(two["predictor/views"] - one["predictor/views"][:, :count]).max()
        assert difference <= (0 if name == "workers" else 1e-5), name


def test_a_resumed_file_is_the_uninterrupted_one_bit_for_bit(
    saved: dict[str, Path], images: Path, tmp_path: Path
) -> None:
    """The batch of two samples is lost, and made again among others than before."""
    both = "backbone,predictor"
    whole = extracted(saved["ijepa"], tmp_path / "whole.h5", images, layer=both)
    partial = tmp_path / "out.h5.partial"
    extracted(saved["ijepa"], tmp_path / "out.h5", images, layer=both)
    (tmp_path / "out.h5").rename(partial)
    with h5py.File(partial, "r+") as file:
        file["samples/done"][2:4] = 0
        for layer in ("backbone", "predictor"):
            file[f"embeddings/{layer}/views"][2:4] = 0
    again = extracted(saved["ijepa"], tmp_path / "out.h5", images, layer=both, resume=True)
    for key in ("backbone/views", "backbone/clean", "predictor/views", "predictor/clean"):
        assert np.array_equal(whole[key], again[key]), key


# What cannot be embedded under masks.


def refusal(path: Path, images: Path, folder: Path, **more: Any) -> str:
    """The one line of a checkpoint that is refused before anything is written."""
    settings = ExtractSettings(
        data=str(images), n_samples=2, n_views=2, output=folder / "no.h5", **more
    )
    with pytest.raises(CheckpointError) as caught:
        extract_checkpoint(path, settings)
    assert list(folder.glob("no.h5*")) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_models_that_take_no_masks_are_refused_by_name(
    saved: dict[str, Path], images: Path, tmp_path: Path
) -> None:
    resnet = checkpoint(tmp_path / "resnet.pt")
    message = refusal(resnet, images, tmp_path, views="ijepa")
    assert message.startswith(f"{resnet}: the resnet 1-1-1-1")
    assert message.endswith(
        "takes none, the views ijepa have multi-block masks; "
        "choose other views, such as --views simclr or ijepa-crop"
    )
    message = refusal(saved["ijepa"], images, tmp_path, views="data2vec-fairseq")
    assert message.endswith(
        "takes multi-block masks, the views data2vec-fairseq have blocks masks; "
        "choose other views, such as --views simclr"
    )
    stripped = {name: t for name, t in beit_weights().items() if name != "mask_token"}
    torch.save({"model": stripped}, tmp_path / "stripped.pth")
    message = refusal(tmp_path / "stripped.pth", images, tmp_path, views="data2vec")
    assert message.endswith(
        "takes none, the views data2vec have blocks masks; "
        "choose other views, such as --views simclr or data2vec-crop"
    )


def test_a_grid_that_is_too_small_is_refused(
    saved: dict[str, Path], images: Path, tmp_path: Path
) -> None:
    message = refusal(saved["ijepa"], images, tmp_path, image_size=16)
    assert "block of" in message
    assert "on a grid of 4 x 4 holds no more than 10" in message
    assert message.endswith("or other views, such as --views simclr or ijepa-crop")


def test_a_model_without_masks_says_so_in_python(tmp_path: Path) -> None:
    loaded = open_checkpoint(checkpoint(tmp_path / "resnet.pt"))
    with raises(CheckpointError, "no-masks") as raised:
        loaded.embed_masked(torch.zeros(1, 1, 3, 32, 32), masks_of("ijepa", [0]), ["backbone"])
    raised.match(r"the resnet .* cannot be embedded under masks")


def test_rank_keeps_refused_models_as_failed_rows(
    saved: dict[str, Path],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for name in ("ijepa", "data2vec2"):
        (runs / f"{name}.pth").write_bytes(saved[name].read_bytes())
    words = ["rank", runs, "--data", images, "-n", 4, "-q", 3, "--image-size", SIZE, "--json"]
    run = functools.partial(lidar_here, *words, monkeypatch=monkeypatch, capfd=capfd)
    done = run("--views", "ijepa")
    assert done.returncode == 4, done.stderr
    report = json.loads(done.stdout)
    assert [Path(row["path"]).name for row in report["checkpoints"]] == ["ijepa.pth"]
    (failed,) = report["failed"]
    assert failed["path"].endswith("data2vec2.pth")
    assert "takes inverse-blocks masks, the views ijepa have multi-block masks" in failed["reason"]
    # With views of their own they are two groups, for the recipe is part of what is compared.
    assert json.loads(run().stdout)["groups"] == 2
    # The predictor of a directory is that of the branch which has one.
    (runs / "data2vec2.pth").unlink()
    done = run("--layer", "predictor")
    assert done.returncode == 0, done.stderr
    assert [row["metrics"]["dim"] for row in json.loads(done.stdout)["checkpoints"]] == [WIDTH]


def test_masks_of_other_grids_are_other_views(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Patches of 4 and of 3 pixels at one image size: what is hidden is not the same."""
    for patch in (4, 3):
        weights = random_weights(vit_shapes("") | {"pos_embed": (1, (SIZE // patch) ** 2, WIDTH)})
        weights["patch_embed.proj.weight"] = torch.randn(WIDTH, 3, patch, patch)
        (tmp_path / "runs").mkdir(exist_ok=True)
        torch.save(weights, tmp_path / "runs" / f"{patch}.pth")
    words = ["rank", tmp_path / "runs", "--data", images, "-n", 4, "-q", 2, "--image-size", SIZE]
    run = functools.partial(lidar_here, *words, monkeypatch=monkeypatch, capfd=capfd)
    assert json.loads(run("--views", "ijepa", "--json").stdout)["groups"] == 2
    done = run("--views", "ijepa", "--top", 1, "--quiet")
    assert done.returncode == 2
    assert "the mask grid is 16 in one and 12 in the other" in done.stderr
    assert "--views simclr" in done.stderr
    assert json.loads(run("--views", "ijepa-crop", "--json").stdout)["groups"] == 1


@pytest.mark.parametrize("more", [{"views": "ijepa"}, {"views": "identity", "layer": "patches"}])
def test_masks_and_drawn_patches_do_not_wait_for_the_gpu(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    images = image_folder(tmp_path / "images", 2)
    (views, _), _ = embed_on_fake_cuda(
        save_ijepa(tmp_path / "a.pth.tar"),
        *(images, False),
        n_samples=2,
        n_views=2,
        image_size=SIZE,
        **more,
    )
    (embedded,) = views.values()
    assert (embedded.device.type, embedded.shape) == ("cuda", (2, 2, WIDTH))
