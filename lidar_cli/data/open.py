"""The data that `--data` names, by its kind."""

from __future__ import annotations

from lidar_cli.data.builtin import embedded_images
from lidar_cli.data.dataset import Samples
from lidar_cli.data.folders import files
from lidar_cli.data.huggingface import hugging_face
from lidar_cli.data.sampling import draw
from lidar_cli.data.source import Candidate, Source, shuffled
from lidar_cli.data.torchvision import vision
from lidar_cli.data.webdataset import shards
from lidar_cli.errors import SettingsError
from lidar_cli.settings import EMBEDDED, SampleSettings

NAMED_DATA = ("wds", "hfds", "torch")  # prefixes; what has none is a folder or a file


def open_samples(settings: SampleSettings) -> Samples:
    """The samples that the settings name: N = max(n, clean samples) of them.

    Raises InputError if the data is not there, holds fewer images than asked for, or cannot be
    read; MissingExtra if it needs a package that is not installed.
    """
    count = max(settings.n_samples, settings.clean_samples or 0)
    return draw(_source(settings), count, skip=settings.bad_samples == "skip")


def _source(settings: SampleSettings) -> Source:
    data = EMBEDDED if settings.data is None else settings.data
    prefix, separator, name = data.partition("/")
    kind = prefix.lower() if separator and prefix.lower() in NAMED_DATA else ""
    kind = EMBEDDED if data == EMBEDDED else kind
    _check_options(data, kind, settings)
    if kind == EMBEDDED:
        return _embedded(settings.seed)
    if kind == "wds":
        return shards(data, name, settings)
    if kind == "torch":
        return vision(data, name, settings)
    if kind == "hfds":
        return hugging_face(data, name, settings)
    return files(data, settings)


def _check_options(data: str, kind: str, settings: SampleSettings) -> None:
    """Raise SettingsError for an option that has no meaning for this kind of data.

    kind: "" for a folder or a .tar file.
    """
    for option, value, is_of in (
        ("--class-level", settings.class_level, kind == ""),
        ("--image-column", settings.image_column, kind == "hfds"),
        ("--label-column", settings.label_column, kind == "hfds"),
    ):
        if value is not None and not is_of:
            kinds = "folders and .tar files" if option == "--class-level" else "hfds/NAME"
            raise SettingsError(f"{option} {value}: is for {kinds}; leave it out for --data {data}")


def _embedded(seed: int) -> Source:
    images = embedded_images()

    def candidate(index: int) -> Candidate:
        label = int(images.labels[index])
        return Candidate(f"digit-{index:04}", label, lambda: images.images[index])

    total = len(images.images)
    order = shuffled(total, seed)
    return Source(EMBEDDED, map(candidate, order), total, images.images.shape[1])
