"""Folders that torch.distributed.checkpoint and DeepSpeed write, and damaged ones of the former."""

from __future__ import annotations

import io
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)


def save_folder(tree: dict[str, Any], folder: Path, **options: Any) -> Path:
    """A checkpoint of one process. options: of FileSystemWriter."""
    writer = dcp.FileSystemWriter(folder, sync_files=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(tree, storage_writer=writer)
    return folder


def save_with_processes(count: int, save: Callable[[], None]) -> None:
    """Calls `save` in forks of this process, which form a group of gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            status = 1
            try:
                warnings.simplefilter("ignore")
                torch.set_num_threads(1)
                torch.distributed.init_process_group(
                    "gloo", init_method=address, rank=rank, world_size=count
                )
                save()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert statuses == [0] * count


def write_raw(
    folder: Path,
    pieces: Sequence[Any],
    chunks: Sequence[tuple[Sequence[int], Sequence[int]]] = (((0,), (2,)), ((2,), (2,))),
    size: Sequence[int] = (4,),
    change: Callable[[Metadata], None] = lambda metadata: None,
) -> Path:
    """A folder with one tensor `model.weight`, written by hand: one piece a chunk.

    pieces: tensors, other values, or bytes as they are. change: edits the metadata.
    """
    folder.mkdir(parents=True)
    content, stored = b"", {}
    for piece, (offsets, _) in zip(pieces, chunks, strict=True):
        raw = piece if isinstance(piece, bytes) else saved(piece)
        index = MetadataIndex("model.weight", torch.Size(offsets))
        stored[index] = _StorageInfo("__0_0.distcp", len(content), len(raw))
        content += raw
    parts = [ChunkStorageMetadata(torch.Size(a), torch.Size(b)) for a, b in chunks]
    tensor = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size(size), parts)
    metadata = Metadata(
        {"model.weight": tensor}, {"model.weight": ("model", "weight")}, stored, None, "1.0.0"
    )
    change(metadata)
    (folder / "__0_0.distcp").write_bytes(content)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def saved(value: Any) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def save_deepspeed(
    run: Path, weights: dict[str, Tensor], stage: int = 2, step: str = "global_step10"
) -> Path:
    """A run's folder with one checkpoint of DeepSpeed's engine, by two processes."""
    folder = run / step
    folder.mkdir(parents=True)
    (run / "latest").write_text(step)
    (run / "zero_to_fp32.py").write_text("")
    shapes = [{name: tensor.shape for name, tensor in weights.items()}]
    states = {"buffer_names": [], "optimizer": None, "param_shapes": shapes, "ds_version": "0.17.5"}
    if stage == 3:
        weights = {name: torch.empty(0) for name in weights}
    for rank in range(2):
        of_rank = f"zero_pp_rank_{rank}_mp_rank_00"
        if stage == 3 or rank == 0:
            name = f"{of_rank}_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
            torch.save({"module": weights, **states}, folder / name)
        optimizer = {"zero_stage": stage, "partition_count": 2}
        torch.save({"optimizer_state_dict": optimizer}, folder / f"{of_rank}_optim_states.pt")
    return folder
