import json
import os
import re
import signal
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from command import run_command
from feature_files import (
    CLEAN,
    IDS,
    LAYOUT,
    PROVENANCE,
    WIDTHS,
    N,
    Q,
    complete,
    create,
    embeddings,
    read_all,
    write,
)
from make import environment
from raising import raises

from lidar_cli.errors import DegenerateFeatures, FeatureFileError, Unresumable
from lidar_cli.features.reader import read_hdf5, read_interrupted, read_labels, read_provenance
from lidar_cli.features.schema import Layout, partial_path
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.runtime.files import is_hdf5


def flip_a_byte(path, dataset, row):
    """Change one byte of one row on disk, behind HDF5's back."""
    with h5py.File(path, "r") as file:
        item = file[dataset]
        at = item.id.get_offset() + row * item.dtype.itemsize * int(np.prod(item.shape[1:]))
    with path.open("r+b") as raw:
        raw.seek(at + 2)
        byte = raw.read(1)
        raw.seek(at + 2)
        raw.write(bytes([byte[0] ^ 0x10]))


def test_the_file_is_laid_out_as_promised(tmp_path):
    path = complete(tmp_path / "f.h5", labels=[0, 1, -1, 2, 0, 1, 2, 3])
    views, clean = embeddings()
    assert is_hdf5(path)
    assert not partial_path(path).exists()
    with h5py.File(path) as file:
        assert file.attrs["format"] == "lidar-features"
        assert file.attrs["version"] == 1
        assert json.loads(file.attrs["provenance"]) == {**PROVENANCE, "size": [8, 8]}
        assert sorted(file["embeddings"]) == ["backbone", "projector"]
        for layer in WIDTHS:
            group = file["embeddings"][layer]
            np.testing.assert_array_equal(group["views"][:], views[layer].numpy())
            np.testing.assert_array_equal(group["clean"][:], clean[layer].numpy())
            assert group["crc32"].dtype == np.uint32
            assert group["crc32"].shape == (CLEAN,)
        assert [name.decode() for name in file["samples/id"][:]] == IDS
        assert file["samples/label"].dtype == np.int64
        assert file["samples/done"].dtype == np.uint8
        assert file["samples/done"][:].all()
    assert read_labels(path).tolist() == [0, 1, -1, 2, 0, 1, 2, 3]
    assert read_provenance(path)["architecture"] == "toy"


def test_data_without_labels_has_no_label_dataset(tmp_path):
    assert read_labels(complete(tmp_path / "f.h5")) is None


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_datasets_are_contiguous_and_allocated_before_the_first_row(tmp_path, storage):
    with create(tmp_path / "f.h5", storage) as writer:
        file = writer._file
        assert not file["samples/done"][:].any()
        for layer, d in WIDTHS.items():
            for name, shape in (("views", (N, Q, d)), ("clean", (CLEAN, d))):
                item = file["embeddings"][layer][name]
                assert (item.shape, item.dtype, item.chunks) == (shape, storage, None)
                assert item.id.get_offset() is not None  # its place in the file is taken
                assert item.id.get_storage_size() == item.size * item.dtype.itemsize


def test_a_reservation_without_a_finished_sample_goes_with_its_writer(tmp_path):
    with create(tmp_path / "f.h5"):
        assert [path.name for path in tmp_path.iterdir()] == ["f.h5.partial.begun"]
    assert list(tmp_path.iterdir()) == []
    with create(tmp_path / "f.h5") as writer:
        write(writer, 0, 1)
        assert [path.name for path in tmp_path.iterdir()] == ["f.h5.partial"]
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5.partial"]


