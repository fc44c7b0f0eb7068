"""What can be refused before torch is imported: paths, names, kinds and contents of files, outputs.

Each refusal ends with what to type instead. The commands call these first; what they accept is
checked again where it is used.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lidar_cli.configuration import parse_size
from lidar_cli.errors import (
    CheckpointError,
    InputError,
    LidarError,
    SettingsError,
    nearest,
    shortened,
    suggestion,
)
from lidar_cli.runtime.device import check_device_name, check_free_memory
from lidar_cli.runtime.files import (
    HDF5_SIGNATURE,
    did_you_mean,
    is_hdf5,
    is_stream,
    open_regular,
)
from lidar_cli.runtime.streams import write_remark
from lidar_cli.settings import (
    LAYERS,
    ArraySettings,
    CompareSettings,
    EmbedSettings,
    ExtractSettings,
    FormatSettings,
    InspectSettings,
    ModelSettings,
    OrderSettings,
    RankSettings,
    ScoreSettings,
)

if TYPE_CHECKING:
    from lidar_cli.ranking.paths import Selection

ON_THE_HUB = ("hf-hub:", "timm:")
TORCH = "a file of torch.save"
SAFETENSORS = "a safetensors file"
HDF5 = "an HDF5 file of embeddings"
ARRAYS = ("a .npy array", "a .npz file of arrays")
WEB_PAGE = "a web page, not what was to be downloaded; fetch it again"
POINTER = "a pointer of Git LFS, not the file itself; fetch it with: git lfs pull"
EMPTY = "empty; copy or save it again"


def no_such_command(name: str, commands: list[str]) -> SettingsError:
    """The error for a first word that is no command, but may be a path."""
    path, quoted = Path(name), shlex.quote(name)
    if path.is_dir():
        hint = f"to order the checkpoints in it:  lidar rank {quoted} --data FOLDER"
    elif path.is_file():
        embeddings = _kind_or_none(path) in (HDF5, *ARRAYS)
        hint = f"for this file:  lidar {'score' if embeddings else 'inspect'} {quoted}"
    else:
        hint = nearest(name, commands)
    return SettingsError(f"lidar {shortened(name)}: no such command; {hint}", code="no-command")


def check_exists(path: Path, what: str = "no such file or folder") -> None:
    """Raise InputError if nothing is at a path, with the nearest name that is there."""
    if path.exists():
        return
    if path.is_symlink():
        message = f"{path}: a link to {path.readlink()}, which does not exist"
        raise InputError(message, code="broken-link")
    raise InputError(f"{path}: {what}{did_you_mean(path)}", code="no-such-file")


def file_kind(path: Path) -> str | None:
    """What a file is by its first bytes; None if they do not show it. Raises OSError."""
    with open_regular(path) as file:
        start = file.read(512)
    text = start.lstrip().lower()
    if not start:
        return EMPTY
    if start.startswith(HDF5_SIGNATURE):
        return HDF5
    if start.startswith(b"\x93NUMPY"):
        return ARRAYS[0]
    if start.startswith(b"PK"):  # the name of the first member follows at byte 30
        name = start[30 : 30 + int.from_bytes(start[26:28], "little")]
        return ARRAYS[1] if name.endswith(b".npy") else TORCH
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        return SAFETENSORS
    if start.startswith(b"\x80"):
        return TORCH
    if text.startswith((b"<!doctype html", b"<html")):
        return WEB_PAGE
    if text.startswith(b"version https://git-lfs"):
        return POINTER
    return None


def check_checkpoint(path: Path, command: str) -> None:
    """Raise the reason why a path cannot be a checkpoint, or for rank embeddings."""
    if str(path).startswith(ON_THE_HUB):
        return
    check_exists(path, "no such file; expected a checkpoint")
    if path.is_dir():
        from lidar_cli.checkpoints.reading.folder import weights_path

        weights_path(path)
        return
    kind = _kind_or_none(path)
    if kind in (HDF5, *ARRAYS) and command == "rank":
        return
    if kind in (HDF5, *ARRAYS):
        raise CheckpointError(
            f"{path}: {kind}, not a checkpoint, which {command} takes. To score what it holds:  "
            f"lidar score {shlex.quote(str(path))}",
            code="is-embeddings",
        )
    from lidar_cli.checkpoints.reading.walk import container_kind

    if command != "rank" or kind in (WEB_PAGE, POINTER, EMPTY):  # it skips files of other kinds
        with suppress(OSError), open_regular(path) as file:  # reported where the file is read
            container_kind(file, str(path))


def check_contents(path: Path, settings: ModelSettings) -> None:
    """Raise LidarError for a checkpoint that cannot be read, or without a known model or layer."""
    if str(path).startswith(ON_THE_HUB):
        return
    from lidar_cli.checkpoints.detect import detect_in
    from lidar_cli.checkpoints.reading.read import read_contents
    from lidar_cli.checkpoints.shapes.inner import inner_names

    contents = read_contents(path)
    if settings.model is None:
        description, _ = detect_in(contents, path, settings, settings.activation)
        if not inner_names(settings.layer):
            description.widths_of(settings.layer)


def check_compare(paths: Sequence[Path], settings: CompareSettings) -> None:
    """Raise LidarError for two paths, one of which holds nothing that can be read."""
    from lidar_cli.checkpoints.reading.read import read_contents
    from lidar_cli.features.hdf5 import open_hdf5
    from lidar_cli.ranking.paths import only_file
    from lidar_cli.scoring.open import open_array

    check_order(settings, "compare")
    for file in map(only_file, paths):
        if file.is_file() and is_hdf5(file):  # which layers are compared is decided later
            with open_hdf5(file):
                pass
        elif _kind_or_none(file) in ARRAYS:
            open_array(file, replace(settings, axes="nqd"))  # no numbers are read to guess them
        else:
            read_contents(file)


def usable_embeddings(
    files: Sequence[Path], command: str, turned: bool = False
) -> tuple[list[Path], int]:
    """The files that can be embeddings, and the exit status for the others, reported on stderr.

    Arguments as of `check_embeddings`.
    """
    usable, status = [], 0
    for file in files:
        try:
            check_embeddings(file, command, turned)
        except LidarError as error:
            status = error.exit_status
            write_remark(f"error: {error}")
        else:
            usable.append(file)
    return usable, status


def check_embeddings(path: Path, command: str, turned: bool = False) -> None:
    """Raise LidarError if a path cannot be embeddings.

    command: score or probe. turned: whether probe reads images in four turns, and no labels.
    """
    check_exists(path, "no such file")
    if path.is_dir():
        raise InputError(
            f"{path}: is a directory; {command} takes files of embeddings. To order the "
            f"checkpoints in it:  lidar rank {shlex.quote(str(path))} --data FOLDER",
            code="is-a-directory",
        )
    kind = _kind_or_none(path)
    if kind in (WEB_PAGE, POINTER, EMPTY):
        raise InputError(f"{path}: {kind}", code="no-embeddings")
    if command == "probe" and kind in ARRAYS:
        raise InputError(
            f"{path}: {kind}, which has no labels; probe takes what lidar extract writes from "
            "images in a folder a class:  lidar extract ckpt.pt --data FOLDER",
            code="no-labels",
        )
    if command == "probe" and kind == HDF5:
        from lidar_cli.features.reader import labels_to_probe, read_provenance

        read_provenance(path)
        if not turned:
            labels_to_probe(path)
    if kind in (TORCH, SAFETENSORS) and (model := _recognised(path)):
        output = shlex.quote(f"{path.stem}.h5")
        options = " --views rotations" if turned else ""
        raise InputError(
            f"{path} is a checkpoint ({model}), not embeddings. First:  lidar extract "
            f"{shlex.quote(str(path))} --data FOLDER{options} -o {output}",
            code="is-a-checkpoint",
        )


def _kind_or_none(path: Path) -> str | None:
    try:
        return file_kind(path)
    except OSError:  # reported where the file is read
        return None


def _recognised(path: Path) -> str | None:
    """The system and architecture of a checkpoint; None for a file that is none."""
    from lidar_cli.checkpoints.inspect import inspect_file

    try:
        inspection = inspect_file(path, InspectSettings())
    except (LidarError, MemoryError, RecursionError):
        return None
    return f"{inspection.format}, {inspection.architecture}"


def check_extract(checkpoints: Sequence[Path], settings: ExtractSettings) -> Path:
    """The one checkpoint to embed, once all that needs no tensor is checked. Raises LidarError."""
    if len(checkpoints) > 1:
        names = " ".join(shlex.quote(str(path)) for path in checkpoints[:4])
        more = " ..." if len(checkpoints) > 4 else ""
        raise SettingsError(
            f"extract takes one checkpoint, not {len(checkpoints)}. To embed and order several:  "
            f"lidar rank {names}{more} --data FOLDER",
            code="several-checkpoints",
        )
    if settings.n_views == 1:
        raise SettingsError(
            "-q 1: LiDAR divides by the variation between the views of an image, which needs two; "
            "give -q 2 or more, or -q 0 for un-augmented images alone (RankMe, alpha-ReQ)",
            code="one-view",
        )
    check_names(settings)
    check_checkpoint(checkpoints[0], "extract")
    if settings.output is not None and not is_stream(settings.output):
        check_folder("-o", settings.output)
    check_contents(checkpoints[0], settings)
    return checkpoints[0]


def check_score(settings: ScoreSettings, plot: Path | None) -> None:
    """Raise SettingsError for a name, size or output that cannot be used."""
    from lidar_cli.core.metrics import parse_metrics
    from lidar_cli.ranking.group_metrics import refuse_group_metrics

    refuse_group_metrics(settings.metrics, "score")
    parse_metrics(settings.metrics)
    check_free_memory(f"--memory {settings.memory}", parse_size(settings.memory))
    check_device_name(settings.device)
    if plot is not None and not is_stream(plot):
        check_folder("--plot", plot)
        if plot.suffix.lower() not in (".png", ".svg"):
            message = f"--plot {plot}: expected a name that ends in .png or .svg"
            raise SettingsError(message, code="wrong-suffix")
    check_groups(settings.groups, settings.confidence)
    check_grouping(settings)


def check_grouping(settings: ArraySettings) -> None:
    """Raise SettingsError for an option that --group-by excludes."""
    if settings.group_by is not None and settings.views_per_sample is not None:
        raise SettingsError("--group-by and --views-per-sample exclude each other; give one")


def check_order(settings: OrderSettings, alone: str = "") -> None:
    """Raise LidarError for a metric, numbers, names or data that rank and compare cannot use.

    alone: as of `find_order`.
    """
    from lidar_cli.core.metrics import parse_metrics
    from lidar_cli.ranking.group_metrics import check_layer_of, find_order, refuse_group_metrics

    metric = find_order(settings.by, alone)
    check_layer_of("--by", [settings.by], settings.layer)
    refuse_group_metrics(settings.metrics, alone)
    parse_metrics(settings.metrics)
    if settings.n_samples < 2:
        raise SettingsError(
            f"-n {settings.n_samples}: {metric.name} needs the variation between images, and so "
            "two; give -n 2 or more",
            code="one-image",
        )
    if settings.n_views < 2 and metric.needs_two_views:
        raise SettingsError(
            f"-q {settings.n_views}: {metric.name} needs the variation between the views of an "
            "image, and so two; give -q 2 or more, or order by what needs none: --by rankme",
            code="one-view",
        )
    check_names(settings)
    check_groups(settings.groups, settings.confidence)
    check_grouping(settings)


def check_rank(selection: Selection, settings: RankSettings) -> None:
    """Raise LidarError for all that needs no tensor to be refused."""
    from lidar_cli.ranking.paths import check_any

    paths = selection.arguments
    if len(paths) == 1 and paths[0].is_file() and not settings.watch:  # which it may complete
        check_checkpoint(paths[0], "rank")
    check_order(settings, "--race" if settings.race else "--watch" if settings.watch else "")
    check_table("--oracle", settings.oracle, "probe")
    check_table("--params", settings.params)
    for option in ("jsonl", "tensorboard"):
        path = getattr(settings, option)
        if path is not None and not is_stream(path):
            check_folder(f"--{option}", path)
    if paths and not settings.watch:  # which may find files later
        check_any(selection)
    check_accuracies(settings)


def parse_columns(text: str | None, layer: str) -> tuple[str, ...] | None:
    """The metrics that `--columns` names. Raises SettingsError if there is none, or not of a layer.

    layer: the value of --layer.
    """
    from lidar_cli.ranking.group_metrics import ORDERS, check_layer_of

    if text is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in ORDERS:
            raise SettingsError(
                f"--columns {text}: no metric {name!r}; {nearest(name, list(ORDERS))}",
                code="no-such-metric",
            )
    check_layer_of("--columns", names, layer)
    return names


def check_groups(groups: str | None, level: float | None) -> None:
    """Raise all reasons why `--groups` cannot be used, at once. level: of the intervals."""
    if groups is None:
        return
    reasons = []
    if level is None:
        reasons.append("--groups concerns intervals; add --confidence 0.95")
    try:
        check_table("--groups", groups, "labels")
        if groups != "labels":
            from lidar_cli.data.tables import groups_of, read_table

            groups_of(read_table(Path(groups), ("id", "group")))
    except InputError as error:
        if not reasons:
            raise
        reasons.append(str(error))
    if reasons:
        raise SettingsError("; and ".join(reasons), code="groups")


def check_accuracies(settings: RankSettings) -> None:
    """Raise InputError for the contents of a table of --oracle or --params."""
    from lidar_cli.data.tables import accuracies_of, read_table

    if settings.oracle not in (None, "probe"):
        accuracies_of(read_table(Path(settings.oracle or ""), ("path", "accuracy")))
    if settings.params is not None:
        read_table(settings.params, ("path",))


def check_table(option: str, value: str | Path | None, word: str = "") -> None:
    """Raise InputError if an option names a table that is not there. word: one that is no file."""
    if value is None or value == word:
        return
    path = Path(value)
    if path.is_dir():
        raise InputError(
            f"{option} {path}: a folder; expected a CSV file with a header and a line a checkpoint",
            code="is-a-directory",
        )
    if not path.exists() and not is_stream(path):
        is_name = path.name == str(value) and not path.suffix
        hint = (suggestion(path.name, word) if is_name and word else "") or did_you_mean(path)
        expected = "; expected a CSV file" + (f" or '{word}'" if word else "")
        raise InputError(f"{option} {path}: no such file{hint or expected}", code="no-such-file")


def check_names(settings: EmbedSettings) -> None:
    """Raise LidarError for a name, size, device or data that does not exist."""
    check_device_name(settings.device)
    for option in ("memory", "view_memory"):
        size = getattr(settings, option, "auto")
        if size not in ("auto", "0"):
            try:
                parse_size(size)
            except SettingsError as error:
                name = option.replace("_", "-")
                hint = suggestion(size, "auto")
                raise SettingsError(f"--{name}: {error}{hint}", code=error.code) from error
    check_layer(settings)
    if settings.bands is not None:
        from lidar_cli.data.dataset import parse_bands

        parse_bands(settings.bands)
    check_system(settings)
    if settings.recipe is not None or settings.views != "auto" or settings.pixel_stats != "auto":
        from lidar_cli.views.methods import find_recipe

        find_recipe(settings.views, settings.pixel_stats, settings.recipe)
    from lidar_cli.data.check import check_data

    data, kind = check_data(settings)
    if kind == "" and Path(data).is_dir():
        from lidar_cli.data.folders import check_has_image

        check_has_image(data, Path(data), settings)


def check_system(settings: FormatSettings) -> None:
    """Raise SettingsError for a wrong --format, --branch, --prefix or --assume."""
    given = settings.format, settings.branch, settings.assume, settings.prefix
    if (*given, settings.projector_prefix) != ("auto", "auto", (), None, None):
        from lidar_cli.checkpoints.detect import check_assumptions, check_names, check_prefixes

        check_names(settings.format, settings.branch)
        check_prefixes(*given[:2], settings.prefix, settings.projector_prefix)
        check_assumptions(settings.assume)


def check_layer(settings: FormatSettings) -> None:
    """Raise SettingsError for a mistyped layer; other names are of modules inside a backbone."""
    is_own_code = getattr(settings, "model", None) is not None
    for name in [name.strip() for name in settings.layer.split(",")]:
        if not is_own_code and name not in LAYERS and re.match("back|proj|pred|patchs", name):
            hint = nearest(name, list(LAYERS))
            raise SettingsError(f"--layer {name}: no such layer; {hint}", code="no-such-layer")


def check_folder(option: str, path: Path) -> None:
    """Raise SettingsError if the folder of an output does not exist or cannot be written."""
    folder = path.parent
    if not folder.is_dir():
        hint = did_you_mean(folder) or f"; create it with:  mkdir -p {shlex.quote(str(folder))}"
        raise SettingsError(f"{option} {path}: no folder {folder}{hint}", code="no-such-folder")
    if not os.access(folder, os.W_OK):
        raise SettingsError(
            f"{option} {path}: the folder {folder} cannot be written; name another",
            code="unwritable-folder",
        )
