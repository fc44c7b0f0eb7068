"""Structure that a foreign file holds is walked in a child process, and comes back as JSON.

    walked = run_limited("lidar_cli.package.module:walk", path, {"key": 1}, error=CheckpointError)
    walked.value    what walk(file, arguments) returned, as JSON carries it
    walked.stamp    (st_dev, st_ino, st_size, st_mtime_ns) of the file that the child saw

- A walker is a function of one of our modules, listed in WALKERS with the packages that it
  imports. It takes the file, opened for reading in binary (by the parent, regular files only), and
  `arguments` (JSON), and returns JSON of at most 16 MB, which the caller validates. It runs in a
  fresh interpreter without torch, which is started by the first file and serves many. Its module
  must import neither torch nor timm, nor anything that does.
- A LidarError that a walker raises is raised here, with its class and its line. Whatever else the
  file does there (MemoryError, RecursionError, any other error, a crash, too much processor time,
  memory or wall time, too long an answer) is raised as `error`, one line about that file. The child
  is then replaced.
- Limits (see Limits) hold for each file: processor time and address space by the system on Linux;
  elsewhere this process watches resident memory and time, and ends the child.
- NoProcess is raised if no child can be started, or it lacks what a walker imports: that is the
  machine's doing.

A test makes a Sandbox with limits and walkers of its own, or sets `limits` of SHARED.
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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidar_cli import errors
from lidar_cli.errors import LidarError, NoProcess, printable
from lidar_cli.runtime.files import open_regular
from lidar_cli.runtime.sandbox_child import LENGTH, SENDS_DESCRIPTORS, receive, send

WALKERS: dict[str, tuple[str, ...]] = {  # walker -> packages beyond the standard library
    **dict.fromkeys(
        (
            f"lidar_cli.features.walk:{name}"
            for name in ("describe", "describe_one", "shapes", "walk_whole", "rows", "texts")
        ),
        ("numpy", "h5py"),
    ),
    **dict.fromkeys(
        (f"lidar_cli.features.array_headers:{name}" for name in ("npy", "npz")), ("numpy",)
    ),
    "lidar_cli.checkpoints.reading.walk:walk": (),
    "lidar_cli.checkpoints.reading.walk:walk_checksums": (),
}

Stamp = tuple[int, int, int, int]

RAISED = {  # by walkers; name of the class -> itself
    kind.__name__: kind
    for kind in (
        errors.InputError, errors.FeatureFileError, errors.CheckpointError, errors.NoWeights
    )
}  # fmt: skip
MOST_LINE = 1000  # characters that a walker says beside the path

START = "import sys; sys.path.append(sys.argv[1]); \
from lidar_cli.runtime.sandbox_child import serve; \
serve(int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))"
STARTING = 60  # seconds that an interpreter may take to start, on a slow network file system
WATCH = 0.1  # seconds between looks at memory and time, where the system limits neither
WATCHED = sys.platform != "linux"
CRASHES = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL", "SIGSYS")
SINGLE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Limits:
    """What one file may take of its child."""

    seconds: int = 12  # of processor time, where a sound file takes less than one
    wall: float = 60  # seconds by the clock
    memory: int = 1 << 30  # bytes of the whole child
    answer: int = 16 << 20  # bytes of JSON


@dataclass(frozen=True)
class Walked:
    """What a walker returned, and the file that it saw."""

    value: Any
    stamp: Stamp


def run_limited(
    walker: str,
    path: Path,
    arguments: Any = None,
    *,
    error: type[LidarError],
    advice: str = "fetch or save it again",
    into: memoryview | None = None,
) -> Walked:
    """What a walker returns for a file, from the child that all callers share; see the module.

    error: the class of what is raised for the file's doing; advice: what to do next, ends its line.
    into: bytes to be filled by a walker that returns as many as a memoryview; the value is their
    number.
    """
    return SHARED.run(walker, path, arguments, error=error, advice=advice, into=into)


def stamp_of(status: os.stat_result) -> Stamp:
    """What identifies a file and its content, as far as the system says."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _Ended(Exception):
    """The child ended, or was ended, without an answer; the text says why, '' if nobody knows."""