@pytest.mark.parametrize("name", ["f.h5.partial", "f.h5.partial.begun"])
@pytest.mark.parametrize("kind", ["a link", "a pipe"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_stands_in_the_place_of_a_partial_file_is_named(tmp_path, name, kind, overwrite):
    planted = tmp_path / name
    if kind == "a link":
        planted.symlink_to(tmp_path / "nowhere")
    else:
        os.mkfifo(planted)
    with pytest.raises(FeatureFileError, match=f"{name}: {kind}, not a file; remove it"):
        create(tmp_path / "f.h5", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name == "f.h5.partial":
        with raises(FeatureFileError, "not-a-file"):
            FeatureWriter.resume(tmp_path / "f.h5", LAYOUT, PROVENANCE)


@pytest.mark.parametrize("memory", [1, 100, 10**6])
def test_reading_gives_back_every_layer_at_any_chunk_size(tmp_path, memory):
    path = complete(tmp_path / "f.h5")
    views, clean = embeddings()
    assert [found.layer for found in read_hdf5(path)] == ["backbone", "projector"]
    assert [found.layer for found in read_hdf5(path, "projector, backbone")] == [
        "projector",
        "backbone",
    ]
    for layer in WIDTHS:
        found_views, found_clean = read_all(path, layer, memory)
        assert torch.equal(found_views, views[layer])
        assert torch.equal(found_clean, clean[layer])


def test_float16_is_stored_rounded_once(tmp_path):
    path = complete(tmp_path / "f.h5", storage="float16")
    views, clean = embeddings()
    found = read_all(path, "backbone")
    assert torch.equal(found[0], views["backbone"].half())
    assert torch.equal(found[1], clean["backbone"].half())


def test_samples_may_be_written_in_any_order(tmp_path):
    with create(tmp_path / "f.h5") as writer:
        for first, last in ((6, 8), (2, 6), (0, 2)):
            write(writer, first, last)
        path = writer.finish()
    assert torch.equal(read_all(path, "backbone")[0], embeddings()[0]["backbone"])


def test_an_unfinished_file_keeps_its_partial_name_and_is_not_read(tmp_path):
    path = tmp_path / "f.h5"
    with create(path) as writer:
        write(writer, 0, 3)
        with pytest.raises(FeatureFileError, match=r"f.h5.partial: 5 samples were never written"):
            writer.finish()
    assert not path.exists()
    with pytest.raises(FeatureFileError, match="incomplete, 3 of 8 samples; finish it with"):
        read_hdf5(partial_path(path))
    with raises(FeatureFileError, "incomplete"):
        read_provenance(partial_path(path))


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    import feature_files as t
    writer = t.create(Path({path!r}))
    t.write(writer, 0, 2)
    t.write(writer, 2, 4)
    # The next rows are half written, and not marked as done.
    group = writer._file["embeddings/backbone"]
    group["views"][4:5] = 7.0
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_until_killed(script, path):
    tests = str(Path(__file__).parent / "helpers")
    filled = textwrap.dedent(script).format(tests=tests, path=str(path))
    ended = run_command([], path.parent, environment(), script=filled)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


KILLED_AT_ONCE = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    import feature_files as t
    writer = t.create(Path({path!r}))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_writer_killed_before_its_first_row_reserved_is_given_back(tmp_path):
    path = tmp_path / "f.h5"
    run_until_killed(KILLED_AT_ONCE, path)
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5.partial.begun"]
    with create(path) as writer:
        write(writer, 0, 8)
        writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5"]
    assert torch.equal(read_all(path, "backbone")[0], embeddings()[0]["backbone"])


def test_a_killed_writer_leaves_a_file_that_opens_with_its_finished_rows(tmp_path):
    path = tmp_path / "f.h5"
    run_until_killed(KILLED, path)
    views, clean = embeddings()
    with h5py.File(partial_path(path)) as file:  # plain opening, no recovery
        assert file["samples/done"][:].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
        for layer in WIDTHS:
            np.testing.assert_array_equal(
                file["embeddings"][layer]["views"][:4], views[layer][:4].numpy()
            )
            np.testing.assert_array_equal(
                file["embeddings"][layer]["clean"][:4], clean[layer][:4].numpy()
            )
    with FeatureWriter.resume(path, LAYOUT, PROVENANCE) as writer:
        assert writer.done.tolist() == [True] * 4 + [False] * 4
        write(writer, 4, 8)
        writer.finish()
    assert torch.equal(read_all(path, "backbone")[0], views["backbone"])
    assert torch.equal(read_all(path, "projector")[1], clean["projector"])


@pytest.mark.parametrize(
    ("dataset", "row"),
    [
        ("embeddings/backbone/views", 1),
        ("embeddings/projector/clean", 1),
        ("embeddings/projector/crc32", 1),
        ("embeddings/backbone/clean", 4),
    ],
)
def test_resume_recomputes_unfinished_and_damaged_rows_only(tmp_path, dataset, row):
    path = tmp_path / "f.h5"
    with create(path) as writer:
        write(writer, 0, 5)
    flip_a_byte(partial_path(path), dataset, row)
    with FeatureWriter.resume(path, LAYOUT, PROVENANCE) as writer:
        assert np.flatnonzero(~writer.done).tolist() == [row, 5, 6, 7]
        write(writer, row, row + 1)
        write(writer, 5, 8)
        writer.finish()
    views, clean = embeddings()
    for layer in WIDTHS:
        assert torch.equal(read_all(path, layer)[0], views[layer])
        assert torch.equal(read_all(path, layer)[1], clean[layer])


def test_resume_with_other_settings_names_them(tmp_path):
    path = tmp_path / "f.h5"
    with create(path) as writer:
        write(writer, 0, 2)
    before = partial_path(path).read_bytes()
    other = {**PROVENANCE, "seed": 1, "extra": True}
    message = r"begun with other settings \(extra, seed differ\).*start over with --overwrite"
    with pytest.raises(FeatureFileError, match=message):
        FeatureWriter.resume(path, LAYOUT, other)
    assert partial_path(path).read_bytes() == before
    FeatureWriter.resume(path, LAYOUT, dict(PROVENANCE)).__exit__()


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all, though long enough to look at"])
def test_resume_of_what_is_no_feature_file_says_what_to_do(tmp_path, content):
    partial_path(tmp_path / "f.h5").write_bytes(content)
    with pytest.raises(FeatureFileError, match=r"cannot be opened: .*start over with --overwrite"):
        FeatureWriter.resume(tmp_path / "f.h5", LAYOUT, PROVENANCE)
    assert partial_path(tmp_path / "f.h5").read_bytes() == content


def test_resume_of_a_file_that_lacks_its_datasets_says_what_to_do(tmp_path):
    path = tmp_path / "f.h5"
    with h5py.File(partial_path(path), "w") as file:
        file.attrs["format"], file.attrs["version"] = "lidar-features", 1
        file.attrs["provenance"] = json.dumps(PROVENANCE)
    with pytest.raises(FeatureFileError, match=r"damaged: .*start over with --overwrite"):
        FeatureWriter.resume(path, LAYOUT, PROVENANCE)


def drop_a_layer(file):
    del file["embeddings/projector"]


def widen_a_layer(file):
    for name, shape in (("views", (N, Q, 9)), ("clean", (CLEAN, 9))):
        del file[f"embeddings/projector/{name}"]
        file[f"embeddings/projector/{name}"] = np.zeros(shape, np.float32)


def pack_a_layer(file):
    rows = file["embeddings/projector/clean"][:]
    del file["embeddings/projector/clean"]
    file.create_dataset("embeddings/projector/clean", data=rows, compression="gzip")


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (drop_a_layer, "nothing is named 'embeddings/projector/views'"),
        (
            widen_a_layer,
            r"embeddings/projector/views is float32 \(6, 3, 9\), not float32 \(6, 3, 2",
        ),
        (pack_a_layer, "embeddings/projector/clean is stored in chunks"),
    ],
)
def test_resume_of_a_file_that_does_not_take_the_rows_leaves_it_as_it_is(tmp_path, edit, found):
    path = tmp_path / "f.h5"
    with create(path) as writer:
        write(writer, 0, 3)
    change(partial_path(path), edit)
    before = partial_path(path).read_bytes()
    with pytest.raises(Unresumable, match=f"damaged: .*{found}.*start over with --overwrite"):
        FeatureWriter.resume(path, LAYOUT, PROVENANCE)
    assert partial_path(path).read_bytes() == before


def test_nothing_is_overwritten_unasked(tmp_path):
    path = complete(tmp_path / "f.h5")
    before = path.read_bytes()
    with pytest.raises(FeatureFileError, match=r"f.h5: exists already; .*--overwrite"):
        create(path)
    assert path.read_bytes() == before
    with create(path, overwrite=True) as writer:
        for first in (0, 4):
            write(writer, first, first + 4, seed=1)
        assert path.read_bytes() == before  # until the new one is complete
        writer.finish()
    assert torch.equal(read_all(path, "backbone")[0], embeddings(seed=1)[0]["backbone"])


def test_an_interrupted_run_is_not_overwritten_unasked(tmp_path):
    path = tmp_path / "f.h5"
    with create(path) as writer:
        write(writer, 0, 2)
    with pytest.raises(FeatureFileError, match=r"an interrupted run is here; .*--resume, or start"):
        create(path)
    with create(path, overwrite=True) as writer:
        assert not writer.done.any()


def test_a_file_that_another_process_writes_is_no_interrupted_run(tmp_path):
    with create(tmp_path / "f.h5"):
        code = (
            "from pathlib import Path; import sys; "
            "from lidar_cli.features.writer import check_absent; "
            "check_absent(Path(sys.argv[1]), overwrite=False)"
        )
        ended = run_command([tmp_path / "f.h5"], tmp_path, environment(), script=code)
    assert "InUse" in ended.stderr
    assert "another process is writing it; wait for it" in ended.stderr


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "f.h5"
    with create(path) as writer:
        write(writer, 0, 8)
        path.write_text("someone else's")
        with raises(FeatureFileError, "exists"):
            writer.finish()
    assert path.read_text() == "someone else's"


def test_a_directory_that_is_not_there_is_one_line(tmp_path):
    with raises(FeatureFileError, "cannot-be-created"):
        create(tmp_path / "absent" / "f.h5")


@pytest.mark.parametrize("memory", [1, 10**6])
@pytest.mark.parametrize(
    ("dataset", "row"),
    [
        ("embeddings/backbone/views", 5),
        ("embeddings/backbone/clean", 5),
        ("embeddings/backbone/clean", 7),
    ],
)
def test_damage_is_found_on_reading(tmp_path, dataset, row, memory):
    path = complete(tmp_path / "f.h5")
    flip_a_byte(path, dataset, row)
    message = f"layer backbone: the embedding of sample {row} does not match its checksum"
    with pytest.raises(FeatureFileError, match=message):
        read_all(path, "backbone", memory)
    read_all(path, "projector", memory)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["views", "clean"])
