"""Typed settings of every command, with the only definition of each default and help text.

`configuration` fills them. `lidar --help` imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

import re
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

FACTORY_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")  # package.module:factory
EMBEDDED = "embedded"  # the value of --data for small images derived from those of scikit-learn
EMBEDDED_DEFAULTS = {"n_samples": 200, "n_views": 4}  # small enough for a first try anywhere

PATCHES = "patches"  # the layer that is one patch token of a Vision Transformer an image
LAYERS = (
    "backbone",
    "projector",
    "predictor",
    PATCHES,
)  # of a checkpoint; code of the user names its own
USUAL_IMAGE_SIZE = 224  # where neither the weights nor the data determine one
FEWEST_SAMPLES = 50  # that are embedded where the data hold fewer than the default


class DefaultCount(int):
    """A number that nobody asked for. Of samples all are embedded where the data hold fewer."""


# Every number has an upper bound, since a file that came with a download may set it.
Count = Annotated[int, Ge(1), Le(10**6)]
Samples = Annotated[int, Ge(1), Le(10**8)]
Seed = Annotated[int, Ge(-(2**63)), Lt(2**63)]
Constant = Annotated[float, Ge(0), Le(1e30)]
Positive = Annotated[float, Gt(0), Le(1e30)]
Seconds = Annotated[float, Gt(0), Le(10**6)]
Level = Annotated[float, Gt(0), Lt(1)]


# The sections of a command's help, in their order.
Panel = Literal[
    "Most used",
    "Data",
    "Metrics",
    "Output",
    "Checkpoints",
    "Speed and memory",
    "Many processes",
    "While training",
    "Expert",
]


def setting(
    default: Any,
    help: str,
    *,
    short: str = "",
    option: bool = True,
    panel: Panel = "Expert",
    value: str = "",
) -> Any:
    """A dataclass field with the help text of its option.

    short: another name of the option, such as `-n`. Without an option, the field can be set in a
    TOML file, in the environment or in Python.
    panel: the section of the help that lists it.
    value: what the help calls its value, such as FOLDER; by default NAME, N or FILE by its type.
    """
    metadata = {"help": help, "short": short, "option": option, "panel": panel, "value": value}
    return field(default=default, metadata=metadata)


def flags(setting: Field[Any]) -> list[str]:
    """Names of a field's command-line option; none if it has no option."""
    if not setting.metadata["option"]:
        return []
    short = setting.metadata["short"]
    return [*([short] if short else []), f"--{setting.name.replace('_', '-')}"]


@dataclass(frozen=True)
class DeviceSettings:
    """The device that computes."""

    device: str = setting(
        "auto", "auto, cpu, cuda or cuda:N.", panel="Speed and memory", value="DEVICE"
    )


