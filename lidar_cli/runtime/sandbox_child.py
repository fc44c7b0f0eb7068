"""The child process of `sandbox`: a new interpreter that runs one walker after another.

It imports the standard library, this package and what a walker needs, never torch. Messages in both
directions are a length (8 bytes, big-endian) and JSON. A request comes with the open descriptor of
its file where the system can send descriptors, else the child opens the path.
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
RETIRE = 256 << 20  # bytes; with more resident memory after a file, the child ends to free it
MAX_TEXT = 1 << 14  # characters of a walker's message, which includes the path
Walker = Callable[[BinaryIO, Any], Any]
READY = b"{}"
SENDS_DESCRIPTORS = hasattr(socket, "send_fds")


def serve(seconds: int, wall: float, memory: int, answer: int) -> None:
    """Answer requests until the parent closes its end of the socket.

    Limits per file: seconds of processor time, seconds of wall time (which the parent checks too),
    bytes of address space (enforced on Linux only), and bytes of JSON.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this child
    connection = _connection()
    _limit_process(memory)
    send(connection, READY)  # if this child ends after this, a file is at fault
    retiring = False
    while not retiring:
        message = _receive_request(connection)
        if message is None:
            return
        content, descriptor = message
        request = json.loads(content)
        _end_with_parent(connection, True)
        try:
            walk = _walker(request)  # a failed import is not the fault of the file
        except Exception as error:
            reply = {"failed": "start", "text": first_line(error)[:500], "retiring": True}
            send(connection, json.dumps(reply).encode())
            return
        gc.freeze()  # modules: the collection after the file visits what the file made alone
        _limit_file(seconds, wall)
        content, numbers, retiring = _reply(walk, request, descriptor, answer)
        _end_with_parent(connection, False)
        _limit_file(0, 0)
        send(connection, content)
        connection.sendall(numbers)


def _reply(
    walk: Walker, request: dict[str, Any], descriptor: int | None, answer: int
) -> tuple[bytes, memoryview, bool]:
    """JSON of the walker's value or error, the bytes that follow, and whether the child ends."""
    content, numbers = b"", memoryview(b"")
    failed: dict[str, Any] = {}
    try:
        source = request["path"] if descriptor is None else descriptor
        with open(source, "rb") as file:  # noqa: PTH123, a descriptor
            file.seek(0)  # an earlier child may have read from the same descriptor
            value = walk(file, request["arguments"])
        if isinstance(value, memoryview):
            numbers, value = value, len(value)
        content = _json({"value": value})
        if len(content) > answer:
            failed = {"failed": "answer"}
    except LidarError as error:
        failed = {"raised": [type(error).__name__, str(error)[:MAX_TEXT], error.code]}
    except MemoryError:
        failed = {"failed": "memory"}
    except RecursionError:
        failed = {"failed": "depth"}
    except Exception as error:
        failed = {"failed": "error", "text": first_line(error)[:500]}
    value = None
    gc.collect()  # here, so that the limits for this file apply to it
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
    """Send one message; raises OSError if the other end is closed."""
    connection.sendall(LENGTH.pack(len(content)) + content)


def _receive_exactly(connection: socket.socket, count: int, start: bytes = b"") -> bytes | None:
    """`count` bytes, of which `start` was received before; None if the stream ends early."""
    content = bytearray(start)
    while len(content) < count:
        piece = connection.recv(min(count - len(content), 1 << 20))
        if not piece:
            return None
        content += piece
    return bytes(content)


def _receive_request(connection: socket.socket) -> tuple[bytes, int | None] | None:
    """One message and the descriptor that came with it; None at the end."""
    descriptors: list[int] = []
    start = b""
    if SENDS_DESCRIPTORS:
        start, descriptors, _, _ = socket.recv_fds(connection, LENGTH.size, 1)
        if not start:
            return None
    head = _receive_exactly(connection, LENGTH.size, start)
    content = _receive_exactly(connection, LENGTH.unpack(head)[0]) if head else None
    return None if content is None else (content, descriptors[0] if descriptors else None)


def _connection() -> socket.socket:
    """The socket to the parent: standard input, or on Windows what the parent writes there."""
    if sys.platform == "win32":
        return socket.fromshare(sys.stdin.buffer.read())
    return socket.socket(fileno=0)


def _limit_process(memory: int) -> None:
    """Set the limits that hold for all files, each at most the system's hard limit."""
    with suppress(ImportError):
        import resource

        _set_limit(resource.RLIMIT_CORE, 0)
        _set_limit(resource.RLIMIT_FSIZE, 0)  # this process cannot write to files
        _set_limit(resource.RLIMIT_NOFILE, 64)
        if sys.platform == "linux":
            _set_limit(resource.RLIMIT_AS, memory)


def _limit_file(seconds: int, wall: float) -> None:
    """Allow this process `seconds` more of processor time; 0 removes the limit between files."""
    with suppress(ImportError):
        import resource

        spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        soft = math.ceil(spent) + seconds if seconds else resource.RLIM_INFINITY
        if hard != resource.RLIM_INFINITY:
            soft = hard if soft == resource.RLIM_INFINITY else min(soft, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
    if hasattr(signal, "setitimer"):  # the parent measures wall time too, but it may have ended
        signal.setitimer(signal.ITIMER_REAL, wall * 1.5)


def _set_limit(kind: int, limit: int) -> None:
    import resource

    hard = resource.getrlimit(kind)[1]
    within = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(kind, (within, within))


def _end_with_parent(connection: socket.socket, busy: bool) -> None:
    """While busy, have SIGIO end this process when the parent closes its end of the socket.

    No data arrives while busy: the parent sends its next request after the reply.
    """
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        flags = fcntl.fcntl(connection, fcntl.F_GETFL)
        fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
        wanted = flags | os.O_ASYNC if busy else flags & ~os.O_ASYNC
        fcntl.fcntl(connection, fcntl.F_SETFL, wanted)


def _resident() -> int:
    """Bytes of resident memory of this process; 0 where there is no /proc."""
    try:
        with open("/proc/self/statm", "rb") as status:  # noqa: PTH123, pathlib is not loaded
            return int(status.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
