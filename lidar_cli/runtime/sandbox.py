"""Reads untrusted files in a limited child process, which returns JSON.

    result = run_limited("lidar_cli.package.module:walk", path, {"key": 1}, error=CheckpointError)
    result.value    what walk(file, arguments) returned, decoded from JSON
    result.stamp    (st_dev, st_ino, st_size, st_mtime_ns) of the file that the child read

- A walker is a function of this package, listed in WALKERS with the packages that it imports. It
  takes the file, which the parent has opened for reading bytes (regular files only), and
  `arguments` (JSON), and returns JSON of at most 16 MB, which the caller validates. It runs in a
  new interpreter without torch, which is started for the first file and then serves many. Its
  module must import neither torch nor timm, directly or indirectly.
- A LidarError that a walker raises is raised here, with its class and message. Anything else that
  the file causes (MemoryError, RecursionError, another error, a crash, too much processor time,
  memory or wall time, too long a reply) is raised as `error`, with a message about that file. A
  child that crashed, or was killed because it exceeded a limit, is replaced.
- The limits apply to each file. On Linux the system enforces processor time and address space;
  elsewhere this process polls the child's time and resident memory and kills it.
- NoProcess is raised if no child can be started, or it cannot import what a walker needs: a fault
  of the machine, not of the file.

Tests create a Sandbox with other limits and walkers, or set `limits` of SHARED.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidar_cli import errors
from lidar_cli.errors import LidarError, NoProcess, printable
from lidar_cli.runtime.files import open_regular
from lidar_cli.runtime.sandbox_child import LENGTH, READY, SENDS_DESCRIPTORS, send

WALKERS: dict[str, tuple[str, ...]] = {  # walker -> packages beyond the standard library
    **dict.fromkeys(
        (
            f"lidar_cli.features.hdf5_walk:{name}"
            for name in ("describe", "describe_one", "shapes", "walk_everything", "rows", "texts")
        ),
        ("numpy", "h5py"),
    ),
    **dict.fromkeys(
        (f"lidar_cli.features.numpy_headers:{name}" for name in ("npy", "npz")), ("numpy",)
    ),
    "lidar_cli.checkpoints.reading.walk:walk": (),
    "lidar_cli.checkpoints.reading.walk:walk_checksums": (),
    **dict.fromkeys(
        (
            f"lidar_cli.checkpoints.reading.walk_distributed:{name}"
            for name in ("walk_metadata", "walk_pieces", "walk_checksums")
        ),
        (),
    ),
}

Stamp = tuple[int, int, int, int]

FROM_WALKERS = {  # errors that walkers raise, by class name
    kind.__name__: kind
    for kind in (
        errors.InputError, errors.FeatureFileError, errors.CheckpointError, errors.NoWeights
    )
}  # fmt: skip
MAX_MESSAGE = 1000  # characters of a walker's message, in addition to the path

START = "import sys; sys.path.append(sys.argv[1]); \
from lidar_cli.runtime.sandbox_child import serve; \
serve(int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))"
START_TIMEOUT = 60  # seconds; an interpreter starts slowly from a network file system
POLLED = sys.platform != "linux"  # whether this process polls the child's time and memory
POLL = 0.1  # seconds between polls
CRASHES = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL", "SIGSYS")
SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Limits:
    """Limits of the child for one file."""

    seconds: int = 12  # of processor time; an intact file takes less than one
    wall: float = 60  # seconds
    memory: int = 1 << 30  # bytes of the child process
    answer: int = 16 << 20  # bytes of JSON

    def exceeded(self, name: str) -> str:
        """The message for a file that exceeds a limit."""
        return {
            "seconds": f"takes more than {self.seconds} s of processor time to read",
            "wall": f"takes more than {self.wall:g} s to read",
            "memory": f"takes more than {self.memory >> 20} MB of memory to read",
            "answer": f"holds more than {self.answer >> 20} MB of names and sizes",
        }[name]


@dataclass(frozen=True)
class WalkResult:
    """What a walker returned, and the file that it read."""

    value: Any
    stamp: Stamp


def stamp_of(status: os.stat_result) -> Stamp:
    """Device, inode, size and modification time, which identify a version of a file."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def validation(path: Path, error: type[LidarError], advice: str) -> Iterator[None]:
    """Raises `error` if the block finds that what a walker returned has the wrong form."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as cause:
        raise error(
            f"{path}: damaged: its description makes no sense; {advice}", code="bad-description"
        ) from cause


class _ChildEnded(Exception):
    """The child ended, or was killed, without a reply; the text says why, '' if unknown."""


class Sandbox:
    """Runs walkers in one child process, started on demand; threads take turns.

    walkers: as WALKERS; search: further directories to import from, for the walkers of tests.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        walkers: Mapping[str, tuple[str, ...]] | None = None,
        search: Sequence[str] = (),
    ) -> None:
        self.limits = limits or Limits()
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes]
        self._walkers = WALKERS if walkers is None else walkers
        self._search = tuple(search)
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def run(
        self,
        walker: str,
        path: Path,
        arguments: Any = None,
        *,
        error: type[LidarError],
        advice: str = "fetch or save it again",
        buffer: memoryview | None = None,
    ) -> WalkResult:
        """What a walker returns for a file.

        error: class of the error if the file is at fault; advice: the next step for the user, with
        which the message ends. buffer: filled with the bytes of a walker that returns a memoryview
        of the same length; the value is then their number.
        """
        request = {
            "walker": walker,
            "path": str(path),
            "arguments": arguments,
            "search": [*self._search, *_import_directories(self._walkers[walker])],
        }
        try:
            file = open_regular(path)
        except FileNotFoundError as cause:
            raise error(f"{path}: no such file; check the path", code="no-such-file") from cause
        except (OSError, ValueError) as cause:
            reason = getattr(cause, "strerror", None) or cause
            raise error(f"{path}: cannot be read: {reason}", code="cannot-be-read") from cause
        with file:
            stamp = stamp_of(os.fstat(file.fileno()))
            try:
                with self._lock:
                    reply = self._exchange(json.dumps(request).encode(), file.fileno(), buffer)
            except _ChildEnded as cause:
                why = str(cause) or "ends the process that reads it"
                raise error(f"{path}: {why}; {advice}", code="ends-reader") from cause
        if "value" not in reply:
            raise _error_from(reply, path, error, advice, self.limits)
        return WalkResult(reply["value"], stamp)

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            self._end()

    def close_at_exit(self) -> None:
        """Kill the child at once, also while a daemon thread waits for its reply."""
        self._exiting = True
        connection = self._connection
        if connection is not None:
            self._process.kill()
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # which wakes that thread
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)

    def _reset(self) -> None:
        """Forget the child: initially, and in a forked process, whose parent owns the child."""
        if self._connection is not None:
            self._connection.close()
            self._process.returncode = 0  # the parent waits for it, not this process
        self._lock = threading.Lock()
        self._exiting = False
        self._connection = None
        self._child_limits = self.limits

    def _exchange(
        self, request: bytes, descriptor: int, buffer: memoryview | None
    ) -> dict[str, Any]:
        """The reply to a request. Raises _ChildEnded, and NoProcess if no child can be started."""
        for is_retry in (False, True):
            try:
                connection = self._start()
                self._send(connection, request, descriptor)
                return self._reply(connection, buffer)
            except BaseException as error:  # an interrupt too: a late reply must not be read next
                self._end()
                # Without a text, something else killed the child: the file is tried once more.
                if not isinstance(error, _ChildEnded) or str(error) or is_retry:
                    raise
        raise AssertionError("not reached")

    def _start(self) -> socket.socket:
        """The connection to a child with the current limits, which is started if there is none."""
        if self._connection is not None:
            if self._process.poll() is None and self._child_limits == self.limits:
                return self._connection
            self._end()
        if self._exiting:
            raise NoProcess("no process is started to read files in while the program ends")
        try:
            ours, theirs = socket.socketpair()
            try:
                self._process = _interpreter(self.limits, theirs)
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
        except (OSError, ValueError) as error:  # ValueError: there is no sys.executable
            raise NoProcess(
                f"no process can be started to read files in: {getattr(error, 'strerror', error)}; "
                "end others, or allow more"
            ) from error
        self._connection, self._child_limits = ours, self.limits
        self._deadline, self._seconds_before = time.monotonic() + START_TIMEOUT, 0.0
        try:
            self._receive(ours, memoryview(bytearray(LENGTH.size + len(READY))))
        except _ChildEnded as error:
            self._end()
            status = _status_name(self._process.returncode)
            raise NoProcess(
                f"the process that reads files did not start ({status}); allow it "
                f"{self.limits.memory >> 20} MB of memory, or run it again"
            ) from error
        return ours

    def _send(self, connection: socket.socket, request: bytes, descriptor: int) -> None:
        try:
            connection.settimeout(self.limits.wall)
            if SENDS_DESCRIPTORS:
                socket.send_fds(connection, [LENGTH.pack(len(request))], [descriptor])
                connection.sendall(request)
            else:
                send(connection, request)
        except OSError as error:
            raise _ChildEnded from error

    def _reply(self, connection: socket.socket, buffer: memoryview | None) -> dict[str, Any]:
        """The reply to the request that was sent; raises _ChildEnded."""
        self._deadline = time.monotonic() + self.limits.wall
        self._seconds_before = _usage(self._process.pid)[0] if POLLED else 0.0
        head = bytearray(LENGTH.size)
        self._receive(connection, memoryview(head))
        (length,) = LENGTH.unpack(head)
        if length > self.limits.answer + (1 << 10):
            raise _ChildEnded(self.limits.exceeded("answer"))
        content = bytearray(length)
        self._receive(connection, memoryview(content))
        try:
            reply = json.loads(content)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise _ChildEnded("gives no valid answer")
        if buffer is not None and "value" in reply:
            if reply["value"] != len(buffer):
                raise _ChildEnded("holds another number of bytes than it declares")
            self._receive(connection, buffer)
        if reply.pop("retiring", False):
            self._end()
        return reply

    def _receive(self, connection: socket.socket, buffer: memoryview) -> None:
        """Fill `buffer`. Raises _ChildEnded if the child ended, or exceeds a limit."""
        while buffer:
            remaining = self._deadline - time.monotonic()
            if remaining <= 0:
                raise _ChildEnded(self.limits.exceeded("wall"))
            connection.settimeout(min(remaining, POLL) if POLLED else remaining)
            try:
                count = connection.recv_into(buffer[: 1 << 20])
            except TimeoutError:
                if POLLED:
                    self._check_usage()
                continue
            except OSError:
                count = 0
            if not count:
                raise _ChildEnded(self._cause(self._end()))
            buffer = buffer[count:]

    def _check_usage(self) -> None:
        """Raise _ChildEnded if the child exceeds a limit that the system does not enforce."""
        seconds, resident = _usage(self._process.pid)
        if resident > self.limits.memory:
            raise _ChildEnded(self.limits.exceeded("memory"))
        if seconds - self._seconds_before > self.limits.seconds:
            raise _ChildEnded(self.limits.exceeded("seconds"))

    def _cause(self, status: int) -> str:
        """What a file did to its child, from the exit status; '' if it may not be the cause."""
        name = _status_name(status)
        if name == "SIGXCPU":
            return self.limits.exceeded("seconds")
        return f"crashes the process that reads it ({name})" if name in CRASHES else ""

    def _end(self) -> int:
        """End the child and wait for it; its exit status."""
        connection, self._connection = self._connection, None
        if connection is None:
            return 0
        connection.close()
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(0.05)  # it may be about to end by itself
        self._process.kill()
        return self._process.wait()