@dataclass(frozen=True)
class SampleSettings:
    """Which images are embedded, and how their views are drawn."""

    data: str | None = setting(
        None,
        "Images: a folder, a .tar file, wds/NAME, hfds/NAME or torch/NAME [default: 'embedded', "
        "toy pictures, of which n is 200 and q is 4].",
        panel="Most used",
        value="FOLDER",
    )
    data_dir: Path | None = setting(
        None, "Folder of the torch/, wds/ and hfds/ data sets.", panel="Data", value="FOLDER"
    )
    split: str | None = setting(None, "Split of the data set.", panel="Data")
    class_level: Annotated[int, Ge(-64), Le(64)] | None = setting(
        None,
        "How many folders of an image's path name its class: the first N, for -N the last N, 0 "
        "for no classes [default: the whole path, less train/, val/ or test/].",
        panel="Data",
    )
    image_column: str | None = setting(
        None,
        "Column of an hfds/ set [default: the one of type Image].",
        panel="Data",
        value="COLUMN",
    )
    label_column: str | None = setting(
        None,
        "Column of an hfds/ set [default: label, else the one of type ClassLabel].",
        panel="Data",
        value="COLUMN",
    )
    bands: str | None = setting(
        None,
        "Bands of the images that become a model's channels, in this order, such as 4,3,2; the "
        "pages of a TIFF file count on [default: red, green, blue; grey for one channel].",
        panel="Data",
        value="N,...",
    )
    n_samples: Samples = setting(
        DefaultCount(1000),
        "Images that are embedded; all, if the data hold 50 to 999.",
        short="-n",
        panel="Most used",
    )
    n_views: Annotated[int, Ge(0), Le(1000)] = setting(
        DefaultCount(10),
        "Augmented views of each; 0 for none.",
        short="-q",
        panel="Most used",
    )
    clean_samples: Samples | None = setting(
        None, "Samples embedded un-augmented, for RankMe and alpha-ReQ [default: n].", panel="Data"
    )
    seed: Seed = setting(0, "Seed of the draw of samples and views.", panel="Data")
    views: str = setting(
        "auto",
        "View recipe: auto, simclr, simclr-google, simclr-vissl, simclr-bolts, byol, byol-pytorch, "
        "vicreg, barlow, dino, dinov2, dinov3, ibot, msn, lejepa, eb-jepa, lightly-train, "
        "lightly-train-dino, lightly-train-dinov2, moco-v1, moco-v2, moco-v3, swav, mae, simmim, "
        "maskfeat, ijepa, ijepa-crop, capi, vjepa2, data2vec, data2vec-crop, data2vec-fairseq, "
        "data2vec2, data2vec2-crop, clip, identity, rotations.",
        panel="Data",
        value="RECIPE",
    )
    recipe: dict[str, Any] | None = setting(
        None,
        "[recipe] table of a TOML file: `base` and the constants to change in it.",
        option=False,
    )
    image_size: Annotated[int, Ge(1), Le(8192)] | None = setting(
        None,
        "Side of the views in pixels [default: the size that the checkpoint expects].",
        panel="Data",
    )
    pixel_stats: str = setting(
        "auto",
        "Input normalisation: imagenet, cifar10, cifar100, stl10, clip, half, unit for plain "
        "[0, 1], or MEAN/STD such as 0.5,0.5,0.5/0.2,0.2,0.2 "
        "[auto: the checkpoint's, else the recipe's].",
        panel="Data",
        value="STATS",
    )
    bad_samples: Literal["fail", "skip"] = setting(
        "fail",
        "Images that cannot be read or decoded: fail, or skip: each is replaced by the next in "
        "the draw and listed in the feature file.",
        panel="Data",
    )
    workers: Annotated[int, Ge(1), Le(1024)] | None = setting(
        None, "Decoding threads [default: one a core, at most 16].", panel="Speed and memory"
    )


@dataclass(frozen=True)
class FormatSettings:
    """How the names and shapes in a checkpoint are understood."""

    arch: str | None = setting(
        None,
        "timm model name [default: read from the weights].",
        panel="Checkpoints",
        value="MODEL",
    )
    format: str = setting(
        "auto",
        "Name of a system, see lidar inspect --formats, or 'plain' [auto: recognised by the "
        "file's names].",
        panel="Checkpoints",
        value="SYSTEM",
    )
    branch: str = setting(
        "auto",
        "student or teacher, or the file's word for it, such as target_encoder [auto: the one that "
        "the method's authors evaluate].",
        panel="Checkpoints",
        value="BRANCH",
    )
    prefix: str | None = setting(
        None,
        "Where the backbone's names begin, such as student.backbone.; none for no prefix; no "
        "SYSTEM is tried [default: read from the weights].",
        panel="Checkpoints",
        value="PREFIX",
    )
    projector_prefix: str | None = setting(
        None,
        "The same for the projector; none for no projector.",
        panel="Checkpoints",
        value="PREFIX",
    )
    layer: str = setting(
        "auto",
        "backbone, projector, predictor, patches (a random patch token of a ViT), a module inside "
        "the backbone such as blocks.3, or several with commas [auto: projector if there is one].",
        panel="Checkpoints",
        value="LAYER",
    )
    assume: tuple[str, ...] = setting(
        (),
        "KEY=VALUE of what weights leave open: heads, eps, activation, gate, stem_padding, "
        "stem_pool, block_activation, strides, grid, pixel_stats, position_offset, rope_base or "
        "frames; can be repeated; SYSTEM:KEY=VALUE for the files of one system "
        "[default: as inspect prints].",
        panel="Checkpoints",
        value="KEY=VALUE",
    )


