"""Walkers for tests of the sandbox: each does in the child what a hostile file might."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import weakref
from typing import Any, BinaryIO

from lidar_cli.errors import CheckpointError


def first_bytes(file: BinaryIO, arguments: Any) -> Any:
    content = file.read(arguments["count"])
    return {"text": content.decode(), "modules": sorted(sys.modules), "process": os.getpid()}


def spin(file: BinaryIO, arguments: Any) -> Any:
    while True:
        pass


def busy(file: BinaryIO, arguments: Any) -> Any:
    end = time.process_time() + arguments
    while time.process_time() < end:
        pass
    return "done"


def sleep(file: BinaryIO, arguments: Any) -> Any:
    time.sleep(600)


def swell(file: BinaryIO, arguments: Any) -> Any:
    held = []
    while True:
        held.append(bytearray(1 << 24))


def nest(file: BinaryIO, arguments: Any) -> Any:
    return nest(file, arguments)


def nested_answer(file: BinaryIO, arguments: Any) -> Any:
    inner: list[Any] = []
    for _ in range(10**5):
        inner = [inner]
    return inner


def crash(file: BinaryIO, arguments: Any) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


def killed(file: BinaryIO, arguments: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(file: BinaryIO, arguments: Any) -> Any:
    os._exit(3)


def fail(file: BinaryIO, arguments: Any) -> Any:
    raise ValueError("two\nlines")


def fail_without_words(file: BinaryIO, arguments: Any) -> Any:
    raise AssertionError


def refuse(file: BinaryIO, arguments: Any) -> Any:
    raise CheckpointError("a line of the walker")


def long_answer(file: BinaryIO, arguments: Any) -> Any:
    return "x" * (17 << 20)


def write(file: BinaryIO, arguments: Any) -> Any:
    descriptor = os.open(arguments, os.O_WRONLY | os.O_CREAT)
    try:
        return os.write(descriptor, b"x")
    finally:
        os.close(descriptor)


def raise_named(file: BinaryIO, arguments: Any) -> Any:
    raise type(arguments, (CheckpointError,), {})("\x1b[2J" + "x" * 5000)


class _Part:
    """Holds itself, so that only a collection frees it."""

    def __init__(self) -> None:
        self.itself = self


parts: list[weakref.ref[_Part]] = []


def litter(file: BinaryIO, arguments: Any) -> Any:
    gc.disable()
    parts.append(weakref.ref(_Part()))
    return parts[-1]() is not None


def litter_left(file: BinaryIO, arguments: Any) -> Any:
    return sum(part() is not None for part in parts)
