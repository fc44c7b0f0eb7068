"""Image data to a stable, sized list of samples that can be decoded.

Folders, tar files, Hugging Face and torchvision sets go through timm's readers, which know how
each is laid out; the bytes are decoded here, because timm's ImageDataset silently returns the next
image when one cannot be decoded. WebDataset shards are read by the webdataset package for the same
reason. Sample i of a run is the i-th of the data's order shuffled by the seed: the same data, seed
and i are always the same image, and a smaller n is a prefix of a larger one.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lidar_cli.embedded import embedded_images
from lidar_cli.errors import InputError, MissingExtra
from lidar_cli.settings import EMBEDDED, SampleSettings

TRAIN, HELD_OUT = ("train", "training"), ("val", "valid", "validation", "test", "eval")
Encoded = Callable[[int], tuple[bytes | Image.Image | np.ndarray, int]]


@dataclass(frozen=True)
class Samples:
    """N images, drawn and ordered by seed.

    labels: class numbers [N], -1 unknown, or None; for the oracle only.
    image_size: the side that all images have by construction, or None.
    """

    data: str
    ids: Sequence[str]
    labels: Sequence[int] | None
    sizes: Sequence[int]  # encoded bytes of each, 0 where not known without reading
    read: Encoded
    image_size: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """sha256 of the ordered ids and encoded sizes."""
        digest = hashlib.sha256()
        for name, size in zip(self.ids, self.sizes, strict=True):
            digest.update(f"{name}\0{size}\n".encode())
        return digest.hexdigest()

    def decode(self, i: int) -> Tensor:
        """Sample i as uint8 [height, width, 3]; safe to call from several threads.

        Raises InputError, naming the image, if it cannot be read or decoded.
        """
        try:
            content, _ = self.read(i)
            if isinstance(content, bytes):
                content = Image.open(io.BytesIO(content))
            if isinstance(content, Image.Image):
                content = np.array(_rgb(content))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{self.ids[i]} (in {self.data}): cannot be decoded as an image: {reason}; "
                "repair or remove it"
            ) from error
        return torch.from_numpy(content)

    def remembering(self, memory: int) -> Samples:
        """The same samples, each decoded once only, as far as `memory` bytes suffice."""
        decoded: dict[int, np.ndarray] = {}
        left = [memory]

        def read(i: int) -> tuple[np.ndarray, int]:
            label = self.labels[i] if self.labels is not None else -1
            if i in decoded:
                return decoded[i], label
            image = self.decode(i).numpy()
            if image.nbytes <= left[0]:
                left[0] -= image.nbytes
                decoded[i] = image
            return image, label

        return replace(self, read=read)


def open_samples(settings: SampleSettings) -> Samples:
    """The samples that the settings name: N = max(n, clean samples) of them.

    Raises InputError if the data is not there, holds fewer images than asked for, or cannot be
    read; MissingExtra if it needs a package that is not installed.
    """
    count = max(settings.n_samples, settings.clean_samples or 0)
    data = settings.data or EMBEDDED
    if data == EMBEDDED:
        return _embedded(count, settings.seed)
    prefix, _, name = data.partition("/")
    kind = prefix.lower()
    if kind == "wds":
        return _webdataset(data, name, settings, count)
    if kind == "torch":
        return _torchvision(data, name, settings, count)
    reader = _hugging_face(data, name, settings) if kind == "hfds" else _files(data, settings)
    return _drawn(data, reader, count, settings.seed)


def _embedded(count: int, seed: int) -> Samples:
    images = embedded_images()
    order = _order(EMBEDDED, len(images.images), count, seed)
    return Samples(
        data=EMBEDDED,
        ids=[f"digit-{index:04}" for index in order],
        labels=[int(images.labels[index]) for index in order],
        sizes=[0] * len(order),
        read=lambda i: (images.images[order[i]], int(images.labels[order[i]])),
        image_size=images.images.shape[1],
    )


def _files(data: str, settings: SampleSettings) -> Any:
    from timm.data.readers.reader_factory import create_reader

    root = Path(data)
    if not root.exists():
        raise InputError(
            f"--data {data}: no such file or folder; expected an image folder, a .tar file, "
            "wds/NAME, hfds/NAME, torch/NAME or 'embedded'"
        )
    if root.is_file() and root.suffix.lower() != ".tar":
        raise InputError(f"--data {data}: a file, and not a .tar; expected a folder of images")
    if root.is_dir():
        root = _split_folder(root, settings.split)
    try:
        return create_reader("", root=str(root))
    except (RuntimeError, ValueError, AssertionError, OSError) as error:
        raise InputError(f"--data {data}: no images could be listed: {_line(error)}") from error


def _split_folder(root: Path, split: str | None) -> Path:
    """The subfolder of a split, or the folder itself where it is not divided into splits."""
    asked = split or "train"
    names = next((group for group in (TRAIN, HELD_OUT) if asked in group), (asked,))
    for name in (asked, *names):
        if (root / name).is_dir():
            return root / name
    if split is not None:
        raise InputError(f"--data {root}: no split {split!r} in it; leave out --split to use all")
    return root


def _hugging_face(data: str, name: str, settings: SampleSettings) -> Any:
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise MissingExtra("data", "datasets", f"--data {data}") from error
    from timm.data.readers.reader_factory import create_reader

    root = str(settings.data_dir) if settings.data_dir else None
    try:
        return create_reader(f"hfds/{name}", root=root, split=settings.split or "train")
    except Exception as error:  # the datasets package has no common base of its errors
        raise InputError(f"--data {data}: cannot be loaded: {_line(error)}") from error


def _torchvision(data: str, name: str, settings: SampleSettings, count: int) -> Samples:
    from timm.data import create_dataset

    root = settings.data_dir
    if root is None:
        raise InputError(f"--data {data}: needs --data-dir, the folder where torchvision keeps it")
    try:
        dataset = create_dataset(f"torch/{name}", root=str(root), split=settings.split or "train")
        total = len(dataset)
    except (RuntimeError, AssertionError, OSError, ValueError) as error:
        raise InputError(f"--data {data} in {root}: cannot be loaded: {_line(error)}") from error
    order = _order(data, total, count, settings.seed)
    lock = threading.Lock()

    def read(i: int) -> tuple[Image.Image, int]:
        with lock:
            image, label = dataset[order[i]]
        return image, int(label)

    targets = getattr(dataset, "targets", None)
    return Samples(
        data=data,
        ids=[str(index) for index in order],
        labels=[int(targets[index]) for index in order] if targets is not None else None,
        sizes=[0] * len(order),
        read=read,
    )


def _drawn(data: str, reader: Any, count: int, seed: int) -> Samples:
    """Samples of a timm reader with random access."""
    order = _order(data, len(reader), count, seed)
    lock = threading.Lock()  # a tar file, and whatever else a reader keeps open, has one position

    def read(i: int) -> tuple[bytes, int]:
        with lock:
            file, label = reader[order[i]]
            with file:
                return file.read(), int(label)

    ids = [str(reader.filename(index) or index) for index in order]
    labels, sizes = _labels_and_sizes(reader, order)
    return Samples(data, ids, labels, sizes, read)


def _labels_and_sizes(reader: Any, order: Sequence[int]) -> tuple[list[int] | None, list[int]]:
    """Labels (None where the data has a single class or none) and encoded sizes, without decoding.

    What a reader of timm knows about its samples differs by reader.
    """
    if hasattr(reader, "dataset"):  # Hugging Face: the columns but the image's are cheap to read
        known = reader.label_key in reader.dataset.column_names
        column = reader.dataset.with_format(None)[reader.label_key] if known else []
        return ([int(column[index]) for index in order] if known else None), [0] * len(order)
    if hasattr(reader, "targets"):  # tar files
        labels = [int(reader.targets[index]) for index in order]
        sizes = [int(reader.samples[index][0].size) for index in order]
        several = len(reader.class_name_to_idx) > 1
    else:
        labels = [int(reader.samples[index][1]) for index in order]
        sizes = [Path(reader.samples[index][0]).stat().st_size for index in order]
        several = len(reader.class_to_idx) > 1
    return (labels if several else None), sizes


def _webdataset(data: str, name: str, settings: SampleSettings, count: int) -> Samples:
    """The first N samples of a stream whose shards are shuffled by the seed, held encoded."""
    try:
        import webdataset
    except ImportError as error:
        raise MissingExtra("data", "webdataset", f"--data {data}") from error
    shards = _shards(data, name, settings)
    order = np.random.RandomState(settings.seed % 2**32).permutation(len(shards))
    ids, labels, contents = [], [], []
    try:
        stream = webdataset.DataPipeline(
            webdataset.SimpleShardList([shards[index] for index in order]),
            webdataset.tarfile_to_samples(handler=webdataset.reraise_exception),
        )
        for fields in stream:
            if len(ids) == count:
                break
            content = next((fields[key] for key in _IMAGE_KEYS if key in fields), None)
            if content is not None:
                ids.append(str(fields["__key__"]))
                labels.append(int(fields.get("cls", b"-1")))
                contents.append(content)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"--data {data}: a shard cannot be read: {_line(error)}") from error
    if len(ids) < count:
        raise _too_few(data, len(ids), count)
    return Samples(
        data=data,
        ids=ids,
        labels=labels if any(label >= 0 for label in labels) else None,
        sizes=[len(content) for content in contents],
        read=lambda i: (contents[i], labels[i]),
    )


_IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "ppm", "image")


def _shards(data: str, name: str, settings: SampleSettings) -> list[str]:
    """Shard files: of a split in the folder's info file, of a brace pattern, or all tar files."""
    from timm.data.readers.reader_wds import ReaderWds

    folder = (settings.data_dir or Path()) / name
    split = settings.split
    if not folder.is_dir():
        raise InputError(f"--data {data}: no folder {folder}; expected one that holds .tar shards")
    if split is not None or any((folder / info).is_file() for info in ("_info.json", "info.json")):
        try:
            reader = ReaderWds(root=str(folder), split=split or "train")
        except (RuntimeError, KeyError, ValueError) as error:
            raise InputError(f"--data {data}: split not found: {_line(error)}") from error
        return [str(folder / shard) for shard in reader.split_info.filenames]
    shards = sorted(str(shard) for shard in folder.glob("*.tar"))
    if not shards:
        raise InputError(f"--data {data}: no .tar shards in {folder}")
    return shards


def _order(data: str, total: int, count: int, seed: int) -> list[int]:
    """The first `count` of the data's indices shuffled by seed. Raises InputError if too few."""
    if count > total:
        raise _too_few(data, total, count)
    # RandomState's stream is frozen for good, unlike that of numpy's newer generators.
    shuffled = np.random.RandomState(seed % 2**32).permutation(total)
    return [int(index) for index in shuffled[:count]]


def _too_few(data: str, found: int, asked: int) -> InputError:
    return InputError(f"--data {data}: holds {found} images, {asked} were asked for; lower -n")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns when it must drop a palette's transparency
    return image.convert("RGB")


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
