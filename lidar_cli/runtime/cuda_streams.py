"""CUDA streams for copies, views and writes while the model computes in the current stream.

On the CPU, where a call returns when its work is done, nothing here has an effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class SideStream:
    """A CUDA stream in addition to the current one, so that their work overlaps."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Make it the current stream of the calling thread."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield

    def synchronize(self) -> None:
        """Wait until all work in the stream is done."""
        if self._stream is not None:
            self._stream.synchronize()


def record_event(device: torch.device) -> torch.cuda.Event | None:
    """An event that completes when all work queued so far in the current stream is done."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def wait_event(tensors: Iterable[Tensor], event: torch.cuda.Event | None) -> None:
    """Make later work of the current stream wait for the event that another stream recorded.

    The tensors' memory is not reused before that later work is done.
    """
    if event is None:
        return
    for tensor in tensors:
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(event)
        tensor.record_stream(stream)
