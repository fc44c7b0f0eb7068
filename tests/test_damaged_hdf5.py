"""Files made so that HDF5 hangs, crashes or swells cost a child process, and get one line.

Each is first shown to do it to plain h5py, or, where a later HDF5 is better, to be damaged.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import psutil
import pytest
from feature_files import LAYOUT, PROVENANCE, complete
from make import environment
from raising import raises

from lidar_cli.errors import FeatureFileError, Unresumable
from lidar_cli.features import hdf5, writer
from lidar_cli.features.reader import read_hdf5, read_interrupted, read_labels, read_provenance
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.runtime.sandbox import SHARED, Limits

if not hasattr(os, "fork"):
    pytest.skip("these tests fork to measure", allow_module_level=True)

LABELS = [0, 1, -1, 2, 0, 1, 2, 3]
BIG = 2**28  # bytes that one damaged file makes HDF5 take
ROOM = 2**28  # bytes of the child, two thirds of which its libraries map


def endless(path: Path) -> None:
    """HDF5 steps through the texts of a file by their sizes; the last, of free room, is made 0."""
    content = bytearray(path.read_bytes())
    at = content.index(b"GCOL") + 16
    while content[at : at + 2] != b"\0\0":
        at += 16 + -(-int.from_bytes(content[at + 8 : at + 16], "little") // 8) * 8
    content[at + 8 : at + 16] = bytes(8)
    path.write_bytes(content)


def unlisted(path: Path) -> None:
    """Endless, and with an attribute in whose place there is none, so that none are listed."""
    endless(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"version\0") - 8] = 0
    path.write_bytes(content)


def crashing(path: Path) -> None:
    """A type of text that is no kind of text that there is."""
    content = bytearray(path.read_bytes())
    at = content.index(b"format\0\0\x19\x01")
    content[at + 9] = 0xFF
    path.write_bytes(content)


def swelling(path: Path) -> None:
    """A text of sixteen bytes that says to have a quarter of a gigabyte."""
    content = bytearray(path.read_bytes())
    reference = struct.pack("<IQI", len("lidar-features"), content.index(b"GCOL"), 1)
    assert content.count(reference) == 1
    at = content.index(reference)
    content[at : at + 4] = struct.pack("<I", BIG)
    path.write_bytes(content)


def bomb(name: str, size: int = BIG) -> Callable[[Path], None]:
    """A chunk that unpacks to far more than a chunk."""

    def damage(path: Path) -> None:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        part = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
        sum_of_zeros = ((size % 65521) << 16 | 1).to_bytes(4, "big")
        packed = b"\x78\xda" + part * (size // 2**20) + packer.flush() + sum_of_zeros
        with h5py.File(path, "r+") as file:
            values = file[name][()]
            del file[name]
            more = {"chunks": values.shape, "compression": "gzip"}
            made = file.create_dataset(name, values.shape, values.dtype, **more)
            made.id.write_direct_chunk((0,) * values.ndim, packed)

    return damage


def alone(work: Callable[[], object], cpu: tuple[int, int] | None = None) -> tuple[str, int]:
    """How work ends in a process of its own, and the bytes that it and its children take for it.

    What it returned, the name and text of what it raised, or the signal that ended it.
    """
    source, sink = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            faulthandler.disable()
            os.write(sink, f"{psutil.Process().memory_info().rss}\n".encode())
            if cpu:
                resource.setrlimit(resource.RLIMIT_CPU, cpu)
            outcome = str(work())
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        finally:
            os.write(sink, outcome.encode())
            os._exit(0)
    os.close(sink)
    with os.fdopen(source) as pipe:
        before, _, outcome = pipe.read().partition("\n")
    _, status, used = os.wait4(child, 0)
    if os.WIFSIGNALED(status):
        outcome = signal.Signals(os.WTERMSIG(status)).name
    return outcome, 1024 * used.ru_maxrss - int(before)


def plain(path: Path) -> object:
    """The attribute that says what file it is, by h5py."""
    with h5py.File(path) as file:
        return file.attrs["format"]


READERS: list[Callable[[Path], object]] = [
    read_provenance,
    read_labels,
    read_hdf5,
    lambda path: FeatureWriter.resume(path.with_suffix(""), LAYOUT, PROVENANCE),
    lambda path: read_interrupted(path.with_suffix("")),
]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is complete, under the name of an interrupted one, for every reader."""
    monkeypatch.setattr(SHARED, "limits", Limits(seconds=1, memory=ROOM))
    return complete(tmp_path / "f.h5", labels=LABELS).rename(tmp_path / "f.h5.partial")


