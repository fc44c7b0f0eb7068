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
import os
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lidar_cli.embedded import embedded_images
from lidar_cli.errors import InputError, MissingExtra, first_line
from lidar_cli.settings import EMBEDDED, SampleSettings

SAME_SPLIT = (("train", "training"), ("val", "valid", "validation", "eval", "evaluation"))
IMAGE_SUFFIXES = ".jpg;.jpeg;.png;.ppm;.pgm;.bmp;.tif;.tiff;.webp"  # as torchvision's folders
READERS = 8  # threads that read files for the fingerprint
Content = bytes | Image.Image | np.ndarray  # of one image: encoded, or decoded already


@dataclass(frozen=True)
class Samples:
    """N images, drawn and ordered by seed.

    labels: class numbers [N], -1 unknown, or None; for the oracle only.
    image_size: the side that all images have by construction, or None.
    fingerprint: sha256 of the ordered ids and contents: equal where the images are, wherever they
    lie, so that features of one place serve another and never those of changed images.
    """

    data: str
    ids: Sequence[str]
    labels: Sequence[int] | None
    read: Callable[[int], Content]
    image_size: int | None = None
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def decode(self, i: int) -> Tensor:
        """Sample i as uint8 [height, width, 3]; safe to call from several threads.

        Raises InputError, naming the image, if it cannot be read or decoded.
        """
        try:
            content = self.read(i)
            if isinstance(content, bytes):
                content = Image.open(io.BytesIO(content))
            if isinstance(content, Image.Image):
                content = np.array(_rgb(content))
        except InputError:
            raise
        except Exception as error:  # damaged bytes make decoders raise almost anything
            unknown = isinstance(error, UnidentifiedImageError)
            reason = "of no known image format" if unknown else first_line(error)
            raise InputError(
                f"{self.ids[i]} (in {self.data}): cannot be decoded as an image: {reason}; "
                "repair or remove it"
            ) from error
        return torch.from_numpy(content)

    def remembering(self, memory: int) -> Samples:
        """The same samples, each decoded once only, as far as `memory` bytes suffice."""
        decoded: dict[int, np.ndarray] = {}
        left = [memory]

        def read(i: int) -> np.ndarray:
            if i in decoded:
                return decoded[i]
            image = self.decode(i).numpy()
            if image.nbytes <= left[0]:
                left[0] -= image.nbytes
                decoded[i] = image
            return image

        return replace(self, read=read)


def open_samples(settings: SampleSettings) -> Samples:
    """The samples that the settings name: N = max(n, clean samples) of them.

    Raises InputError if the data is not there, holds fewer images than asked for, or cannot be
    read; MissingExtra if it needs a package that is not installed.
    """
    samples = _named(settings, max(settings.n_samples, settings.clean_samples or 0))
    return replace(samples, fingerprint=_fingerprint(samples))


def _named(settings: SampleSettings, count: int) -> Samples:
    data = EMBEDDED if settings.data is None else settings.data
    if data == EMBEDDED:
        return _embedded(count, settings.seed)
    prefix, _, name = data.partition("/")
    kind = prefix.lower()
    if kind == "wds":
        return _webdataset(data, name, settings, count)
    if kind == "torch":
        return _torchvision(data, name, settings, count)
    if kind == "hfds":
        return _hugging_face(data, name, settings, count)
    return _files(data, settings, count)