class Sandbox:
    """One child at a time, started when it is needed; threads take turns.

    walkers: as WALKERS; search: folders that the child imports from, for walkers of tests.
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
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def run(
        self,
        walker: str,
        path: Path,
        arguments: Any = None,
        *,
        error: type[LidarError],
        advice: str = "fetch or save it again",
        into: memoryview | None = None,
    ) -> Walked:
        """As `run_limited`."""
        request = {
            "walker": walker,
            "path": str(path),
            "arguments": arguments,
            "search": [*self._search, *_homes(self._walkers[walker])],
        }
        try:
            file = open_regular(path)
        except FileNotFoundError as cause:
            raise error(f"{path}: no such file; check the path") from cause
        except (OSError, ValueError) as cause:
            reason = getattr(cause, "strerror", None) or cause
            raise error(f"{path}: cannot be read: {reason}") from cause
        with file:
            stamp = stamp_of(os.fstat(file.fileno()))
            try:
                with self._lock:
                    reply = self._exchange(json.dumps(request).encode(), file.fileno(), into)
            except _Ended as cause:
                why = str(cause) or "ends the process that reads it"
                raise error(f"{path}: {why}; {advice}") from cause
        if "value" not in reply:
            raise _error(reply, path, error, advice, self.limits)
        return Walked(reply["value"], stamp)

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            self._end()

    def close_at_exit(self) -> None:
        """End the child at once, also where a thread that lives on waits for its answer."""
        self._exiting = True
        connection = self._connection
        if connection is not None:
            self._process.kill()
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # which wakes that thread
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)

    def _forget(self) -> None:
        """Be without a child: at first, and in a forked process, whose child is its parent's."""
        if self._connection is not None:
            self._connection.close()
            self._process.returncode = 0  # another process waits for it
        self._lock = threading.Lock()
        self._exiting = False
        self._connection = None
        self._started = self.limits

    def _exchange(self, content: bytes, descriptor: int, into: memoryview | None) -> dict[str, Any]:
        """The answer to one request. Raises _Ended, and NoProcess if no child can be started."""
        for last in (False, True):
            self._start()
            try:
                self._request(content, descriptor)
                return self._answer(into)
            except _Ended as ended:
                # A child that others ended, before or during this file, says nothing of the file.
                if str(ended) or last:
                    raise
        raise AssertionError("not reached")

    def _start(self) -> None:
        """Have a child that awaits a request, with the limits of now."""
        if self._connection is not None:
            if self._process.poll() is None and self._started == self.limits:
                return
            self._end()
        if self._exiting:
            raise NoProcess("no process is started to read files in while the program ends")
        ours, theirs = None, None
        try:
            ours, theirs = socket.socketpair()
            self._process = _interpreter(self.limits, theirs)
        except (OSError, ValueError) as error:  # ValueError: there is no sys.executable
            if ours is not None:
                ours.close()
            raise NoProcess(
                f"no process can be started to read files in: {getattr(error, 'strerror', error)}; "
                "end others, or allow more"
            ) from error
        finally:
            if theirs is not None:
                theirs.close()
        self._connection, self._started = ours, self.limits
        try:
            ours.settimeout(STARTING)
            ready = receive(ours, self.limits.answer)
        except OSError:
            ready = None
        except BaseException:
            self._end()
            raise
        if ready is None:
            status = self._end()
            raise NoProcess(
                f"the process that reads files did not start ({_ending(status)}); allow it "
                f"{self.limits.memory >> 20} MB of memory, or run it again"
            )

    def _request(self, content: bytes, descriptor: int) -> None:
        assert self._connection is not None
        try:
            self._connection.settimeout(self.limits.wall)
            if SENDS_DESCRIPTORS:
                head = LENGTH.pack(len(content))
                socket.send_fds(self._connection, [head], [descriptor])
                self._connection.sendall(content)
            else:
                send(self._connection, content)
        except OSError as error:
            self._end()
            raise _Ended from error
        except BaseException:  # interrupted: the child may have half a request
            self._end()
            raise

    def _answer(self, into: memoryview | None) -> dict[str, Any]:
        """The answer to a request that was sent; raises _Ended."""
        assert self._connection is not None
        try:
            deadline = time.monotonic() + self.limits.wall
            usage = _usage(self._process.pid) if WATCHED else (0.0, 0)
            head = bytearray(LENGTH.size)
            self._receive(memoryview(head), deadline, usage)
            (length,) = LENGTH.unpack(head)
            if length > self.limits.answer + (1 << 10):
                raise _Ended(_too_long(self.limits))
            content = bytearray(length)
            self._receive(memoryview(content), deadline, usage)
            reply = _parsed(content)
            if into is not None and "value" in reply:
                if reply["value"] != len(into):
                    raise _Ended("holds another number of bytes than it declares")
                self._receive(into, deadline, usage)
            if reply.pop("retiring", False):
                self._end()
            return reply
        except BaseException:  # interrupted, too: an answer may come that nobody awaits
            self._end()
            raise

    def _receive(self, into: memoryview, deadline: float, usage: tuple[float, int]) -> None:
        """Fill `into`. Raises _Ended if the child ended, or was to be ended."""
        connection = self._connection
        assert connection is not None
        while into:
            left = deadline - time.monotonic()
            if left <= 0:
                raise _Ended(f"takes more than {self.limits.wall:g} s to read")
            connection.settimeout(min(left, WATCH) if WATCHED else left)
            try:
                count = connection.recv_into(into[: 1 << 20])
            except TimeoutError:
                if WATCHED:
                    self._watch(usage)
                continue
            except OSError:
                count = 0
            if not count:
                raise _Ended(self._why(self._end()))
            into = into[count:]

    def _watch(self, before: tuple[float, int]) -> None:
        """Raise _Ended if the child takes too much, where the system does not limit it."""
        seconds, resident = _usage(self._process.pid)
        if resident > self.limits.memory:
            raise _Ended(_too_large(self.limits))
        if seconds - before[0] > self.limits.seconds:
            raise _Ended(_too_slow(self.limits))

    def _why(self, status: int) -> str:
        """What a file did to its child, by the child's exit status; '' if it may be blameless."""
        name = _ending(status)
        if name == "SIGXCPU":
            return _too_slow(self.limits)
        if name in CRASHES:
            return f"crashes what reads it ({name})"
        return ""

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
    """The child, which has the socket as standard input."""
    package = str(Path(errors.__file__).parents[1])
    figures = (limits.seconds, limits.wall, limits.memory, limits.answer)
    # -I: no variables, no current folder; -S: no site-packages, whose .pth files run code.
    command = [sys.executable, "-I", "-S", "-B", "-c", START, package, *map(str, figures)]
    if not sys.executable:
        raise ValueError("Python does not say where its interpreter is")
    windows = sys.platform == "win32"
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if windows else connection.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **SINGLE},
        start_new_session=True,  # what a terminal sends to its group is for the parent
    )
    if sys.platform == "win32":
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(connection.share(process.pid))
    return process


