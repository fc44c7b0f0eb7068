"""`lidar` in processes that do not import torch anew: forks of a server that has imported it.

    done = run_command(["score", "z.npy"], folder, environment())        as subprocess.run
    with Command(["score", "z.npy"], folder, environment()) as running:  as subprocess.Popen

A fork runs the module `lidar_cli` as `python -m lidar_cli` does, or a script as `python -c` does,
with file descriptors, an environment and a working folder of the caller's choice, and exits as an
interpreter exits. It is not a fresh interpreter: what Python reads when it starts, such as
PYTHONIOENCODING, is the server's, and PYTHONPATH holds for what the server has not imported.
"""

from __future__ import annotations

import atexit
import faulthandler
import functools
import gc
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

SECONDS = 300  # after which a process that hangs prints where, and ends
IMPORTED = (
    "pydantic",
    "scipy.stats",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    "timm",
)
NOT_IMPORTED = ("lidar_cli.__main__", "lidar_cli.integrations")  # is run; needs other packages
IMPORTED_ANEW = ("huggingface_hub", "timm", "lidar_cli")  # where HF_... is set, which they keep
STREAMS = 3
LENGTH = 8  # bytes of the length before a request


class Command:
    """A process that runs `lidar`, or a script, with some words.

    stdout, stderr: descriptors to write to; by default pipes, whose other ends are the attributes
    of these names.
    """

    def __init__(
        self,
        words: Sequence[object],
        cwd: Path,
        environment: Mapping[str, str],
        stdout: int | None = None,
        stderr: int | None = None,
        script: str = "",
    ) -> None:
        pipes = {1: stdout, 2: stderr}
        ends: dict[int, tuple[int, int]] = {
            number: os.pipe() for number, given in pipes.items() if given is None
        }
        self.stdout, self.stderr = (
            os.fdopen(ends[number][0]) if number in ends else None for number in (1, 2)
        )
        self.returncode: int | None = None
        self._status, status = os.pipe()
        request = {"words": [os.fspath(w) if isinstance(w, Path) else str(w) for w in words]}
        content = json.dumps(
            {**request, "cwd": str(cwd), "environment": dict(environment), "script": script}
        ).encode()
        null = os.open(os.devnull, os.O_RDONLY)
        outputs = [ends[number][1] if number in ends else given for number, given in pipes.items()]
        server = _server()
        socket.send_fds(server, [len(content).to_bytes(LENGTH, "big")], [null, *outputs, status])
        server.sendall(content)
        self.pid = int.from_bytes(_read(server.recv, LENGTH), "big")
        for descriptor in (null, status, *(end for _, end in ends.values())):
            os.close(descriptor)

    def poll(self) -> int | None:
        """The exit status, or minus the signal; None while it runs."""
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        """As `poll`, once it has ended. Raises TimeoutExpired."""
        status = self._wait(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("lidar", timeout or 0.0)
        return status

    def communicate(self, timeout: float = SECONDS) -> tuple[str, str]:
        """What it wrote to stdout and to stderr until it ended; it is killed after the timeout."""
        files = [file for file in (self.stdout, self.stderr) if file is not None]
        with ThreadPoolExecutor(2) as readers:
            texts = [readers.submit(file.read) for file in files]
            try:
                self.wait(timeout)
            except BaseException:
                self.kill()
                raise
        for file in files:
            file.close()
        written = iter(text.result() for text in texts)
        stdout, stderr = (
            "" if file is None else next(written) for file in (self.stdout, self.stderr)
        )
        return stdout, stderr

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        for file in (self.stdout, self.stderr):
            if file is not None:
                file.close()

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            status = os.read(self._status, 100)
            os.close(self._status)
            assert status, "the server of commands has ended"
            self.returncode = int(status)
        return self.returncode


def run_command(
    words: Sequence[object],
    cwd: Path,
    environment: Mapping[str, str],
    timeout: float = SECONDS,
    **more: Any,
) -> subprocess.CompletedProcess[str]:
    """Status and outputs of a command that has ended."""
    with Command(words, cwd, environment, **more) as running:
        stdout, stderr = running.communicate(timeout)
    assert running.returncode is not None
    return subprocess.CompletedProcess(list(map(str, words)), running.returncode, stdout, stderr)


@functools.cache
def _server() -> socket.socket:
    """The connection to this process's server, which is started by the first command."""
    ours, theirs = socket.socketpair()
    environment = {key: value for key, value in os.environ.items() if key[:6] != "LIDAR_"}
    process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd="/",
        env=environment | {"OMP_NUM_THREADS": "1"},
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _read(receive: Any, length: int) -> bytes:
    content = b""
    while len(content) < length:
        part = receive(length - len(content))
        if not part:
            raise EOFError
        content += part
    return content


# In the server


def _import_all() -> None:
    """Import what the commands import late, and every module of the package."""
    for name in IMPORTED:
        import_module(name)
    for module in pkgutil.walk_packages(import_module("lidar_cli").__path__, "lidar_cli."):
        if not module.name.startswith(NOT_IMPORTED):
            import_module(module.name)


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Fork a process for each request; returns the request in each of them."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}  # process -> where its status goes
    while True:
        ready, _, _ = select.select([connection, wake], [], [])
        if wake in ready:
            os.read(wake, 1000)
            _report_ended(running)
            continue
        head, descriptors, _, _ = socket.recv_fds(connection, LENGTH, STREAMS + 1)
        if not head:
            os._exit(0)
        length = int.from_bytes(head + _read(connection.recv, LENGTH - len(head)), "big")
        request: dict[str, Any] = json.loads(_read(connection.recv, length))
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for descriptor in (wake, woken, descriptors[STREAMS], *running.values()):
                os.close(descriptor)
            connection.close()
            for number, descriptor in enumerate(descriptors[:STREAMS]):
                os.dup2(descriptor, number)
                os.close(descriptor)
            return request
        running[pid] = descriptors[STREAMS]
        for descriptor in descriptors[:STREAMS]:
            os.close(descriptor)
        connection.sendall(pid.to_bytes(LENGTH, "big"))


def _report_ended(running: dict[int, int]) -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            descriptor = running.pop(pid)
            with suppress(BrokenPipeError):  # nobody waits for it
                os.write(descriptor, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(descriptor)


def _become(request: dict[str, Any]) -> None:
    """Be `python -m lidar_cli`; returns, or raises, as it does."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    environment = request["environment"]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(request["cwd"])
    # The folder that it runs in, as for -m and -c, and what comes before what is installed.
    sys.path[:1] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    if any(name.startswith("HF_") and name != "HF_HUB_OFFLINE" for name in environment):
        for module in [name for name in sys.modules if name.split(".")[0] in IMPORTED_ANEW]:
            del sys.modules[module]
    sys.argv = ["lidar", *request["words"]]
    if request["script"]:
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(request["script"], vars(main))
    else:
        runpy.run_module("lidar_cli", run_name="__main__", alter_sys=True)


def _leave(error: BaseException | None) -> NoReturn:
    """End as the interpreter does, without taking the imported modules apart, which takes longer
    than most commands.
    """
    status = 0
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        status = error.code
    elif isinstance(error, SystemExit) and error.code is not None:
        print(error.code, file=sys.stderr)
        status = 1
    elif isinstance(error, SystemExit):
        pass
    elif isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the tests'
    _import_all()
    gc.collect()
    gc.freeze()  # else the first collection of a child copies every page
    with socket.socket(fileno=int(sys.argv[1])) as _connection:
        _request = _serve(_connection)
    try:
        _become(_request)
    except BaseException as _error:
        _leave(_error)
    _leave(None)
