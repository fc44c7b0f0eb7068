"""Work that overlaps: an iterator that runs ahead in a thread, and CUDA streams.

Copies, views and writes take place in side streams while the model computes in the current one. On
the CPU, where a call returns when its work is done, streams have no effect.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
DEPTH = 2  # items computed ahead of the consumer: one is ready, one in progress
END: Any = object()


@contextmanager
def prefetch(source: Generator[T, None, None] | Iterator[T]) -> Iterator[Iterator[T]]:
    """The items of `source`; the next one is computed while the consumer uses the last.

    An exception in `source` is raised at the consumer. Leaving the block, also by an exception or
    an interrupt, stops the thread after its current item and closes `source`.
    """
    with ThreadPoolExecutor(1, "lidar-prefetch") as pool:
        items = deque(pool.submit(next, source, END) for _ in range(DEPTH))

        def consume() -> Iterator[T]:
            while (item := items.popleft().result()) is not END:
                items.append(pool.submit(next, source, END))
                yield item
                del item  # so that the consumer alone decides how long it stays in memory

        try:
            yield consume()
        finally:
            for future in items:
                future.cancel()
            if isinstance(source, Generator):
                pool.submit(source.close)


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


def copy_to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of one type and any shapes on the device, by one copy of all from page-locked memory.

    A copy from other memory would wait for the device, and one a tensor costs a call each. Those
    that are on the device already are returned as they are.
    """
    host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    if device.type != "cuda" or not host:
        return [tensor.to(device) for tensor in tensors]
    packed = pack(host, page_locked=True).to(device, non_blocking=True)
    copies = iter(unpack(packed, [tensor.shape for tensor in host]))
    return [next(copies) if one.device.type == "cpu" else one.to(device) for one in tensors]


def pack(tensors: Sequence[Tensor], page_locked: bool = False) -> Tensor:
    """The numbers of all tensors of one type, one tensor after the other."""
    count = sum(tensor.numel() for tensor in tensors)
    packed = torch.empty(count, dtype=tensors[0].dtype, pin_memory=page_locked)
    torch.cat([tensor.detach().reshape(-1) for tensor in tensors], out=packed)
    return packed


def unpack(packed: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The tensors that `pack` has put together; they share its memory."""
    parts = torch.split(packed, [shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