def test_numbers_that_are_not_finite_are_refused_before_they_are_written(tmp_path, value, where):
    views, clean = embeddings()
    (views if where == "views" else clean)["projector"][2, -1] = value
    with create(tmp_path / "f.h5") as writer:
        with pytest.raises(
            DegenerateFeatures, match=r"layer projector: the embedding of sample 2 holds NaN or Inf"
        ):
            writer.write(
                range(1, 4),
                {name: z[1:4] for name, z in views.items()},
                {name: z[1:4] for name, z in clean.items()},
            )
        assert not writer.done.any()


def test_float16_overflow_is_an_error_and_float32_takes_the_value(tmp_path):
    views, clean = embeddings()
    views["backbone"][0, 0, 0] = 7e4
    for storage in ("float16", "float32"):
        with create(tmp_path / f"{storage}.h5", storage) as writer:
            if storage == "float16":
                with pytest.raises(
                    DegenerateFeatures, match=r"layer backbone: a value of 7e\+04 overflows float16"
                ):
                    writer.write(range(N), views, {name: z[:N] for name, z in clean.items()})
                assert not writer.done.any()
            else:
                writer.write(range(N), views, {name: z[:N] for name, z in clean.items()})
                assert writer.done[:N].all()


def test_an_unknown_layer_is_named_with_those_that_are_there(tmp_path):
    path = complete(tmp_path / "f.h5")
    message = "no layer 'predictor'; the file holds backbone, projector"
    with pytest.raises(FeatureFileError, match=message):
        read_hdf5(path, "backbone, predictor")


