"""View recipes: the random operations that make views, with their ranges and probabilities.

A recipe holds constants only. `parameters` draws the parameters of every view from it before any
pixel is touched; `pipeline` makes the pixels, `masks` draws the masks, `methods` has the published
recipes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Len, Lt

from lidar_cli.errors import SettingsError, nearest

Share = Annotated[float, Gt(0), Lt(1)]
Part = Annotated[float, Gt(0), Le(1)]
Ratio = Annotated[float, Gt(0), Le(100)]


class Constants:
    """Base of frozen dataclasses of constants; `ranges` names the fields that are (low, high)."""

    ranges: ClassVar[tuple[str, ...]] = ()

    def fault(self) -> str | None:
        """What is wrong with constants that are each within their bounds, or None."""
        for name, value in vars(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                return f"{name} = {value}: expected finite numbers"
        for name in self.ranges:
            limits = getattr(self, name)
            if limits is not None and limits[0] > limits[1]:
                return f"{name} = {list(limits)}: the lower end comes first"
        return None


@dataclass(frozen=True)
class MultiBlock(Constants):
    """I-JEPA: the encoder sees one context block without the target blocks, which are predicted.

    Scales are shares of the grid's patches, ratios are height over width. min_keep: every block and
    context has more patches than this. batch: number of images whose contexts are cut to one
    length in training, see `masks.ijepa_masks`.
    Source: facebookresearch/ijepa, configs, src/masks/multiblock.py.
    """

    ranges = ("target_scale", "target_ratio", "context_scale", "context_ratio")
    rule: Literal["multi-block"] = "multi-block"
    targets: Annotated[int, Ge(1), Le(64)] = 4
    target_scale: tuple[Part, Part] = (0.15, 0.2)
    target_ratio: tuple[Ratio, Ratio] = (0.75, 1.5)
    context_scale: tuple[Part, Part] = (0.85, 1.0)
    context_ratio: tuple[Ratio, Ratio] = (1.0, 1.0)
    min_keep: Annotated[int, Ge(0), Le(10**6)] = 10
    batch: Annotated[int, Ge(1), Le(4096)] = 128


@dataclass(frozen=True)
class Blocks(Constants):
    """BEiT and data2vec: rectangles are hidden until they cover a share of the patches.

    masked: that share; 120 of 14 x 14 patches in data2vec_vision's recipes, and 61 %, rounded, of
    any other grid. smallest: least number of patches of a block, on any grid, as in their code.
    ratio: height over width.
    Source: microsoft/unilm, beit/masking_generator.py; facebookresearch/data2vec_vision,
    beit/datasets.py.
    """

    ranges = ("ratio",)
    rule: Literal["blocks"] = "blocks"
    masked: Share = 120 / 196
    smallest: Annotated[int, Ge(1), Le(10**6)] = 16
    ratio: tuple[Ratio, Ratio] = (0.3, 1 / 0.3)


@dataclass(frozen=True)
class InverseBlocks(Constants):
    """data2vec 2.0: all patches are hidden but those of a few squares.

    masked: share of the patches; the large models have 0.75. adjust: share by which the squares
    exceed the visible patches; the large models have 0.1. side: that of a square, in patches.
    Source: facebookresearch/fairseq, fairseq/data/data_utils.py, examples/data2vec/config/v2.
    """

    rule: Literal["inverse-blocks"] = "inverse-blocks"
    masked: Share = 0.8
    adjust: Annotated[float, Ge(0), Lt(1)] = 0.07
    side: Annotated[int, Ge(1), Le(10**6)] = 3


MaskRule = MultiBlock | Blocks | InverseBlocks
RULES: dict[str, type[MaskRule]] = {
    "multi-block": MultiBlock,
    "blocks": Blocks,
    "inverse-blocks": InverseBlocks,
}


Triple = tuple[float, float, float]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std, of each channel or of all

# Mean and standard deviation in RGB order of pixels in [0, 1]. The values for CIFAR and STL-10 are
# those of solo-learn, solo/data/pretrain_dataloader.py.
PIXEL_STATS: dict[str, tuple[Triple, Triple]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": ((0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)),
    # OpenAI's CLIP: clip/clip.py
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}

QUARTER_TURNS = 4  # of an image, with `quarter_turns`
MEAN_OF_ALL = "0.449/0.226"  # the mean of ImageNet's over its channels

Probability = Annotated[float, Ge(0), Le(1)]
Probabilities = Annotated[tuple[Probability, ...], Len(1, 64)]
Positive = Annotated[float, Gt(0), Le(1000)]
Sigma = Annotated[float, Gt(0), Le(100)]
NotNegative = Annotated[float, Ge(0), Le(1000)]
Interpolation = Literal["bilinear", "bicubic"]
Operation = Literal["crop", "flip", "jitter", "grey", "blur", "solarise"]

SOLARISE_THRESHOLD = 128 / 255


def pixel_statistics(text: str) -> Statistics:
    """Mean and standard deviation from a name, or a text such as '0.5,0.5,0.5/0.2,0.2,0.2'.

    A number for each channel, or one for all.

    Raises SettingsError for an unknown name, or numbers that pixels in [0, 1] cannot have.
    """
    if text in PIXEL_STATS:
        return PIXEL_STATS[text]
    if "/" not in text:
        hint = nearest(text, ["auto", *PIXEL_STATS])
        raise SettingsError(f"unknown pixel statistics {text!r}; {hint}, or MEAN/STD")
    try:
        mean, std = (tuple(map(float, part.split(","))) for part in text.split("/"))
    except ValueError:
        mean, std = (), ()
    if not 0 < len(mean) == len(std):
        raise SettingsError(
            f"pixel statistics {text!r}: expected three numbers for the mean and three for the "
            "standard deviation, such as 0.485,0.456,0.406/0.229,0.224,0.225; as many as a model "
            "has channels, or one for all"
        )
    if not (all(0 <= number <= 1 for number in mean) and all(0 < number <= 1 for number in std)):
        raise SettingsError(
            f"pixel statistics {text!r}: expected those of pixels in [0, 1]; divide those of "
            "pixels up to 255 by 255"
        )
    return mean, std


def for_channels(statistics: Statistics, channels: int) -> Statistics | None:
    """The statistics of each of the channels; None if they are those of another number."""
    if len(statistics[0]) == channels:
        return statistics
    if any(len(set(part)) > 1 for part in statistics):
        return None
    mean, std = statistics
    return mean[:1] * channels, std[:1] * channels


def statistics_text(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """A text that `pixel_statistics` parses: the name of this mean and std, else the numbers.

    Of other than three channels, one number if it is that of all.
    """
    for name, numbers in PIXEL_STATS.items():
        if numbers == (mean, std):
            return name
    if len(mean) != 3 and (of_all := for_channels((mean, std), 1)) is not None:
        mean, std = of_all
    return "/".join(",".join(str(number) for number in part) for part in (mean, std))


@dataclass(frozen=True)
class Recipe(Constants):
    """Constants of one augmentation. A probability of 0 disables an operation.

    Some methods make two kinds of views that differ in blur and solarisation: `blur` and
    `solarise` hold a probability for each kind, or one for all, and view j is of kind
    j modulo the number of kinds.

    order: that of the operations on a view; normalisation comes last. Operations before `crop` act
    on the uncropped image, so that contrast scales about the mean of the image, not of the crop.
    The position of `flip` is the method's; no pixel depends on it.
    crop_scale: the crop's share of the image area; None for a recipe without random crop, whose
    views are the clean image. crop_ratio: width of the crop over its height.
    jitter: ranges of brightness, contrast, saturation, hue, which are applied in random order, all
    or none, with jitter_probability.
    blur_filter: "gaussian", truncated at its kernel and reflected at the borders (torchvision), or
    "pillow", the box filters of Pillow's GaussianBlur. blur_kernel: side of the Gaussian kernel in
    pixels; None for a tenth of the view's side.
    clean_resize: short side of the resized clean image over the side of its centre crop.
    clean_crop: whether the centre is cropped after resizing or before.
    crops: "all" crops of the method, or "global" for a method that also makes small local crops:
    the teacher, whose embedding is used, sees the global ones only.
    masks: the rule by which patches of a view are hidden; None hides none. With masks and without
    crop_scale the views of a sample are one clean image under different masks.
    quarter_turns: whether view j is turned by j quarter turns, against the clock, after all else.
    """

    ranges = ("crop_scale", "crop_ratio", "blur_sigma")
    name: str
    order: tuple[Operation, ...] = ("crop", "flip", "jitter", "grey", "blur", "solarise")
    crop_scale: tuple[Positive, Positive] | None = None
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    flip: Probability = 0.0
    jitter: tuple[NotNegative, NotNegative, NotNegative, NotNegative] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: Probability = 0.0
    grey: Probability = 0.0
    blur: Probabilities = (0.0,)
    blur_sigma: tuple[Sigma, Sigma] = (0.1, 2.0)  # pixels of the view
    blur_filter: Literal["gaussian", "pillow"] = "gaussian"
    blur_kernel: Annotated[int, Ge(1), Le(8191)] | None = None
    solarise: Probabilities = (0.0,)
    mean: Annotated[tuple[float, ...], Len(1, 1024)] = PIXEL_STATS["imagenet"][0]
    std: Annotated[tuple[Positive, ...], Len(1, 1024)] = PIXEL_STATS["imagenet"][1]
    clean_resize: Annotated[float, Ge(1), Le(16)] = 256 / 224
    clean_crop: Literal["after", "before"] = "after"
    clean_interpolation: Interpolation = "bicubic"
    crops: Literal["all", "global"] = "all"
    masks: MaskRule | None = None
    quarter_turns: bool = False

    @property
    def before_crop(self) -> tuple[Operation, ...]:
        """Operations on the uncropped image."""
        return self.order[: self.order.index("crop")]

    @property
    def after_crop(self) -> tuple[Operation, ...]:
        """Operations on the resized crop."""
        return self.order[self.order.index("crop") + 1 :]

    def kernel(self, image_size: int) -> int:
        """Side of the Gaussian kernel in pixels, odd: 23 at 224 for a tenth of the view."""
        side = image_size // 10 if self.blur_kernel is None else self.blur_kernel
        return side // 2 * 2 + 1

    def at_strength(self, strength: float) -> Recipe:
        """This recipe with its jitter ranges scaled; SimCLR's ImageNet runs have strength 1.

        Raises SettingsError if the hue could shift by more than half a circle.
        """
        b, c, s, h = (strength * amount for amount in self.jitter)
        if strength < 0 or h > 0.5:
            raise SettingsError(
                f"jitter strength {strength:g} gives {self.name} a hue range of {h:g}; "
                f"expected 0 to 0.5"
            )
        return replace(self, jitter=(b, c, s, h))

    def for_clean_images(self) -> Recipe:
        """This recipe reduced to the constants that clean images depend on.

        Recipes with equal clean images become equal.
        """
        return Recipe(
            "none",
            mean=self.mean,
            std=self.std,
            clean_resize=self.clean_resize,
            clean_crop=self.clean_crop,
            clean_interpolation=self.clean_interpolation,
        )

    @property
    def needs_colours(self) -> tuple[str, ...]:
        """The operations that take red, green and blue, and no other channels."""
        *_, saturation, hue = self.jitter if self.jitter_probability else (0.0, 0.0)
        strengths = {"saturation": saturation, "hue": hue, "grey": self.grey}
        return tuple(name for name, strength in strengths.items() if strength)

    def describe(self) -> dict[str, Any]:
        """Every constant, with JSON's types; two recipes are equal if these are.

        `quarter_turns` is left out if false, as in the files of versions without it.
        """
        constants: dict[str, Any] = _listed(asdict(self))
        if not self.quarter_turns:
            del constants["quarter_turns"]
        return constants

    def fault(self) -> str | None:
        """What is wrong with constants that are each within their bounds, or None."""
        fault = super().fault()
        if fault is not None:
            return fault
        if self.crop_scale is not None and self.crop_scale[1] > 1:
            return f"crop_scale = {list(self.crop_scale)}: a crop is at most 1, the whole image"
        if self.jitter[3] > 0.5:
            return f"jitter = {list(self.jitter)}: the hue, its last number, turns by at most 0.5"
        if 1 < len(self.blur) != len(self.solarise) > 1:
            return (
                f"blur has {len(self.blur)} kinds of views and solarise {len(self.solarise)}; "
                "expected equal numbers, or one for all"
            )
        if self.quarter_turns and self.masks is not None:
            return "quarter_turns with masks: a turned view has no masks"
        if len(self.mean) != len(self.std):
            return f"mean has {len(self.mean)} numbers and std {len(self.std)}; expected as many"
        if self.blur_kernel is not None and self.blur_kernel % 2 == 0:
            return f"blur_kernel = {self.blur_kernel}: expected an odd number of pixels"
        return self._fault_of_order()

    def _fault_of_order(self) -> str | None:
        happens: dict[Operation, bool] = {
            "crop": True,
            "flip": self.flip > 0,
            "jitter": self.jitter_probability > 0 and any(self.jitter),
            "grey": self.grey > 0,
            "blur": any(self.blur),
            "solarise": any(self.solarise),
        }
        order = list(self.order)
        used = [name for name, on in happens.items() if on]
        if self.crop_scale is None and used != ["crop"]:
            return f"{' and '.join(used[1:])} without crop_scale; [1, 1] is the whole image"
        missing = [name for name in used if name not in order]
        if missing:
            return f"order = {order}: {' and '.join(missing)} left out; name it where it acts"
        if len(set(order)) < len(order):
            return f"order = {order}: an operation appears twice"
        if "blur" in self.before_crop:
            return f"order = {order}: blur comes after crop, its sigma is in pixels of the view"
        return None


def _listed(value: Any) -> Any:
    """The value with lists instead of tuples, as JSON reads it."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