def _parsed(content: bytearray) -> dict[str, Any]:
    """The reply in a message; raises _Ended if it is none."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict):
        raise _Ended("gives no answer that makes sense")
    return reply


def _error(
    reply: dict[str, Any], path: Path, error: type[LidarError], advice: str, limits: Limits
) -> LidarError:
    """The error that a reply without a value stands for."""
    text, failed = str(reply.get("text")), str(reply.get("failed"))
    match reply.get("raised"):
        case [str(name), str(line), str(code)]:
            text = line
            if name in RAISED:
                return RAISED[name](printable(line)[: MOST_LINE + len(str(path))], code=code[:100])
    if failed == "start":
        return NoProcess(
            f"the process that reads files cannot import what it needs: {printable(text)}; "
            f"install it again, or allow it {limits.memory >> 20} MB of memory"
        )
    reasons = {
        "memory": _too_large(limits),
        "depth": "is nested too deeply to be read",
        "answer": _too_long(limits),
    }
    why = reasons.get(failed) or f"cannot be read: {text[:MOST_LINE]}"
    return error(f"{path}: {printable(why)}; {advice}")


def _too_slow(limits: Limits) -> str:
    return f"takes more than {limits.seconds} s of processor time to read"


def _too_large(limits: Limits) -> str:
    return f"takes more than {limits.memory >> 20} MB of memory to read"


def _too_long(limits: Limits) -> str:
    return f"holds more than {limits.answer >> 20} MB of names and sizes"


def _ending(status: int) -> str:
    """How a process ended, by its exit status: the signal's name, or 'exit status 1'."""
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"exit status {status}"


def _homes(packages: tuple[str, ...]) -> list[str]:
    """The folders that hold packages, which are not imported here."""
    homes: dict[str, None] = {}
    for name in packages:
        module = importlib.util.find_spec(name)
        if module is not None and module.submodule_search_locations:
            homes[str(Path(next(iter(module.submodule_search_locations))).parent)] = None
    return list(homes)


def _usage(pid: int) -> tuple[float, int]:
    """Seconds of processor time and bytes of resident memory of a process; 0 once it ended."""
    import psutil  # on other systems than Linux

    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return times.user + times.system, process.memory_info().rss
    except psutil.Error:
        return 0.0, 0


SHARED = Sandbox()
atexit.register(SHARED.close_at_exit)
