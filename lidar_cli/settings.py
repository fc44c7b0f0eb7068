"""Typed settings of every command; a field's default here is the only one there is.

`configuration` fills them; `lidar --help` reads the defaults from here, and so this file is light.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from lidar_cli.errors import SettingsError

EMBEDDED = "embedded"  # the value of --data that names the images made from scikit-learn's
EMBEDDED_DEFAULTS = {"n_samples": 200, "n_views": 4}  # small enough for a first try anywhere

# Every number has an upper bound, since a file that came with a download may set it.
Count = Annotated[int, Ge(1), Le(10**6)]
Samples = Annotated[int, Ge(1), Le(10**8)]
Seed = Annotated[int, Ge(-(2**63)), Lt(2**63)]
Constant = Annotated[float, Ge(0), Le(1e30)]
Positive = Annotated[float, Gt(0), Le(1e30)]
Seconds = Annotated[float, Gt(0), Le(10**6)]
Level = Annotated[float, Gt(0), Lt(1)]


def setting(default: Any, *flags: str, help: str) -> Any:
    """A dataclass field with its command-line flags and its help text.

    Without flags it can be set in a TOML file or in Python alone.
    """
    return field(default=default, metadata={"flags": flags, "help": help})


@dataclass(frozen=True)
class DeviceSettings:
    """Where to compute."""

    device: str = setting("auto", "--device", help="auto, cpu, cuda or cuda:N.")


@dataclass(frozen=True)
class SampleSettings:
    """Which images are embedded, and which views of them are made."""

    data: str | None = setting(
        None,
        "--data",
        help="Image folder, .tar file, wds/NAME, hfds/NAME, torch/NAME, or 'embedded'.",
    )
    data_dir: Path | None = setting(
        None, "--data-dir", help="Where torch/, wds/ and hfds/ names are kept."
    )
    split: str | None = setting(None, "--split", help="Split of the data set.")
    class_level: Annotated[int, Ge(-64), Le(64)] | None = setting(
        None,
        "--class-level",
        help="How many folders of an image's path name its class: the first N, for -N the last N, "
        "0 for no classes [default: the whole path, less train/, val/ or test/].",
    )
    image_column: str | None = setting(
        None, "--image-column", help="Column of an hfds/ set [default: the one of type Image]."
    )
    label_column: str | None = setting(
        None,
        "--label-column",
        help="Column of an hfds/ set [default: label, else the one of type ClassLabel].",
    )
    n_samples: Samples = setting(
        1000, "-n", "--n-samples", help="Samples that are embedded q times."
    )
    n_views: Annotated[int, Ge(0), Le(1000)] = setting(
        10, "-q", "--n-views", help="Views of each sample; 0 embeds un-augmented images alone."
    )
    clean_samples: Samples | None = setting(
        None,
        "--clean-samples",
        help="Samples embedded un-augmented, for RankMe and alpha-ReQ [default: n].",
    )
    seed: Seed = setting(0, "--seed", help="Seed of the draw of samples and views.")
    views: str = setting(
        "auto",
        "--views",
        help="View recipe: auto, simclr, simclr-google, simclr-vissl, byol, vicreg, barlow, dino, "
        "dinov2, moco-v1, moco-v2, moco-v3, swav, mae, ijepa, ijepa-crop, data2vec, data2vec-crop, "
        "data2vec-fairseq, data2vec2, data2vec2-crop, identity.",
    )
    recipe: dict[str, Any] | None = setting(
        None, help="[recipe] table of a TOML file: `base` and the constants to change in it."
    )
    image_size: Annotated[int, Ge(1), Le(8192)] | None = setting(
        None,
        "--image-size",
        help="Side of the views in pixels [default: what the checkpoint was made for].",
    )
    pixel_stats: str = setting(
        "auto",
        "--pixel-stats",
        help="Input normalisation: imagenet, cifar10, cifar100, stl10, unit for plain [0, 1], or "
        "MEAN/STD such as 0.5,0.5,0.5/0.2,0.2,0.2 [auto: the checkpoint's, else the recipe's].",
    )
    bad_samples: Literal["fail", "skip"] = setting(
        "fail",
        "--bad-samples",
        help="Images that cannot be read or decoded: fail, or skip: each gives its place to the "
        "next in the draw, and is listed in the feature file.",
    )
    workers: Annotated[int, Ge(1), Le(1024)] | None = setting(
        None, "--workers", help="Decoding threads [default: one a core, at most 16]."
    )


@dataclass(frozen=True)
class FormatSettings:
    """How the names and shapes in a checkpoint are understood."""

    arch: str | None = setting(
        None, "--arch", help="timm model name [default: read from the weights]."
    )
    format: str = setting(
        "auto",
        "--format",
        help="Name of a system, see lidar inspect --formats, or 'plain' "
        "[auto: told by the file's names].",
    )
    branch: str = setting(
        "auto",
        "--branch",
        help="student or teacher [auto: the one that the method's authors evaluate].",
    )
    assume: tuple[str, ...] = setting(
        (),
        "--assume",
        help="KEY=VALUE of what weights leave open: heads, eps, activation, gate, stem_padding, "
        "strides, pixel_stats or position_offset; can be repeated; SYSTEM:KEY=VALUE for the files "
        "of one system [default: as inspect prints].",
    )


@dataclass(frozen=True)
class ModelSettings(DeviceSettings, FormatSettings):
    """How a checkpoint becomes a function from images to embeddings."""

    layer: str = setting(
        "auto",
        "--layer",
        help="backbone, projector, predictor, or several with commas "
        "[auto: projector if there is one].",
    )
    model: str | None = setting(
        None,
        "--model",
        help="package.module:factory, your own code that returns the torch module.",
    )
    activation: Literal["auto", "relu", "gelu"] = setting(
        "auto",
        "--activation",
        help="Activation inside the projector, which weights do not tell "
        "[auto: the format's, else relu].",
    )
    batch_size: Count | None = setting(
        None,
        "--batch-size",
        help="Samples a batch, all their views included [default: found].",
    )
    precision: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", "--precision", help="Of the forward pass (autocast)."
    )
    compile: bool = setting(
        False,
        "--compile",
        help="Let torch compile the backbone, except for masked views: pays for many samples.",
    )
    storage: Literal["float32", "float16"] = setting(
        "float32", "--storage", help="Number format of the stored embeddings."
    )


@dataclass(frozen=True)
class EmbedSettings(SampleSettings, ModelSettings):
    """All that determines the embeddings of a checkpoint."""


@dataclass(frozen=True)
class ExtractSettings(EmbedSettings):
    """`lidar extract`."""

    output: Path | None = setting(
        None, "-o", "--output", help="Feature file [default: CKPT's name with .h5, here]."
    )
    overwrite: bool = setting(False, "--overwrite", help="Replace an existing output.")
    resume: bool = setting(False, "--resume", help="Continue a .partial file, if there is one.")


@dataclass(frozen=True)
class MetricSettings:
    """Constants of the metrics; values at different constants are not comparable."""

    delta: Constant = setting(
        1e-4, "--delta", help="Ridge on the within covariance, in squared embedding units."
    )
    epsilon: Constant = setting(
        1e-7, "--epsilon", help="Guard added to each share inside an entropy."
    )
    normalize: bool = setting(
        False, "--normalize", help="Scale every embedding to unit length first."
    )
    memory: str = setting("64MB", "--memory", help="Size of the chunks in memory, all together.")
    groups: str | None = setting(
        None,
        "--groups",
        help="Samples that belong together, for intervals and ties: a CSV file with columns id "
        "and group, or 'labels'.",
    )


@dataclass(frozen=True)
class ScoreSettings(MetricSettings, DeviceSettings):
    """`lidar score`."""

    metrics: str = setting("all", "--metrics", help="Comma-separated names; only these are formed.")
    layer: str = setting("auto", "--layer", help="Layers to read [auto: all in the file].")
    dataset: str | None = setting(
        None, "--dataset", help="Name of the array in a file that has several."
    )
    views_per_sample: Count | None = setting(
        None,
        "--views-per-sample",
        help="q, for a 2-D array whose rows are the views of sample 0, then 1, ...",
    )
    confidence: Level | None = setting(
        None,
        "--confidence",
        help="Add intervals over samples at this level, such as 0.95; reads the file twice.",
    )
    converge: bool = setting(
        False, "--converge", help="Add every metric at n/4, n/2 and q/4, q/2, and an advice."
    )


@dataclass(frozen=True)
class FollowSettings:
    """How `lidar rank` follows a directory in which checkpoints land."""

    watch: bool = setting(
        False, "--watch", help="Follow DIR, a JSON line a checkpoint as it lands, until Ctrl-C."
    )
    interval: Seconds = setting(
        10.0,
        "--interval",
        help="Seconds between two looks of --watch; a file that rested between them is complete.",
    )
    watch_for: Annotated[float, Ge(0), Le(10**9)] | None = setting(
        None, "--watch-for", help="Seconds after which --watch takes a last look and ends."
    )
    jsonl: Path | None = setting(
        None, "--jsonl", help="File that --watch appends to, and goes on with [default: stdout]."
    )
    tensorboard: Path | None = setting(
        None, "--tensorboard", help="Folder for --watch to write the metrics to, for TensorBoard."
    )


@dataclass(frozen=True)
class ClaimSettings:
    """How any number of `lidar rank` processes divide one directory."""

    collect: bool = setting(
        False, "--collect", help="Embed nothing: rank what other processes have made so far."
    )
    claim_timeout: Seconds = setting(
        120.0,
        "--claim-timeout",
        help="Seconds of silence after which the work of a process on another host is taken over.",
    )


@dataclass(frozen=True)
class RankSettings(EmbedSettings, MetricSettings, FollowSettings, ClaimSettings):
    """`lidar rank`."""

    by: str = setting("lidar", "--by", help="Metric that orders the checkpoints.")
    cache: Path | None = setting(
        None, "--cache", help="Where extracted features are kept [default: DIR/.lidar]."
    )
    store: bool = setting(
        True,
        "--store",
        help="Keep the embeddings of each checkpoint in the cache [default]; without, only scores.",
    )
    view_memory: str = setting(
        "auto",
        "--view-memory",
        help="Main memory for views that several checkpoints share, such as 8GB; what exceeds it "
        "goes to a scratch file in the cache; 0 draws them for each [auto: a quarter of the free].",
    )
    race: bool = setting(
        False,
        "--race",
        help="Find the best alone: views for more samples only while a checkpoint may be it.",
    )
    race_budget: Annotated[float, Gt(0), Le(1)] = setting(
        0.33, "--race-budget", help="Share of all views at which --race ends with a named tie."
    )
    top: Count | None = setting(None, "--top", help="Print the best K only.")
    oracle: str | None = setting(
        None,
        "--oracle",
        help="Compare with accuracies: a CSV file with columns path and accuracy, or 'probe'.",
    )
    oracle_samples: Samples | None = setting(
        None,
        "--oracle-samples",
        help="Labelled images for --oracle probe [default: as many as are un-augmented].",
    )
    params: Path | None = setting(
        None,
        "--params",
        help="CSV file with a column path and one a hyperparameter, for --oracle "
        "[default: what checkpoints carry].",
    )
    confidence: Level = setting(
        0.95, "--confidence", help="Level of the intervals, and of the test that names ties."
    )


@dataclass(frozen=True)
class ProbeSettings(DeviceSettings):
    """`lidar probe`; accuracies at different settings are not comparable.

    The defaults are the protocol of LiDAR's paper, and DINO's for the nearest neighbours.
    """

    method: Literal["linear", "knn", "ridge"] = setting(
        "linear", "--method", help="linear, knn (nearest neighbours) or ridge (closed form)."
    )
    layer: str = setting("auto", "--layer", help="Layers to probe [auto: all in the file].")
    learning_rates: str = setting(
        "0.01",
        "--learning-rates",
        help="Of Adam, with commas; of several, the best on a tenth of the training rows counts.",
    )
    epochs: Count = setting(20, "--epochs", help="Passes over the training rows.")
    drop_epoch: Count = setting(15, help="Epochs at the full learning rate.")
    drop_factor: Positive = setting(10.0, help="What it is divided by after them.")
    minibatch: Count = setting(256, "--minibatch", help="Training rows a step.")
    neighbours: Count = setting(20, "--neighbours", help="k of knn.")
    temperature: Positive = setting(0.07, "--temperature", help="T of knn's votes, exp(cos / T).")
    ridge: Constant = setting(1.0, "--ridge", help="Of ridge, in units of a standardised row.")
    seed: Seed = setting(0, "--seed", help="Seed of splits and of the order of rows.")
    memory: str = setting(
        "4GB",
        "--memory",
        help="Held while training; rows beyond it are read from the file in each epoch.",
    )


@dataclass(frozen=True)
class InspectSettings(FormatSettings):
    """`lidar inspect`."""


@dataclass(frozen=True)
class DemoSettings(DeviceSettings):
    """`lidar demo`."""

    seed: Seed = setting(0, "--seed", help="Seed of images, hyperparameters and training.")


COMMANDS: dict[str, type] = {
    "extract": ExtractSettings,
    "score": ScoreSettings,
    "rank": RankSettings,
    "probe": ProbeSettings,
    "inspect": InspectSettings,
    "demo": DemoSettings,
}


def parse_size(text: str) -> int:
    """Bytes in a size such as `64MB`, `1.5 GiB` or `4096`; MB and MiB both count 2**20.

    Raises SettingsError for anything else, and for less than one byte.
    """
    match = re.fullmatch(r"\s*([0-9]{0,15}\.?[0-9]{1,15})\s*([kmgt]?)i?b?\s*", text, re.IGNORECASE)
    scale = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
    size = int(float(match[1]) * scale[match[2].lower()]) if match else 0
    if size < 1:
        raise SettingsError(f"{text!r} is not a memory size; expected something like 64MB or 2GB")
    return size


def parse_rates(text: str) -> tuple[float, ...]:
    """Learning rates in a text such as `0.1, 0.01`, as they stand there.

    Raises SettingsError unless all are positive numbers, each given once.
    """
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise SettingsError(
            f"--learning-rates {text}: expected positive numbers with commas, such as 0.1,0.01"
        )
    if len(set(rates)) < len(rates):
        raise SettingsError(f"--learning-rates {text}: a rate is given twice")
    return rates
