"""Folders of images and tar files, listed by timm's readers."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

from lidar_cli.errors import InputError, first_line
from lidar_cli.runtime.files import open_regular
from lidar_cli.samples.source import Candidate, Source, as_text, shuffled
from lidar_cli.settings import SampleSettings

SAME_SPLIT = (("train", "training"), ("val", "valid", "validation", "eval", "evaluation"))
IMAGE_SUFFIXES = ".jpg;.jpeg;.png;.ppm;.pgm;.bmp;.tif;.tiff;.webp"  # as torchvision's folders


def files(data: str, settings: SampleSettings) -> Source:
    """The images of a folder or of a tar file, perhaps one of tar files.

    Raises InputError if there are none, or not of the split that is asked for.
    """
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
    try:
        reader = _reader(root, is_tar)
    except (RuntimeError, ValueError, AssertionError, OSError, EOFError, tarfile.TarError) as error:
        raise InputError(
            f"--data {data}: no images could be listed: {first_line(error)}"
        ) from error
    labelled = len(reader.class_name_to_idx if is_tar else reader.class_to_idx) > 1

    def candidate(index: int) -> Candidate:
        entry = reader.samples[index]

        def read() -> bytes:
            return _member(root, *entry) if is_tar else _content(Path(entry[0]))

        label = reader.targets[index] if is_tar else entry[1]
        return Candidate(as_text(reader.filename(index)), int(label) if labelled else -1, read)

    order = shuffled(len(reader), settings.seed)
    return Source(data, map(candidate, order), len(order))


def _reader(root: Path, is_tar: bool) -> Any:
    from timm.data.readers import reader_image_in_tar
    from timm.data.readers.reader_factory import create_reader

    if is_tar:  # not by create_reader, which takes .TAR for a folder
        in_tar: Any = reader_image_in_tar.ReaderImageInTar
        return in_tar(str(root))
    return create_reader("", root=str(root), input_key=IMAGE_SUFFIXES)


def _content(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def _member(path: Path, member: tarfile.TarInfo, _: object, inner: tarfile.TarInfo | None) -> bytes:
    """A file of a tar file, or of a tar file inside it, read in place by any number of threads."""
    with open_regular(path) as file:
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