@dataclass(frozen=True)
class ModelSettings(DeviceSettings, FormatSettings):
    """How a checkpoint becomes a function from images to embeddings."""

    model: str | None = setting(
        None,
        "package.module:factory, your code that returns the torch module.",
        panel="Checkpoints",
        value="MODULE:FACTORY",
    )
    activation: Literal["auto", "relu", "gelu"] = setting(
        "auto",
        "Activation inside the projector, which weights leave open [auto: the format's, else "
        "relu].",
        panel="Checkpoints",
    )
    batch_size: Count | None = setting(
        None,
        "Samples per batch, each with all its views [default: as many as fit].",
        panel="Speed and memory",
    )
    precision: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", "Precision of the forward pass (autocast).", panel="Speed and memory"
    )
    compile: bool = setting(
        False,
        "Let torch compile the backbone, except for masked views: pays for many samples.",
        panel="Speed and memory",
    )
    storage: Literal["float32", "float16"] = setting(
        "float32", "Number format of the stored embeddings.", panel="Speed and memory"
    )


@dataclass(frozen=True)
class EmbedSettings(SampleSettings, ModelSettings):
    """All settings that determine the embeddings of a checkpoint."""


@dataclass(frozen=True)
class ExtractSettings(EmbedSettings):
    """`lidar extract`."""

    output: Path | None = setting(
        None, "Feature file [default: CKPT's name with .h5, here].", short="-o", panel="Most used"
    )
    overwrite: bool = setting(False, "Replace an existing output.", panel="Output")
    resume: bool = setting(False, "Continue a .partial file, if there is one.", panel="Output")
    dry_run: bool = setting(
        False, "Measure a batch, print time, disk and memory; write nothing.", panel="Output"
    )


@dataclass(frozen=True)
class MetricSettings:
    """Constants of the metrics; values at different constants are not comparable."""

    delta: Constant = setting(
        1e-4,
        "Ridge on the within covariance, in squared embedding units.",
        panel="Metrics",
        value="RIDGE",
    )
    epsilon: Constant = setting(
        1e-7, "Guard added to each share inside an entropy.", panel="Metrics", value="SHARE"
    )
    normalize: bool = setting(False, "Scale every embedding to unit length first.", panel="Metrics")
    memory: str = setting(
        "64MB", "Total size of the chunks in memory.", panel="Speed and memory", value="SIZE"
    )
    groups: str | None = setting(
        None,
        "Samples that belong together, for intervals and ties: a CSV file with columns id and "
        "group, or 'labels'.",
        panel="Metrics",
        value="FILE",
    )


@dataclass(frozen=True)
class ArraySettings:
    """How arrays of other programs are read as embeddings."""

    dataset: str | None = setting(
        None, "Name of the array, in a file that has several.", panel="Data"
    )
    views_per_sample: Count | None = setting(
        None, "q, for a 2-D array whose rows are the views of sample 0, then 1, ...", panel="Data"
    )
    axes: Literal["auto", "nqd", "qnd"] = setting(
        "auto",
        "Order of the axes of a 3-D array: samples, views, width, or views first [auto: nqd, and "
        "refused if it looks like qnd].",
        panel="Data",
    )
    group_by: Literal["ids"] | None = setting(
        None,
        "For a 2-D array: the rows of an id are the views of one sample, 2 or more, as many as it "
        "has.",
        panel="Data",
        value="ids",
    )
    ids: Path | None = setting(
        None,
        "Names of the samples of arrays, with --group-by of the rows: one a line, a CSV file with "
        "a column id, or a .npy file [default: the array 'ids' in the same file].",
        panel="Data",
        value="FILE",
    )


@dataclass(frozen=True)
class ScoreSettings(ArraySettings, MetricSettings, DeviceSettings):
    """`lidar score`."""

    metrics: str = setting(
        "default",
        "Only these: lidar, rankme, ...; 'default,retrieval' for more, 'all' for every one.",
        panel="Most used",
        value="METRIC,...",
    )
    layer: str = setting(
        "auto", "Layers to read [auto: all in the file].", panel="Data", value="LAYER"
    )
    confidence: Level | None = setting(
        None,
        "Add intervals over samples at this level, such as 0.95; reads the file twice.",
        panel="Most used",
        value="LEVEL",
    )
    converge: bool = setting(
        False, "Add every metric at n/4, n/2 and q/4, q/2, and advice on both.", panel="Most used"
    )