def change(path, edit):
    with h5py.File(path, "r+") as file:
        edit(file)


def drop_a_dataset(file):
    del file["embeddings/backbone/clean"]


def break_the_provenance(file):
    file.attrs["provenance"] = "{"


def cut_the_checksums(file):
    del file["embeddings/backbone/crc32"]
    file["embeddings/backbone/crc32"] = np.zeros(3, np.uint32)


def pair_the_checksums(file):
    del file["embeddings/backbone/crc32"]
    file["embeddings/backbone/crc32"] = np.zeros((CLEAN, 2), np.uint32)


def flatten_the_views(file):
    del file["embeddings/backbone/views"]
    file["embeddings/backbone/views"] = np.zeros((18, 5), np.float32)


def raise_the_version(file):
    file.attrs["version"] = 3


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop_a_dataset, "damaged: "),
        (break_the_provenance, "damaged: "),
        (cut_the_checksums, r"damaged: layer backbone: .* checksums \(3,\); .*extract it again"),
        (pair_the_checksums, r"damaged: layer backbone: .* checksums \(8, 2\); .*extract it again"),
        (flatten_the_views, r"damaged: layer backbone: views \(18, 5\)"),
        (raise_the_version, "feature file version 3, this lidar reads 1 and 2; extract it again"),
    ],
)
def test_a_file_that_breaks_the_contract_is_one_line(tmp_path, edit, message):
    path = complete(tmp_path / "f.h5")
    change(path, edit)
    with pytest.raises(FeatureFileError, match=re.escape(str(path)) + ": " + message) as caught:
        read_hdf5(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_one_line(tmp_path):
    path = complete(tmp_path / "f.h5")
    path.write_bytes(path.read_bytes()[:-200])
    with raises(FeatureFileError, "cannot-be-opened"):
        read_hdf5(path)


def test_provenance_of_other_files_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.zeros((2, 2, 2))
    with pytest.raises(FeatureFileError, match="but not a feature file"):
        read_provenance(tmp_path / "x.h5")
    (tmp_path / "t.h5").write_text("text")
    with raises(FeatureFileError, "not-hdf5"):
        read_provenance(tmp_path / "t.h5")


def test_a_file_that_will_not_fit_is_refused_before_it_is_begun(tmp_path):
    layout = Layout({"backbone": 10**12}, n_samples=3, n_views=2, n_clean=3)  # 36 TB
    with pytest.raises(FeatureFileError, match=r"will take 33,527\.61 GB and [\d.,]+ GB are free"):
        FeatureWriter.create(tmp_path / "out.h5", layout, ["a", "b", "c"], None, {})
    assert list(tmp_path.iterdir()) == []


def sparse(path, samples, rows):
    """A feature file whose arrays have a place and are never written, as `truncate` makes one."""
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["version"] = "lidar-features", 1
        file.attrs["provenance"] = json.dumps({"layers": ["backbone"]})
        shapes = {"clean": ((rows, 4), np.float32), "crc32": ((rows,), np.uint32)}
        shapes = {f"embeddings/backbone/{name}": shape for name, shape in shapes.items()}
        for name, (shape, numbers) in {"samples/done": ((samples,), np.uint8), **shapes}.items():
            place = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            place.set_layout(h5py.h5d.CONTIGUOUS)
            place.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            place.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            file.require_group(name.rpartition("/")[0])
            space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(numbers))
            h5py.h5d.create(file.id, name.encode(), kind, space, place)
    return path


