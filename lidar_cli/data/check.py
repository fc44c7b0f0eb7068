"""Refuses what `--data` cannot name. Imports no NumPy: a mistyped path is refused at once."""

from __future__ import annotations

from pathlib import Path

from lidar_cli.errors import InputError, SettingsError, suggestion
from lidar_cli.runtime.files import did_you_mean
from lidar_cli.settings import EMBEDDED, FACTORY_NAME, SampleSettings

PREFIXES = ("wds", "hfds", "torch")
MADE_BY_FACTORY = "factory"
FOR = {  # option -> the kinds of data that it is for, where these are not hfds/ sets
    "--class-level": "folders and .tar files",
    "--data-dir": "torch/NAME, wds/NAME and hfds/NAME",
}


def is_factory(data: str | None) -> bool:
    """Whether `--data` names a factory, and no file or folder that exists."""
    return data is not None and bool(FACTORY_NAME.fullmatch(data)) and not Path(data).exists()


def check_data(settings: SampleSettings) -> tuple[str, str]:
    """The data and kind: EMBEDDED, MADE_BY_FACTORY, a prefix, or "" for a folder or .tar file.

    Raises InputError for a path at which there is neither, SettingsError for an option that is for
    another kind.
    """
    data = EMBEDDED if settings.data is None else settings.data
    prefix, separator, _ = data.partition("/")
    kind = prefix.lower() if separator and prefix.lower() in PREFIXES else ""
    kind = EMBEDDED if data == EMBEDDED else MADE_BY_FACTORY if is_factory(data) else kind
    if kind == MADE_BY_FACTORY:
        _check_own(data, settings)
    _check_options(data, kind, settings)
    path = Path(data)
    if kind or path.is_dir():
        return data, kind
    if not path.exists():
        expected = (
            "; expected an image folder, a .tar file, wds/NAME, hfds/NAME, torch/NAME, 'embedded' "
            "or package.module:factory"
        )
        hint = did_you_mean(path) or suggestion(data, EMBEDDED) or expected
        raise InputError(f"--data {data}: no such file or folder{hint}", code="no-such-file")
    if path.suffix.lower() != ".tar" or not path.is_file():
        raise InputError(
            f"--data {data}: a file, and not a .tar; expected a folder of images", code="not-a-tar"
        )
    if settings.split is not None:
        raise InputError(
            f"--data {data}: a .tar file has no splits; leave out --split", code="no-such-split"
        )
    return data, kind


def _check_own(data: str, settings: SampleSettings) -> None:
    """Raise SettingsError for an option that is for images, which samples of a factory are not."""
    of_images: dict[str, str | None] = {
        "split": None,
        "bands": None,
        "image_size": None,
        "clean_samples": None,
    }
    of_images |= {"views": "auto", "recipe": None, "pixel_stats": "auto", "bad_samples": "fail"}
    for name, default in of_images.items():
        if getattr(settings, name) != default:
            option = "a [recipe] table" if name == "recipe" else f"--{name.replace('_', '-')}"
            raise SettingsError(
                f"{option}: is for images; the factory --data {data} chooses its samples and makes "
                "their views itself; leave it out",
                code="own-views",
            )


def _check_options(data: str, kind: str, settings: SampleSettings) -> None:
    """Raise SettingsError for an option that is for another kind of data.

    kind: the prefix, or "" for a folder or a .tar file.
    """
    for option, value, applies in (
        ("--class-level", settings.class_level, kind == ""),
        ("--image-column", settings.image_column, kind == "hfds"),
        ("--label-column", settings.label_column, kind == "hfds"),
        ("--data-dir", settings.data_dir, kind in PREFIXES),
    ):
        if value is not None and not applies:
            advice = f"leave it out for --data {data}"
            if settings.data is None:
                advice = "add --data torch/NAME, or for a folder of images --data FOLDER alone"
            raise SettingsError(
                f"{option} {value}: is for {FOR.get(option, 'hfds/NAME')}; {advice}",
                code="option-of-other-data",
            )
