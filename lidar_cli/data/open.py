"""Opens the data that `--data` names."""

from __future__ import annotations

from pathlib import Path

from lidar_cli.data.builtin import embedded_images
from lidar_cli.data.check import check_data, is_factory
from lidar_cli.data.dataset import (
    Candidate,
    Samples,
    Source,
    draw,
    parse_bands,
    shuffled,
)
from lidar_cli.data.folders import folder_source
from lidar_cli.data.huggingface import hugging_face_source
from lidar_cli.data.tar import tar_source, webdataset_source
from lidar_cli.data.torchvision import torchvision_source
from lidar_cli.settings import EMBEDDED, FEWEST_SAMPLES, DefaultCount, SampleSettings

# By prefix, the PREFIXES of `check`; data without a prefix are a folder or a .tar file.
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
    if is_factory(settings.data):
        from lidar_cli.data.factory import open_items

        check_data(settings)
        return open_items(settings)
    count = max(settings.n_samples, settings.clean_samples or 0)
    fewest = max(FEWEST_SAMPLES, settings.clean_samples or 0)
    if not isinstance(settings.n_samples, DefaultCount):
        fewest = count
    skip, bands = settings.bad_samples == "skip", parse_bands(settings.bands)
    return draw(_open_source(settings), count, skip, fewest, bands)


def sample_count(settings: SampleSettings, samples: Samples) -> int:
    """n: of the settings, or if that is a default, the number of samples if it is less."""
    n = settings.n_samples
    return min(n, len(samples)) if isinstance(n, DefaultCount) else n


def image_count(settings: SampleSettings) -> int | None:
    """How many images the data hold; none is read. None for a stream. Raises LidarError."""
    if is_factory(settings.data):
        from lidar_cli.data.factory import make

        return len(make(str(settings.data)))
    return _open_source(settings).total


def _open_source(settings: SampleSettings) -> Source:
    data, kind = check_data(settings)
    if kind == EMBEDDED:
        return _embedded(settings.seed)
    if kind:
        return SOURCES[kind](data, data.partition("/")[2], settings)
    path = Path(data)
    source = folder_source if path.is_dir() else tar_source
    return source(data, path, settings)


def _embedded(seed: int) -> Source:
    images = embedded_images()

    def candidate(index: int) -> Candidate:
        label = int(images.labels[index])
        return Candidate(f"digit-{index:04}", label, lambda: images.images[index])

    total = len(images.images)
    order = shuffled(total, seed)
    return Source(EMBEDDED, map(candidate, order), total, images.images.shape[1])