@pytest.mark.parametrize("read", [read_provenance, read_labels, read_hdf5])
def test_a_sparse_feature_file_is_refused_before_its_rows_are_read(tmp_path, read):
    path = sparse(tmp_path / "f.h5", 2**40, 2**36)
    assert path.stat().st_blocks * 512 < 2**20
    with raises(FeatureFileError, "sparse"):
        read(path)


@pytest.mark.parametrize("name", ["done", "label"])
def test_there_are_as_many_marks_and_labels_as_rows(tmp_path, name):
    path = complete(tmp_path / "f.h5", labels=[0] * CLEAN)
    with h5py.File(path, "r+") as file:
        del file[f"samples/{name}"]
        file[f"samples/{name}"] = np.ones(CLEAN + 1, np.int8)
    with pytest.raises(
        FeatureFileError, match=rf"samples/{name} has the shape \(9,\), but there are 8 r"
    ):
        (read_provenance if name == "done" else read_labels)(path)


def test_a_partial_file_of_which_little_is_written_is_continued(tmp_path):
    path, width = tmp_path / "f.h5", 2**15
    layout, ids = Layout({"backbone": width}, 1, 2, 800), [str(i) for i in range(800)]
    with FeatureWriter.create(path, layout, ids, None, PROVENANCE) as writer:
        views, clean = {"backbone": torch.ones(1, 2, width)}, {"backbone": torch.ones(1, width)}
        writer.write(range(1), views, clean)
    assert partial_path(path).stat().st_size > 2**26
    assert read_interrupted(path)["seed"] == 0
    with FeatureWriter.resume(path, layout, PROVENANCE) as writer:
        assert writer.done.tolist() == [True] + 799 * [False]
