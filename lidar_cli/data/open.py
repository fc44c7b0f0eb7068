"""Opens the data that `--data` names."""

from __future__ import annotations

from pathlib import Path

from lidar_cli.data.builtin import embedded_images
from lidar_cli.data.dataset import Candidate, Samples, Source, draw, shuffled
from lidar_cli.data.folders import folder_source
from lidar_cli.data.huggingface import hugging_face_source
from lidar_cli.data.tar import tar_source, webdataset_source
from lidar_cli.data.torchvision import torchvision_source
from lidar_cli.errors import InputError, SettingsError
from lidar_cli.runtime.files import did_you_mean
from lidar_cli.settings import EMBEDDED, FEWEST_SAMPLES, DefaultCount, SampleSettings

# By prefix; data without a prefix are a folder or a .tar file.
SOURCES = {
    "wds": webdataset_source,
    "hfds": hugging_face_source,
    "torch": torchvision_source,
}


def open_samples(settings: SampleSettings) -> Samples:
    """The samples of the settings: N = max(n, clean samples) of them.

    Of data that hold fewer than the default n all are taken, if they are at least FEWEST_SAMPLES.

    Raises InputError if the data do not exist, hold fewer images, or cannot be read; MissingExtra
    if a package is not installed.
    """
    count = max(settings.n_samples, settings.clean_samples or 0)
    fewest = max(FEWEST_SAMPLES, settings.clean_samples or 0)
    if not isinstance(settings.n_samples, DefaultCount):
        fewest = count
    return draw(_open_source(settings), count, settings.bad_samples == "skip", fewest)


def sample_count(settings: SampleSettings, samples: Samples) -> int:
    """n: of the settings, or if that is a default, the number of samples if it is less."""
    n = settings.n_samples
    return min(n, len(samples)) if isinstance(n, DefaultCount) else n


def _open_source(settings: SampleSettings) -> Source:
    data, kind = check_data(settings)
    if kind == EMBEDDED:
        return _embedded(settings.seed)
    if kind:
        return SOURCES[kind](data, data.partition("/")[2], settings)
    path = Path(data)
    source = folder_source if path.is_dir() else tar_source
    return source(data, path, settings)


def check_data(settings: SampleSettings) -> tuple[str, str]:
    """The data, and their kind: EMBEDDED, a prefix, or "" for a folder or a .tar file.

    Raises InputError for a path at which there is neither, SettingsError for an option that is for
    another kind.
    """
    data = EMBEDDED if settings.data is None else settings.data
    prefix, separator, _ = data.partition("/")
    kind = prefix.lower() if separator and prefix.lower() in SOURCES else ""
    kind = EMBEDDED if data == EMBEDDED else kind
    _check_options(data, kind, settings)
    path = Path(data)
    if kind or path.is_dir():
        return data, kind
    if not path.exists():
        expected = (
            "; expected an image folder, a .tar file, wds/NAME, hfds/NAME, torch/NAME or 'embedded'"
        )
        raise InputError(
            f"--data {data}: no such file or folder{did_you_mean(path) or expected}",
            code="no-such-file",
        )
    if path.suffix.lower() != ".tar" or not path.is_file():
        raise InputError(
            f"--data {data}: a file, and not a .tar; expected a folder of images", code="not-a-tar"
        )
    if settings.split is not None:
        raise InputError(
            f"--data {data}: a .tar file has no splits; leave out --split", code="no-such-split"
        )
    return data, kind


def _check_options(data: str, kind: str, settings: SampleSettings) -> None:
    """Raise SettingsError for an option that is for another kind of data.

    kind: the prefix, or "" for a folder or a .tar file.
    """
    for option, value, applies in (
        ("--class-level", settings.class_level, kind == ""),
        ("--image-column", settings.image_column, kind == "hfds"),
        ("--label-column", settings.label_column, kind == "hfds"),
    ):
        if value is not None and not applies:
            kinds = "folders and .tar files" if option == "--class-level" else "hfds/NAME"
            raise SettingsError(
                f"{option} {value}: is for {kinds}; leave it out for --data {data}",
                code="option-of-other-data",
            )


def _embedded(seed: int) -> Source:
    images = embedded_images()

    def candidate(index: int) -> Candidate:
        label = int(images.labels[index])
        return Candidate(f"digit-{index:04}", label, lambda: images.images[index])

    total = len(images.images)
    order = shuffled(total, seed)
    return Source(EMBEDDED, map(candidate, order), total, images.images.shape[1])
