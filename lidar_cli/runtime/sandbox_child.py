"""The child of `sandbox`: a fresh interpreter that runs one walker after another.

It imports the standard library, this package and what a walker needs, never torch. Messages in both
directions are a length (8 bytes, big-endian) and JSON; a request comes with the open descriptor of
its file, where the system can send one.
"""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, BinaryIO

from lidar_cli.errors import LidarError, first_line

LENGTH = struct.Struct(">Q")
RETIRE = 256 << 20  # bytes resident after a file; what it left behind then ends with the child
MOST_TEXT = 1 << 14  # characters of a walker's line, which has the path in it
Walker = Callable[[BinaryIO, Any], Any]
SENDS_DESCRIPTORS = hasattr(socket, "send_fds")


def serve(seconds: int, wall: float, memory: int, answer: int) -> None:
    """Answer requests until the parent's end of the socket is closed.

    seconds: of processor time for one file; wall: seconds by the clock, which the parent watches
    too; memory: bytes of address space, which Linux alone limits; answer: bytes of JSON at most.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this child
    connection = _connection()
    _limit_process(memory)
    send(connection, b"{}")  # from here on, what ends this child is the file's doing
    retiring = False
    while not retiring:
        message = receive_with_file(connection)
        if message is None:
            return
        content, descriptor = message
        request = json.loads(content)
        _end_with_parent(connection, True)
        try:
            walk = _walker(request)  # whose packages are not the file's doing
        except Exception as error:
            reply = {"failed": "start", "text": first_line(error)[:500], "retiring": True}
            send(connection, json.dumps(reply).encode())
            return
        _limit_file(seconds, wall)
        content, numbers, retiring = _reply(walk, request, descriptor, answer)
        _end_with_parent(connection, False)
        _limit_file(0, 0)
        send(connection, content)
        connection.sendall(numbers)


def _reply(
    walk: Walker, request: dict[str, Any], descriptor: int | None, answer: int
) -> tuple[bytes, memoryview, bool]:
    """JSON of what a walker returned or raised, the bytes that follow, whether the child ends."""
    content, numbers = b"", memoryview(b"")
    failed: dict[str, Any] = {}
    try:
        source = request["path"] if descriptor is None else descriptor
        with open(source, "rb") as file:  # noqa: PTH123, a descriptor
            file.seek(0)  # where a child before this one left it
            value = walk(file, request["arguments"])
        if isinstance(value, memoryview):
            numbers, value = value, len(value)
        content = _json({"value": value})
        if len(content) > answer:
            failed = {"failed": "answer"}
    except LidarError as error:
        failed = {"raised": [type(error).__name__, str(error)[:MOST_TEXT], error.code]}
    except MemoryError:
        failed = {"failed": "memory"}
    except RecursionError:
        failed = {"failed": "depth"}
    except Exception as error:
        failed = {"failed": "error", "text": first_line(error)[:500]}
    value = None
    gc.collect()  # at the cost of the file that left it
    retiring = failed.get("failed") == "memory" or _resident() > RETIRE
    if failed:
        content, numbers = _json(failed), memoryview(b"")
    return content[:-1] + b',"retiring":true}' if retiring else content, numbers, retiring


def _json(reply: dict[str, Any]) -> bytes:
    return json.dumps(reply, separators=(",", ":")).encode()


def _walker(request: dict[str, Any]) -> Walker:
    sys.path.extend(entry for entry in request["search"] if entry not in sys.path)
    module, _, name = request["walker"].partition(":")
    walk: Walker = getattr(import_module(module), name)
    return walk


def send(connection: socket.socket, content: bytes) -> None:
    """Send one message; raises OSError if nobody is left at the other end."""
    connection.sendall(LENGTH.pack(len(content)) + content)


def receive(connection: socket.socket, most: int) -> bytes | None:
    """One message of at most so many bytes; None at the end, or if it is longer.

    Raises OSError, of which TimeoutError is one, as the socket does.
    """
    start = receive_exactly(connection, LENGTH.size)
    length = LENGTH.unpack(start)[0] if start else most + 1
    return receive_exactly(connection, length) if length <= most else None


def receive_exactly(connection: socket.socket, count: int, start: bytes = b"") -> bytes | None:
    """So many bytes, the first of which may have come before; None if the end comes first."""
    content = bytearray(start)
    while len(content) < count:
        piece = connection.recv(min(count - len(content), 1 << 20))
        if not piece:
            return None
        content += piece
    return bytes(content)


def receive_with_file(connection: socket.socket) -> tuple[bytes, int | None] | None:
    """One message and the descriptor that came with it; None at the end."""
    descriptors: list[int] = []
    start = b""
    if SENDS_DESCRIPTORS:
        start, descriptors, _, _ = socket.recv_fds(connection, LENGTH.size, 1)
        if not start:
            return None
    head = receive_exactly(connection, LENGTH.size, start)
    content = receive_exactly(connection, LENGTH.unpack(head)[0]) if head else None
    return None if content is None else (content, descriptors[0] if descriptors else None)


def _connection() -> socket.socket:
    """The socket to the parent: standard input, or on Windows what the parent writes there."""
    if sys.platform == "win32":
        return socket.fromshare(sys.stdin.buffer.read())
    return socket.socket(fileno=0)


def _limit_process(memory: int) -> None:
    """Limits that hold for all files; each within what the system allows this process."""
    with suppress(ImportError):
        import resource

        _set(resource.RLIMIT_CORE, 0)
        _set(resource.RLIMIT_FSIZE, 0)  # no file grows by what this process writes
        _set(resource.RLIMIT_NOFILE, 64)
        if sys.platform == "linux":
            _set(resource.RLIMIT_AS, memory)


def _limit_file(seconds: int, wall: float) -> None:
    """Give this process so many more seconds of processor time; 0 for no limit between files."""
    with suppress(ImportError):
        import resource

        spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        soft = math.ceil(spent) + seconds if seconds else resource.RLIM_INFINITY
        if hard != resource.RLIM_INFINITY:
            soft = hard if soft == resource.RLIM_INFINITY else min(soft, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
    if hasattr(signal, "setitimer"):  # where the parent is gone, nobody else watches the clock
        signal.setitimer(signal.ITIMER_REAL, wall * 1.5)


def _set(kind: int, most: int) -> None:
    import resource

    hard = resource.getrlimit(kind)[1]
    within = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(kind, (within, within))


def _end_with_parent(connection: socket.socket, busy: bool) -> None:
    """While busy, let the system end this process (SIGIO) when the parent's end is closed.

    Nothing else arrives then: a parent sends its next request after the reply.
    """
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        flags = fcntl.fcntl(connection, fcntl.F_GETFL)
        fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
        wanted = flags | os.O_ASYNC if busy else flags & ~os.O_ASYNC
        fcntl.fcntl(connection, fcntl.F_SETFL, wanted)


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as status:  # noqa: PTH123, pathlib is not loaded
            return int(status.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