@dataclass(frozen=True)
class FollowSettings:
    """How `lidar rank` follows a directory to which checkpoints are added."""

    watch: bool = setting(
        False,
        "Follow PATH: one JSON line per new checkpoint, until Ctrl-C.",
        panel="While training",
    )
    interval: Seconds = setting(
        10.0,
        "Seconds between two looks of --watch; a file unchanged between them is complete.",
        panel="While training",
        value="SECONDS",
    )
    watch_for: Annotated[float, Ge(0), Le(10**9)] | None = setting(
        None,
        "Seconds after which --watch takes a last look and ends.",
        panel="While training",
        value="SECONDS",
    )
    jsonl: Path | None = setting(
        None,
        "Append one JSON line per checkpoint of --watch to this file; resumes from it [default: "
        "stdout].",
        panel="While training",
    )
    tensorboard: Path | None = setting(
        None,
        "Folder of TensorBoard event files, to which --watch adds.",
        panel="While training",
        value="FOLDER",
    )
    alarm: Positive | None = setting(
        None,
        "End --watch with status 5 at a checkpoint that is below the best one so far of its run by "
        "more than this share of it, such as 0.2, or has no value any more.",
        panel="While training",
        value="SHARE",
    )


@dataclass(frozen=True)
class ClaimSettings:
    """How any number of `lidar rank` processes divide one directory."""

    collect: bool = setting(
        False,
        "Embed nothing: rank what other processes have embedded so far.",
        panel="Many processes",
    )
    claim_timeout: Seconds = setting(
        120.0,
        "Seconds of silence after which the work of a process on another host is taken over.",
        panel="Many processes",
        value="SECONDS",
    )


@dataclass(frozen=True)
class OrderSettings(EmbedSettings, ArraySettings, MetricSettings):
    """What orders checkpoints, and what counts as a difference."""

    by: str = setting(
        "lidar", "What orders them: lidar, rankme, ...", panel="Most used", value="METRIC"
    )
    metrics: str = setting(
        "default",
        "Compute these too: retrieval, ..., or all.",
        panel="Metrics",
        value="METRIC,...",
    )
    confidence: Level = setting(
        0.95,
        "Level of the intervals, and of the test that names ties.",
        panel="Metrics",
        value="LEVEL",
    )


@dataclass(frozen=True)
class RankSettings(OrderSettings, FollowSettings, ClaimSettings):
    """`lidar rank`."""

    cache: Path | None = setting(
        None,
        "Folder of extracted features [default: .lidar in the folder that is named; here if none "
        "or several are].",
        panel="Speed and memory",
        value="FOLDER",
    )
    include: tuple[str, ...] = setting(
        (),
        "Rank only files that match GLOB, such as 'last.ckpt' or 'vicreg-*': it is compared with "
        "the path below the folder that is named, or that all have in common, and with each name "
        "in that path; can be repeated.",
        panel="Checkpoints",
        value="GLOB",
    )
    exclude: tuple[str, ...] = setting(
        (),
        "Leave out files that match GLOB, compared as for --include; can be repeated.",
        panel="Checkpoints",
        value="GLOB",
    )
    store: bool = setting(
        True,
        "Store no embeddings in the cache, only scores.",
        panel="Speed and memory",
    )
    view_memory: str = setting(
        "auto",
        "Main memory for views that several checkpoints share, such as 8GB; the rest goes to a "
        "scratch file in the cache; 0 draws views per checkpoint [auto: a quarter of the free].",
        panel="Speed and memory",
        value="SIZE",
    )
    dry_run: bool = setting(
        False,
        "Print what would be ranked, what is cached, time, disk and memory; write nothing.",
        panel="Output",
    )
    race: bool = setting(
        False,
        "Find only the best: embed more samples only of checkpoints that may still be it.",
        panel="Speed and memory",
    )
    race_budget: Annotated[float, Gt(0), Le(1)] = setting(
        0.33,
        "Share of all views at which --race ends with a named tie.",
        panel="Speed and memory",
        value="SHARE",
    )
    top: Count | None = setting(None, "Print the best K only.", panel="Output", value="K")
    per_run: bool = setting(
        False,
        "Print the best checkpoint of each training run, and its curve over epoch or step.",
        panel="Output",
    )
    baseline: Literal["untrained"] | None = setting(
        None,
        "untrained: add the same architecture at random initialisation, 3 seeds, unranked.",
        panel="Output",
        value="untrained",
    )
    oracle: str | None = setting(
        None,
        "Compare with accuracies: a CSV file with columns path and accuracy, or what W&B or MLflow "
        "exports, or 'probe'.",
        panel="Metrics",
        value="FILE",
    )
    oracle_samples: Samples | None = setting(
        None,
        "Labelled images for --oracle probe [default: as many as are un-augmented].",
        panel="Metrics",
    )
    labels_per_class: Count | None = setting(
        None,
        "For --oracle probe: train on this many labelled images a class, 20 times by seed, and "
        "test on the others [default: a linear probe on four fifths of all labels].",
        panel="Metrics",
        value="K",
    )
    params: Path | None = setting(
        None,
        "CSV file with a column path and one per hyperparameter, or what W&B or MLflow exports, "
        "for --oracle [default: those stored in the checkpoints].",
        panel="Metrics",
    )