def _interpreter(limits: Limits, connection: socket.socket) -> subprocess.Popen[bytes]:
    """A new child process, with the socket as its standard input."""
    package = str(Path(errors.__file__).parents[1])
    arguments = map(str, (limits.seconds, limits.wall, limits.memory, limits.answer))
    # -I: no variables, no current directory; -S: no site-packages, whose .pth files run code.
    command = [sys.executable, "-I", "-S", "-B", "-c", START, package, *arguments]
    if not sys.executable:
        raise ValueError("Python does not say where its interpreter is")
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if sys.platform == "win32" else connection.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **SINGLE_THREAD},
        start_new_session=True,  # signals that a terminal sends to its group are for the parent
    )
    if sys.platform == "win32":
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(connection.share(process.pid))
    return process


def _error_from(
    reply: dict[str, Any], path: Path, error: type[LidarError], advice: str, limits: Limits
) -> LidarError:
    """The error that a reply without a value describes."""
    text, failed = str(reply.get("text")), str(reply.get("failed"))
    match reply.get("raised"):
        case [str(name), str(message), str(code)]:
            text = message
            if name in FROM_WALKERS:
                message = printable(message)[: MAX_MESSAGE + len(str(path))]
                return FROM_WALKERS[name](message, code=code[:100])
    if failed == "start":
        return NoProcess(
            f"the process that reads files cannot import what it needs: {printable(text)}; "
            f"install it again, or allow it {limits.memory >> 20} MB of memory"
        )
    if failed in ("memory", "answer"):
        why = limits.exceeded(failed)
    elif failed == "depth":
        why = "is nested too deeply to be read"
    else:
        why = f"cannot be read: {text[:MAX_MESSAGE]}"
    return error(f"{path}: {printable(why)}; {advice}", code="cannot-be-read")


def _status_name(status: int) -> str:
    """An exit status in words: the name of the signal, or 'exit status 1'."""
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"exit status {status}"


def _import_directories(packages: tuple[str, ...]) -> list[str]:
    """The directories that contain packages; the packages are not imported here."""
    directories: dict[str, None] = {}
    for name in packages:
        module = importlib.util.find_spec(name)
        if module is not None and module.submodule_search_locations:
            directories[str(Path(next(iter(module.submodule_search_locations))).parent)] = None
    return list(directories)


def _usage(pid: int) -> tuple[float, int]:
    """Seconds of processor time and bytes of resident memory of a process; 0 once it ended."""
    import psutil

    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return times.user + times.system, process.memory_info().rss
    except psutil.Error:
        return 0.0, 0


SHARED = Sandbox()
run_limited = SHARED.run
atexit.register(SHARED.close_at_exit)
