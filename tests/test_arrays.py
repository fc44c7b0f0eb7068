import io
import json
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises
from safetensors.torch import save_file

from lidar_cli.errors import InputError, LidarError
from lidar_cli.features import numpy_headers
from lidar_cli.scoring.open import open_embeddings
from lidar_cli.settings import ScoreSettings

N, Q, D = 7, 3, 5


def save_npy(path, tensor):
    np.save(path, tensor.numpy())


def save_npz(path, tensor):
    np.savez(path, z=tensor.numpy())


def save_npz_compressed(path, tensor):
    np.savez_compressed(path, z=tensor.numpy())


def save_pt_dict(path, tensor):
    torch.save({"z": tensor, "step": 7, "name": "toy"}, path)


def save_pt_legacy(path, tensor):
    torch.save(tensor, path, _use_new_zipfile_serialization=False)


def save_safetensors(path, tensor):
    save_file({"z": tensor}, path, metadata={"made": "by a test"})


def save_hdf5(path, tensor):
    with h5py.File(path, "w") as file:
        file["deep/er/z"] = tensor.numpy()
        file["labels"] = np.arange(len(tensor))


def save_hdf5_chunked(path, tensor):
    with h5py.File(path, "w") as file:
        file.create_dataset("z", data=tensor.numpy(), chunks=True, compression="gzip")


WRITERS = [
    (".npy", save_npy),
    (".npz", save_npz),
    (".npz", save_npz_compressed),
    (".pt", lambda path, tensor: torch.save(tensor, path)),
    (".pt", save_pt_dict),
    (".pt", save_pt_legacy),
    (".safetensors", save_safetensors),
    (".h5", save_hdf5),
    (".h5", save_hdf5_chunked),
]


def open_one(path, dataset=None, views_per_sample=None):
    settings = ScoreSettings(dataset=dataset, views_per_sample=views_per_sample)
    (found,) = open_embeddings(path, settings)
    return found


def read(path, memory=10**6, **options):
    """All that a file offers, as (views, clean), from chunks of `memory` bytes."""
    found = open_one(path, **options)
    chunks = list(found.chunks(memory))
    assert [chunk.start for chunk in chunks[1:]] == [chunk.stop for chunk in chunks[:-1]]
    if memory == 1:  # too small for anything: one sample at a time
        assert all(chunk.stop - chunk.start == 1 for chunk in chunks)
    views = [chunk.views for chunk in chunks if chunk.views is not None]
    clean = [chunk.clean for chunk in chunks if chunk.clean is not None]
    return torch.cat(views) if views else None, torch.cat(clean) if clean else None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("suffix", "save"), WRITERS)
@pytest.mark.parametrize("memory", [1, 200, 10**6])
def test_every_format_gives_back_what_was_saved(tmp_path, suffix, save, dtype, memory):
    z = torch.randn(N, Q, D).to(dtype)
    save(tmp_path / f"z{suffix}", z)
    assert torch.equal(read(tmp_path / f"z{suffix}", memory)[0], z)


@pytest.mark.parametrize(("suffix", "save"), WRITERS)
@pytest.mark.parametrize("memory", [1, 10**6])
def test_flat_rows_are_the_views_of_sample_0_then_1(tmp_path, suffix, save, memory):
    z = torch.randn(N, Q, D)
    save(tmp_path / f"z{suffix}", z.reshape(N * Q, D).clone())
    assert torch.equal(read(tmp_path / f"z{suffix}", memory, views_per_sample=Q)[0], z)
    views, rows = read(tmp_path / f"z{suffix}", memory)
    assert views is None
    assert torch.equal(rows, z.reshape(N * Q, D))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_bfloat16_is_read(tmp_path, suffix):
    z = torch.randn(N, Q, D).bfloat16()
    (save_safetensors if suffix == ".safetensors" else save_pt_dict)(tmp_path / f"z{suffix}", z)
    for memory in (1, 10**6):
        assert torch.equal(read(tmp_path / f"z{suffix}", memory)[0], z)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
def test_big_endian_numbers_are_turned(tmp_path, suffix):
    z = np.random.default_rng(0).normal(size=(N, Q, D)).astype(">f4")
    path = tmp_path / f"z{suffix}"
    if suffix == ".npy":
        np.save(path, z)
    elif suffix == ".npz":
        np.savez(path, z=z)
    else:
        with h5py.File(path, "w") as file:
            file["z"] = z
    assert torch.equal(read(path)[0], torch.from_numpy(z.astype("<f4")))


def test_the_format_is_recognised_by_content_not_by_name(tmp_path):
    z = torch.randn(N, Q, D)
    save_safetensors(tmp_path / "z.npy", z)
    save_hdf5(tmp_path / "z.pt", z)
    with (tmp_path / "z.bin").open("wb") as file:
        np.save(file, z.numpy())
    for name in ("z.npy", "z.pt", "z.bin"):
        assert torch.equal(read(tmp_path / name)[0], z)