@dataclass(frozen=True)
class CompareSettings(OrderSettings):
    """`lidar compare`."""

    cache: Path | None = setting(
        None,
        "Folder of extracted features [default: the nearest .lidar above both files that a ranking "
        "has made, else here].",
        panel="Speed and memory",
        value="FOLDER",
    )


@dataclass(frozen=True)
class ProbeSettings(DeviceSettings):
    """`lidar probe`; accuracies at different settings are not comparable.

    The defaults are the protocol of LiDAR's paper, and DINO's for the nearest neighbours.
    """

    method: Literal["auto", "linear", "knn", "ridge"] = setting(
        "auto",
        "linear, knn (nearest neighbours) or ridge (closed form) [auto: linear, ridge with "
        "--pretext].",
        panel="Most used",
    )
    pretext: Literal["rotation"] | None = setting(
        None,
        "rotation: which of four quarter turns an image has, in place of labels, of files made "
        "with --views rotations.",
        panel="Most used",
    )
    layer: str = setting(
        "auto", "Layers to probe [auto: all in the file].", panel="Data", value="LAYER"
    )
    learning_rates: str = setting(
        "0.01",
        "Learning rates of Adam, with commas; of several, a tenth of the training rows, held out, "
        "selects one.",
        panel="Metrics",
        value="RATES",
    )
    epochs: Count = setting(20, "Passes over the training rows.", panel="Metrics")
    drop_epoch: Count = setting(15, "Epochs at the full learning rate.", option=False)
    drop_factor: Positive = setting(10.0, "Divisor of the learning rate after them.", option=False)
    minibatch: Count = setting(256, "Training rows per step.", panel="Metrics")
    neighbours: Count = setting(20, "k of knn.", panel="Metrics", value="K")
    temperature: Positive = setting(
        0.07, "T of knn's votes, exp(cos / T).", panel="Metrics", value="T"
    )
    ridge: Constant = setting(
        1.0, "Ridge penalty, in units of a standardised row.", panel="Metrics", value="PENALTY"
    )
    seed: Seed = setting(0, "Seed of splits and of the order of rows.", panel="Data")
    memory: str = setting(
        "4GB",
        "Memory for rows while training; the rest is read from the file in each epoch.",
        panel="Speed and memory",
        value="SIZE",
    )


@dataclass(frozen=True)
class InspectSettings(FormatSettings):
    """`lidar inspect`."""


@dataclass(frozen=True)
class DemoSettings(DeviceSettings):
    """`lidar demo`."""

    seed: Seed = setting(0, "Seed of images, hyperparameters and training.", panel="Data")


COMMANDS: dict[str, type] = {
    "extract": ExtractSettings,
    "score": ScoreSettings,
    "rank": RankSettings,
    "compare": CompareSettings,
    "probe": ProbeSettings,
    "inspect": InspectSettings,
    "demo": DemoSettings,
}
