"""CUDA streams: copies and augmentation overlap with the model. On the CPU these do nothing."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


class SideStream:
    """A CUDA stream whose work overlaps with that of other streams; `record_event` orders them."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def entered(self) -> AbstractContextManager[object]:
        """A context in which this thread queues its work on the stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def finish(self) -> None:
        """Wait until all work on the stream is done."""
        if self._stream is not None:
            self._stream.synchronize()


def record_event(device: torch.device) -> torch.cuda.Event | None:
    """An event after all work that this thread has queued so far; None on the CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def wait_event(tensors: Iterable[Tensor], event: torch.cuda.Event | None) -> None:
    """Order this thread's later work after an event, before which the tensors were computed.

    Their memory is not reused until that work has read them, though another stream allocated it.
    """
    if event is None:
        return
    for tensor in tensors:
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(event)
        tensor.record_stream(stream)