def test_fortran_order_inside_npz_is_turned(tmp_path):
    z = torch.randn(N, Q, D)
    np.savez(tmp_path / "z.npz", z=np.asfortranarray(z.numpy()))
    assert torch.equal(read(tmp_path / "z.npz")[0], z)


def save_two(path):
    """Arrays a [N, Q, D] of 0 and b [N, Q, D] of 1, in the format that the name says."""
    a, b = np.zeros((N, Q, D), np.float32), np.ones((N, Q, D), np.float32)
    if path.suffix == ".npz":
        np.savez(path, a=a, b=b)
    elif path.suffix == ".pt":
        torch.save({"a": torch.from_numpy(a), "b": torch.from_numpy(b)}, path)
    elif path.suffix == ".safetensors":
        save_file({"a": torch.from_numpy(a), "b": torch.from_numpy(b)}, path)
    else:
        with h5py.File(path, "w") as file:
            file["a"], file["b"] = a, b


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors", ".h5"])
def test_one_of_several_arrays_is_chosen_by_name(tmp_path, suffix):
    path = tmp_path / f"two{suffix}"
    save_two(path)
    assert read(path, dataset="a")[0].max() == 0
    assert read(path, dataset="b")[0].min() == 1
    found = r"found several arrays, a \(7, 3, 5\), b \(7, 3, 5\); choose one with --dataset"
    with pytest.raises(InputError, match=found):
        open_one(path)
    with pytest.raises(InputError, match="no array 'bb'; did you mean b"):
        open_one(path, dataset="bb")


def test_a_dataset_of_a_feature_file_can_be_named_with_a_leading_slash(tmp_path):
    save_hdf5(tmp_path / "z.h5", torch.ones(N, Q, D))
    assert read(tmp_path / "z.h5", dataset="/deep/er/z")[0].shape == (N, Q, D)


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors", ".h5"])
def test_arrays_that_are_no_embeddings_do_not_stand_in_the_way(tmp_path, suffix):
    z, path = torch.randn(N, Q, D), tmp_path / f"z{suffix}"
    others = {"labels": torch.arange(N), "mean": torch.zeros(D), "scale": torch.tensor(2.0)}
    if suffix == ".npz":
        np.savez(path, z=z.numpy(), **{name: value.numpy() for name, value in others.items()})
    elif suffix == ".pt":
        torch.save({"z": z, **others}, path)
    elif suffix == ".safetensors":
        save_file({"z": z, **others}, path)
    else:
        with h5py.File(path, "w") as file:
            file["z"] = z.numpy()
            file["empty"] = h5py.Empty("f4")
            for name, value in others.items():
                file[name] = value.numpy()
    assert torch.equal(read(path)[0], z)