@pytest.mark.parametrize(
    ("damage", "readers"),
    [
        (endless, READERS[-1:]),
        pytest.param(endless, READERS, marks=pytest.mark.nightly),
        (unlisted, READERS[:1]),
        (crashing, READERS),
    ],
)
def test_hdf5_is_lost_in_a_child(
    damage: Callable[[Path], None], readers: list[Callable[[Path], object]], path: Path
) -> None:
    damage(path)
    found = {
        "SIGXCPU": "takes more than 1 s of processor time to read",
        "SIGSEGV": "crashes the process that reads it (SIGSEGV)",
    }.get(alone(lambda: plain(path), cpu=(1, 2))[0], "damaged")
    for read in readers:
        with pytest.raises(FeatureFileError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert found in str(caught.value)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("damage", "plainly"),
    [
        (swelling, plain),
        (bomb("samples/done"), lambda path: h5py.File(path)["samples/done"][:]),
        (bomb("embeddings/backbone/crc32"), None),
        (bomb("samples/label"), None),
        (bomb("embeddings/backbone/views"), None),
        (bomb("embeddings/backbone/clean"), None),
    ],
)
def test_hdf5_swells_in_a_child_no_more_than_it_may(
    damage: Callable[[Path], None], plainly: Callable[[Path], object] | None, path: Path
) -> None:
    damage(path)
    if plainly:
        assert alone(lambda: plainly(path))[1] > BIG * 3 // 4

    def read() -> None:
        read_labels(path)
        for found in read_hdf5(path):
            list(found.chunks(10**6))

    outcome, taken = alone(read)  # with what the children of that process take
    assert outcome.startswith(f"FeatureFileError: {path}: ")
    assert taken < BIG // 2


def test_a_text_that_is_a_thousand_texts(path: Path) -> None:
    """Of a list, each entry says where its text lies: all say the same, of half a megabyte."""
    with h5py.File(path, "r+") as file:
        file.attrs["long"] = "x" * 2**19
        del file.attrs["provenance"]
        file.attrs["provenance"] = [f"{i:08}" for i in range(2000)]
    content = bytearray(path.read_bytes())
    texts = [struct.unpack_from("<IQ", content, at) for at in range(len(content) - 12)]
    long = next(
        at
        for at, (size, heap) in enumerate(texts)
        if size == 2**19 and content[heap : heap + 4] == b"GCOL"
    )
    at = next(
        at
        for at, (size, heap) in enumerate(texts)
        if size == 8 and content[heap : heap + 4] == b"GCOL" and texts[at + 16] == (size, heap)
    )
    content[at : at + 16 * 2000] = content[long : long + 16] * 2000
    path.write_bytes(content)

    def listed() -> int:
        with h5py.File(path) as file:
            return sum(map(len, file.attrs["provenance"]))

    outcome, taken = alone(listed)
    assert outcome == str(2000 * 2**19)
    assert taken > 2**29
    outcome, taken = alone(lambda: read_provenance(path))
    assert "provenance is not a text" in outcome
    assert taken < 2**26


def test_what_a_reader_raises_is_its_own(path: Path) -> None:
    with raises(FeatureFileError, "cannot-be-opened"):
        read_provenance(path.with_name("nothing.h5"))
    with h5py.File(path, "r+") as file:
        file.attrs["provenance"] = "[]"
    with pytest.raises(FeatureFileError, match="is not the record of an extraction"):
        read_provenance(path)


