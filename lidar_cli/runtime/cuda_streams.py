"""Work beside the model's on one device: copies and views before it, embeddings after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class SideStream:
    """A queue of device work of its own; on the CPU, where a call ends when its work does, nothing.

    Work of two lanes overlaps. What one makes for another is handed over by a `mark`.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calls of this thread go into this lane."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield

    def finish(self) -> None:
        """Wait until all work in the lane is done."""
        if self._stream is not None:
            self._stream.synchronize()


def record_event(device: torch.device) -> torch.cuda.Event | None:
    """A mark behind the work that this thread has queued so far."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def wait_event(tensors: Iterable[Tensor], made: torch.cuda.Event | None) -> None:
    """Let the work that this thread queues from now on read tensors that were made before a mark.

    Their memory is not given away until it has done so, though another lane owns them.
    """
    if made is None:
        return
    for tensor in tensors:
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(made)
        tensor.record_stream(stream)