@pytest.mark.parametrize(
    ("shape", "q", "message"),
    [
        ((4,), None, r"found z \(4\); expected one of \(n, q, d\) or \(N, d\)"),
        ((2, 2, 2, 2), None, r"found z \(2, 2, 2, 2\); expected one of"),
        ((0, 3, 5), None, r"z is \(0, 3, 5\); expected \(n, q, d\) or \(N, d\)"),
        ((4, 0), None, r"z is \(4, 0\); expected"),
        ((7, 5), 3, "7 rows are not a multiple of --views-per-sample 3"),
        ((7, 3, 5), 2, "which is q = 3, not --views-per-sample 2; leave the option out"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".h5"])
def test_a_shape_that_does_not_fit_is_named(tmp_path, suffix, shape, q, message):
    path = tmp_path / f"z{suffix}"
    if suffix == ".npy":
        save_npy(path, torch.zeros(shape))
    else:
        with h5py.File(path, "w") as file:
            file["z"] = np.zeros(shape, np.float32)
    with pytest.raises(InputError, match=message):
        open_one(path, views_per_sample=q)


def safetensors_bytes(header, data=b""):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def npy_bytes(header, data=bytes(400)):
    encoded = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(encoded).to_bytes(2, "little") + encoded + data


def saved(array):
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def zipped(*names_and_contents):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for at in range(0, len(names_and_contents), 2):
            archive.writestr(*names_and_contents[at : at + 2])
    return out.getvalue()


def torch_saved(content):
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def entry(dtype="F32", shape=(2, 2, 4), offsets=(0, 64)):
    return {"z": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


Z = np.random.default_rng(0).normal(size=(N, Q, D)).astype(np.float32)
UNKNOWN = "not a format that is known here"
DAMAGED_NPY = "the .npy header cannot be read"
DAMAGED_SAFETENSORS = "cannot be read as .npz or .pt: damaged safetensors file"
UNREADABLE = "cannot be read as .npz or .pt"
NO_ARRAY = "found no array; expected one of"

BROKEN = {
    "empty file": (b"", UNKNOWN),
    "text": (b"epoch,loss\n1,0.5\n2,0.25\n", UNKNOWN),
    "JSON": (b'{"loss": {"train": 1}}', UNKNOWN),
    "cut inside the magic": (saved(Z)[:4], UNKNOWN),
    "npy cut inside the header": (saved(Z)[:40], DAMAGED_NPY),
    "npy cut inside the data": (saved(Z)[:-1], "truncated, 547 of 548 bytes; copy or write"),
    "npy without data": (saved(Z)[:128], "truncated, 128 of 548 bytes"),
    "npy of Fortran order": (saved(np.asfortranarray(Z)), r"save np.ascontiguousarray\(array\)"),
    "npy of objects": (saved(np.array([{}, None])), "numbers are object; expected float16"),
    "npy of integers": (saved(Z.astype(np.int64)), "numbers are int64; expected float16"),
    "npy of booleans": (saved(Z > 0), "numbers are bool; expected"),
    "npy of complex numbers": (saved(Z.astype(complex)), "numbers are complex128; expected"),
    "npy of records": (saved(np.zeros(3, "f4,f4")), "expected float16, float32 or float64"),
    "npy that lies about its size": (
        npy_bytes("{'descr':'<f4','fortran_order':False,'shape':(1000000000000,3,5)}"),
        "truncated, 529 of 60,000,000,000,129 bytes",
    ),
    "npy of negative length": (
        npy_bytes("{'descr':'<f4','fortran_order':False,'shape':(-2,-2,5)}"),
        DAMAGED_NPY,
    ),
    "npy with an unclosed header": (npy_bytes("{'descr':'<f4','shape':(1,"), DAMAGED_NPY),
    "npy with code for a header": (npy_bytes("__import__('os').getpid()"), DAMAGED_NPY),
    "npy of an unknown version": (b"\x93NUMPY\x09\x00" + bytes(200), DAMAGED_NPY),
    "safetensors longer than the file": (
        safetensors_bytes(entry(offsets=(0, 64)), bytes(10)),
        DAMAGED_SAFETENSORS,
    ),
    "safetensors whose shape lies": (
        safetensors_bytes(entry(shape=(1000, 2, 4)), bytes(64)),
        DAMAGED_SAFETENSORS,
    ),
    "safetensors of negative length": (
        safetensors_bytes(entry(shape=(-2, -2, 4)), bytes(64)),
        DAMAGED_SAFETENSORS,
    ),
    "safetensors before its start": (
        safetensors_bytes(entry(offsets=(-32, 32)), bytes(64)),
        DAMAGED_SAFETENSORS,
    ),
    "safetensors backwards": (
        safetensors_bytes(entry(offsets=(64, 0)), bytes(64)),
        DAMAGED_SAFETENSORS,
    ),
    "safetensors of infinite length": (
        safetensors_bytes(entry(shape=(float("inf"), 2)), bytes(64)),
        DAMAGED_SAFETENSORS,
    ),
    "safetensors without offsets": (
        safetensors_bytes({"z": {"dtype": "F32", "shape": [1]}}),
        DAMAGED_SAFETENSORS,
    ),
    "safetensors with a number for an entry": (
        safetensors_bytes({"z": 3}),
        DAMAGED_SAFETENSORS,
    ),
    "safetensors cut in its JSON": (safetensors_bytes(b'{"z": {"dtype"'), DAMAGED_SAFETENSORS),
    "safetensors nested without end": (
        safetensors_bytes(b'{"z":' + b"[" * 100_000),
        DAMAGED_SAFETENSORS,
    ),
    "safetensors of integers": (safetensors_bytes(entry("I32"), bytes(64)), NO_ARRAY),
    "safetensors longer header than file": (b"\xff" * 7 + b"\x00{" + bytes(50), UNKNOWN),
    "npz that is cut": (zipped("z.npy", saved(Z))[:-30], UNREADABLE),
    "npz with damaged data": (
        zipped("z.npy", saved(Z)).replace(Z.tobytes()[:8], b"12345678"),
        UNREADABLE,
    ),
    "npz of objects": (zipped("z.npy", saved(np.array([{}, None]))), NO_ARRAY),
    "npz member that lies about its size": (
        zipped("z.npy", npy_bytes("{'descr':'<f4','fortran_order':False,'shape':(10,3,5)}")),
        "z: it has 529 bytes, its array 729",
    ),
    "npz with a member twice": (
        zipped("y.npy", saved(Z), "z.npy", saved(Z)).replace(b"y.npy", b"z.npy"),
        "it has two members z.npy",
    ),
    "npz of integers": (zipped("z.npy", saved(np.arange(4)[None])), NO_ARRAY),
    "zip of other things": (zipped("hello.txt", b"hello"), UNREADABLE),
    "pt that is cut": (torch_saved(torch.zeros(N, Q, D))[:-100], UNREADABLE),
    "pt of a list": (torch_saved([1, 2]), "holds a list; expected a tensor or a dict of tensors"),
    "pt of integers": (torch_saved(torch.zeros(3, 3, dtype=torch.long)), NO_ARRAY),
    "pt without data": (torch_saved({"z": torch.empty(3, 2, 4, device="meta")}), NO_ARRAY),
    "pickle of something else": (b"\x80\x04K\x07.", UNREADABLE),
    "pickle that calls": (b"\x80\x04cos\ngetpid\n)R.", UNREADABLE),
    "HDF5 signature and no more": (b"\x89HDF\r\n\x1a\n", "cannot be opened"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_one_line_with_the_reason(tmp_path, name):
    content, message = BROKEN[name]
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(LidarError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
def test_a_sparse_tensor_is_no_array(tmp_path):
    torch.save(torch.eye(4).to_sparse(), tmp_path / "z.pt")
    with raises(InputError, "no-array"):
        open_one(tmp_path / "z.pt")


def test_long_doubles_in_hdf5_are_no_array(tmp_path):
    with h5py.File(tmp_path / "z.h5", "w") as file:
        file["z"] = Z.astype(np.longdouble)
    with raises(InputError, "no-array"):
        open_one(tmp_path / "z.h5")


def test_a_directory_and_a_missing_file_have_different_errors(tmp_path):
    with pytest.raises(InputError, match="is a directory; score takes files, rank takes directo"):
        open_one(tmp_path)
    with pytest.raises(InputError, match=r"absent\.npy: no such file"):
        open_one(tmp_path / "absent.npy")


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    for suffix, save in ((".npy", save_npy), (".safetensors", save_safetensors)):
        path = tmp_path / f"z{suffix}"
        save(path, torch.randn(N, Q, D))
        chunks = open_one(path).chunks(Q * D * 4)
        chunks_before = open_one(path).chunks(Q * D * 4)
        next(chunks)
        next(chunks_before)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(InputError, match="was truncated while it was read"):
            list(chunks)
        path.unlink()
        with pytest.raises(InputError, match="cannot be read: No such file"):
            next(chunks_before)


VALID = {
    "npy": saved(Z),
    "npz": zipped("z.npy", saved(Z)),
    "pt": torch_saved({"z": torch.from_numpy(Z)}),
    "safetensors": safetensors_bytes(entry(shape=(N, Q, D), offsets=(0, Z.nbytes)), Z.tobytes()),
}


def read_or_reason(path):
    try:
        views, clean = read(path)
    except LidarError as error:
        return str(error)
    return clean if views is None else views


@pytest.mark.filterwarnings("ignore")  # the parsers warn of what they then refuse
@settings(max_examples=150)
@given(st.sampled_from(sorted(VALID)), st.data())
def test_any_damage_is_an_array_or_one_line(tmp_path, kind, data):
    """Bytes changed or cut anywhere: either still readable, or our error; never another."""
    content = bytearray(VALID[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        # the headers are where a change can mean something
        at = data.draw(st.integers(0, min(200, len(content) - 1)))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    found = read_or_reason(path)
    if isinstance(found, str):
        assert "\n" not in found
    else:
        assert found.numel() > 0


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", "<i8", "|u1", "<U3"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 3, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_header_is_read_as_numpy_reads_it(dtype, shape, order):
    content = io.BytesIO()
    np.save(content, np.zeros(shape, dtype, order))
    content.seek(0)
    record = numpy_headers.npy(content, "z.npy")
    content.seek(8)
    expected = np.lib.format.read_array_header_1_0(content)
    assert (record["shape"], record["fortran"]) == expected[:2]
    assert (record["dtype"] or record["text"], record["type"]) == (dtype, str(expected[2]))
    assert record["offset"] == content.tell()


@pytest.mark.parametrize("shape", ["(3)", "(3 4)", "(,)", "(03, 4)", "(3, , 4)"])
def test_a_shape_that_numpy_refuses_is_refused(shape):
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    content = io.BytesIO(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(InputError):
        numpy_headers.npy(content, "z.npy")


HEADER_ALONE = """
import sys
from lidar_cli.features.numpy_headers import npy
with open(sys.argv[1], "rb") as file:
    npy(file, "z.npy")
print("numpy" in sys.modules)
"""


def test_a_header_of_floating_point_numbers_needs_no_import_of_numpy(tmp_path):
    answers = []
    for dtype in ("float32", "int64"):
        np.save(tmp_path / "z.npy", np.zeros((2, 3), dtype))
        command = [sys.executable, "-c", HEADER_ALONE, str(tmp_path / "z.npy")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        answers.append(done.stdout.strip())
    assert answers == ["False", "True"]