def test_where_no_process_is_notified_of_a_childs_end(path: Path) -> None:
    """Some supervisors ignore SIGCHLD, and so does what they start."""

    def read() -> object:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        return read_provenance(path)["seed"]

    os.utime(path, (1, 1))  # so that its description is not cached
    assert alone(read)[0] == str(PROVENANCE["seed"])


def test_a_file_that_changes_while_its_rows_are_read(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        rows = file["embeddings/backbone/clean"][:]
        del file["embeddings/backbone/clean"]
        file.create_dataset("embeddings/backbone/clean", data=rows, chunks=(1, 5))
    (found,) = read_hdf5(path, "backbone")
    os.utime(path, (1, 1))
    with pytest.raises(FeatureFileError, match="changed while it was read; run it again"):
        list(found.chunks(10**6))


def test_resume_writes_only_into_the_file_that_was_walked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time changes after the child has looked at it, before HDF5 opens it here."""

    def late(name: Path) -> object:
        walked = hdf5.walk_everything(name)
        os.utime(name, (1, 1))
        return walked

    before = path.read_bytes()
    monkeypatch.setattr(writer, "walk_everything", late)
    with raises(Unresumable, "changed"):
        FeatureWriter.resume(path.with_suffix(""), LAYOUT, PROVENANCE)
    assert path.read_bytes() == before


def test_readers_open_nothing_with_hdf5_here(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(h5py, "File", refused)
    for read in READERS:
        if read is not READERS[3]:  # resuming is writing
            read(path)
    assert [len(list(one.chunks(10**6))) for one in read_hdf5(path)] == [2, 2]


PROGRAM = f"""
import resource, sys
from lidar_cli.runtime.sandbox import SHARED, Limits
from lidar_cli.__main__ import main
SHARED.limits = Limits(seconds=int(sys.argv.pop(1)), memory={ROOM})
try:
    main()
finally:
    print(*(resource.getrusage(whose).ru_maxrss for whose in (-1, 0)))  # of children, of its own
"""


def command(seconds: int, *words: object) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(seconds), *map(str, words)]


def test_the_program_goes_on_after_each(tmp_path: Path) -> None:
    """And scores the file that is sound."""
    damages = [endless, crashing, swelling, bomb("embeddings/backbone/views")]
    paths = [complete(tmp_path / f"{at}.h5") for at in range(len(damages) + 1)]
    for path, damage in zip(paths, damages, strict=False):
        damage(path)
    ended = subprocess.run(
        command(1, "score", *paths, "--csv", "--device", "cpu"),
        capture_output=True,
        text=True,
        timeout=100,
        env=environment(),
        cwd=tmp_path,
    )
    assert ended.returncode == 3
    *table, peaks = ended.stdout.splitlines()
    children, own = map(int, peaks.split())
    assert [line.split(",")[0] for line in table] == ["file", str(paths[-1]), str(paths[-1])]
    for path, error in zip(paths[:-1], ended.stderr.splitlines(), strict=True):
        assert error.startswith(f"error: {path}: ")
    assert children - own < BIG // 1024


def test_ctrl_c_leaves_no_child(tmp_path: Path) -> None:
    path = complete(tmp_path / "f.h5")
    endless(path)
    with subprocess.Popen(
        command(60, "score", path), stderr=subprocess.PIPE, env=environment(), cwd=tmp_path
    ) as program:
        here = psutil.Process(program.pid)
        while not (children := here.children()) or children[0].cpu_times().user < 0.5:
            assert program.poll() is None
            time.sleep(0.05)
        program.send_signal(signal.SIGINT)
        _, outcome = program.communicate(timeout=30)
    assert (program.returncode, outcome) == (130, b"interrupted\n")
    assert not children[0].is_running()