def _fingerprint(samples: Samples) -> str:
    """Reads every sample once, without decoding what is encoded."""

    def checksum(i: int) -> int:
        try:
            content = samples.read(i)
        except InputError:
            raise
        except Exception as error:  # whatever a reader of other people's files meets
            raise InputError(
                f"{samples.ids[i]} (in {samples.data}): cannot be read: {first_line(error)}"
            ) from error
        if isinstance(content, Image.Image):
            content = content.tobytes() + f"{content.mode} {content.size}".encode()
        return zlib.crc32(content if isinstance(content, bytes) else content.tobytes())

    digest = hashlib.sha256()
    with ThreadPoolExecutor(READERS) as pool:
        for name, crc in zip(samples.ids, pool.map(checksum, range(len(samples))), strict=True):
            digest.update(f"{name}\0{crc}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _embedded(count: int, seed: int) -> Samples:
    images = embedded_images()
    order = _order(EMBEDDED, len(images.images), count, seed)
    return Samples(
        data=EMBEDDED,
        ids=[f"digit-{index:04}" for index in order],
        labels=[int(images.labels[index]) for index in order],
        read=lambda i: images.images[order[i]],
        image_size=images.images.shape[1],
    )


def _files(data: str, settings: SampleSettings, count: int) -> Samples:
    from timm.data.readers import reader_image_in_tar
    from timm.data.readers.reader_factory import create_reader

    root = Path(data)
    if not root.exists():
        raise InputError(
            f"--data {data}: no such file or folder; expected an image folder, a .tar file, "
            "wds/NAME, hfds/NAME, torch/NAME or 'embedded'"
        )
    is_tar = root.is_file()
    if is_tar and root.suffix.lower() != ".tar":
        raise InputError(f"--data {data}: a file, and not a .tar; expected a folder of images")
    if not is_tar:
        root = _split_folder(root, settings.split)
    elif settings.split is not None:
        raise InputError(f"--data {data}: a .tar file has no splits; leave out --split")
    reader: Any
    try:
        # Not by create_reader, which takes .TAR for a folder.
        in_tar: Any = reader_image_in_tar.ReaderImageInTar
        reader = (
            in_tar(str(root))
            if is_tar
            else create_reader("", root=str(root), input_key=IMAGE_SUFFIXES)
        )
    except (RuntimeError, ValueError, AssertionError, OSError, EOFError, tarfile.TarError) as error:
        raise InputError(
            f"--data {data}: no images could be listed: {first_line(error)}"
        ) from error
    order = _order(data, len(reader), count, settings.seed)

    def read(i: int) -> bytes:
        if is_tar:
            return _member(root, *reader.samples[order[i]])
        return Path(reader.samples[order[i]][0]).read_bytes()

    ids = [_text(reader.filename(index)) for index in order]
    if is_tar:
        labels = [int(reader.targets[index]) for index in order]
        several = len(reader.class_name_to_idx) > 1
    else:
        labels = [int(reader.samples[index][1]) for index in order]
        several = len(reader.class_to_idx) > 1
    return Samples(data, ids, labels if several else None, read)


def _member(path: Path, member: tarfile.TarInfo, _: object, inner: tarfile.TarInfo | None) -> bytes:
    """A file of a tar file, or of a tar file inside it, read in place by any number of threads."""
    with path.open("rb") as file:
        file.seek(member.offset_data + (inner.offset_data if inner is not None else 0))
        content = file.read(member.size)
    if len(content) < member.size:
        raise EOFError("the tar file ends inside it")
    return content


def _split_folder(root: Path, split: str | None) -> Path:
    """The subfolder of a split, or the folder itself where it is not divided into splits."""
    asked = split or "train"
    same = [name for group in SAME_SPLIT if asked in group for name in group]
    for name in (asked, *same):
        if (root / name).is_dir():
            return root / name
    if split is not None:
        raise InputError(f"--data {root}: no split {split!r} in it; leave out --split to use all")
    return root


def _hugging_face(data: str, name: str, settings: SampleSettings, count: int) -> Samples:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("data", "datasets", f"--data {data}") from error
    from timm.data.readers.reader_factory import create_reader

    root = str(settings.data_dir) if settings.data_dir else None
    split = settings.split or "train"
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        reader = create_reader(f"hfds/{name}", root=root, split=split)
    except Exception as error:  # the datasets package has no common base of its errors
        raise InputError(f"--data {data}: cannot be loaded: {first_line(error)}") from error
    order = _order(data, len(reader), count, settings.seed)
    images = reader.dataset.select_columns([reader.image_key])
    classes = reader.dataset.remove_columns(reader.image_key)
    lock = threading.Lock()

    def read(i: int) -> bytes:
        with lock:
            image = images[order[i]][reader.image_key]
        return image["bytes"] or Path(image["path"]).read_bytes()

    ids: list[str] = []
    labels: list[int] = []
    for index in order:
        image: dict[str, Any] = images[index][reader.image_key] or {}  # a cell may be empty
        content, path = image.get("bytes"), image.get("path")
        if not content and not path:
            raise InputError(
                f"--data {data}: row {index} has no image in the column {reader.image_key!r}; "
                f"its other columns: {', '.join(classes.column_names) or 'none'}"
            )
        ids.append(f"{split}/{index}" + (f"/{_text(Path(path).name)}" if path else ""))
        label = classes[index].get(reader.label_key) if classes.column_names else None
        labels.append(label if isinstance(label, int) else -1)
    known = any(label >= 0 for label in labels)
    return Samples(data, ids, labels if known else None, read)


def _torchvision(data: str, name: str, settings: SampleSettings, count: int) -> Samples:
    from timm.data.dataset_factory import create_dataset

    root, split = settings.data_dir, settings.split or "train"
    if root is None:
        raise InputError(f"--data {data}: needs --data-dir, the folder where torchvision keeps it")
    try:
        dataset = create_dataset(f"torch/{name}", root=str(root), split=split)
        total = len(dataset)
    except Exception as error:  # the many data sets share no base of their errors
        raise InputError(
            f"--data {data} in {root}: cannot be loaded: {first_line(error)}"
        ) from error
    order = _order(data, total, count, settings.seed)
    files = getattr(dataset, "imgs", None)  # those that are folders name their files
    if files is not None:
        paths = [Path(files[index][0]) for index in order]
        labels = [int(files[index][1]) for index in order]
        ids = [_text(os.path.relpath(path, root)) for path in paths]
        return Samples(data, ids, labels, lambda i: paths[i].read_bytes())
    lock = threading.Lock()

    def read(i: int) -> Image.Image:
        with lock:
            image: Image.Image = dataset[order[i]][0]
        return image

    targets = getattr(dataset, "targets", None)
    return Samples(
        data=data,
        ids=[f"{split}/{index}" for index in order],
        labels=[int(targets[index]) for index in order] if targets is not None else None,
        read=read,
    )


def _webdataset(data: str, name: str, settings: SampleSettings, count: int) -> Samples:
    """The first N samples of a stream whose shards are shuffled by the seed, held encoded."""
    try:
        from webdataset import tariterators
    except ImportError as error:
        raise MissingExtra("data", "webdataset", f"--data {data}") from error
    shards = _shards(data, name, settings)
    order = np.random.RandomState(settings.seed % 2**32).permutation(len(shards))
    ids: list[str] = []
    labels: list[int] = []
    contents: list[bytes] = []
    for shard in (shards[index] for index in order):
        try:
            with Path(shard).open("rb") as file:
                files = tariterators.tar_file_expander([{"url": shard, "stream": file}])
                for fields in tariterators.group_by_keys(files):
                    if len(ids) == count:
                        break
                    content = next((fields[key] for key in _IMAGE_KEYS if key in fields), None)
                    if content is not None:
                        ids.append(str(fields["__key__"]))
                        labels.append(_class(data, fields))
                        contents.append(content)
        except (OSError, ValueError, EOFError, tarfile.TarError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            reason = reason or str(error.args[0] if error.args else type(error).__name__)
            raise InputError(
                f"--data {data}: the shard {shard} cannot be read: {reason.splitlines()[0]}"
            ) from error
        if len(ids) == count:
            break
    if len(ids) < count:
        raise _too_few(data, len(ids), count)
    return Samples(
        data=data,
        ids=ids,
        labels=labels if any(label >= 0 for label in labels) else None,
        read=lambda i: contents[i],
    )


def _class(data: str, fields: dict[str, Any]) -> int:
    text = fields.get("cls", b"-1")
    try:
        return int(text)
    except ValueError as error:
        raise InputError(
            f"--data {data}: the class of {fields['__key__']} is {text!r}; expected a number"
        ) from error


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
            raise InputError(f"--data {data}: split not found: {first_line(error)}") from error
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
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        deep = np.asarray(image, np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("grey levels beyond 16 bits; expected 8 or 16 bits a channel")
        image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    return image.convert("RGB")


def _text(name: str) -> str:
    """A file name as text that can be stored, also where its bytes are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
