"""All errors that a user can cause.

    LidarError                     base class, never raised; numbers: exit status of the command
    |-- SettingsError          2   an option, variable or config key is wrong
    |   `-- MissingExtra       2   an option needs a package that is not installed
    |-- InputError             3   data or an array file cannot be used, or an output written
    |   |-- ProcessGroupBroken 3   a process of the group failed or does not answer
    |   `-- NoProcess          3   no process can be started to read files: the machine's fault
    |-- FeatureFileError       3   an HDF5 feature file cannot be used
    |   |-- InUse              3   another process is writing it
    |   |-- Unresumable        3   the partial file of an interrupted run cannot be resumed
    |   `-- BadRows            3   rows of one file cannot be read or used; also an InputError
    |-- CheckpointError        3   a checkpoint cannot be used
    |   `-- NoWeights          3   the file holds no model weights (`rank` skips it)
    `-- DegenerateFeatures     3   the embeddings do not determine the requested number

A message is one line: what was found, what was expected, what to do next. Its wording may change;
`code` does not: a short name of what is wrong, such as "no-such-file".
"""

import difflib

# Exit status of every command -> its meaning, for help and `lidar explain exit-statuses`.
EXIT_STATUSES = {
    0: "done",
    2: "wrong usage",
    3: "input refused, output not writable, or nothing to rank",
    4: "ranked, but some checkpoints failed",
    5: "alarm: a metric fell from its peak",
    130: "interrupted",
    143: "terminated",
}


class LidarError(Exception):
    """Base of all errors that a user can cause.

    code: a stable name of what is wrong, for programs and tests; by default that of the class.
    """

    exit_status = 3
    code = "error"

    def __init__(self, message: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class SettingsError(LidarError):
    """An option, an environment variable or a configuration key is wrong."""

    code = "settings"
    exit_status = 2


class MissingExtra(SettingsError):
    """An option needs a package that is not installed."""

    code = "missing-extra"

    def __init__(self, extra: str, package: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed; "
            f"install it with: pip install 'lidar-cli[{extra}]'"
        )


class InputError(LidarError):
    """Data cannot be read or has the wrong shape, or an output cannot be written."""

    code = "input"


class ProcessGroupBroken(InputError):
    """A process of the group failed or does not answer, so the group cannot continue."""

    code = "process-group-broken"


class NoProcess(InputError):
    """No process can be started to read files in; the files are not at fault."""

    code = "no-process"


class FeatureFileError(LidarError):
    """A feature file has another format, is incomplete or damaged, or already exists."""

    code = "feature-file"


class InUse(FeatureFileError):
    """Another process is writing this feature file, which must not be replaced."""

    code = "in-use"


class Unresumable(FeatureFileError):
    """A partial file is damaged, or was written with other settings; the run must start over."""

    code = "unresumable"


class BadRows(InputError, FeatureFileError):
    """Rows of one file cannot be read, were never written, or hold NaN or Inf."""

    code = "bad-rows"


class CheckpointError(LidarError):
    """A checkpoint cannot be read, or its weights are not understood."""

    code = "checkpoint"


class NoWeights(CheckpointError):
    """A readable file that holds no model weights, such as an optimizer state."""

    code = "no-weights"


class DegenerateFeatures(LidarError):
    """The embeddings do not determine the requested number."""

    code = "degenerate-features"


class LidarWarning(UserWarning):
    """What the command line would print on stderr: a caution, an assumption, a file left out."""


# Errors that one file can cause; the program continues with the other files.
FILE_ERRORS = (LidarError, OSError, MemoryError, RecursionError)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for use in a message."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    lines = (line for line in str(error).splitlines() if line.strip())
    default = "it does not fit into memory" if isinstance(error, MemoryError) else None
    return next(lines, default or type(error).__name__)


def printable(text: str) -> str:
    """The text in one line, with control characters as escapes such as `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def shortened(text: str) -> str:
    """The text, printable and with at most 300 characters, for use in a message."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 300 else f"{text[:300]}..."


def suggestion(word: str, *names: str) -> str:
    """`; did you mean X?` for a mistyped word that is close to one of the names, else empty."""
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), lower, n=1)
    return f"; did you mean {lower[close[0]]}?" if close else ""


def nearest(word: str, names: list[str]) -> str:
    """A phrase for a message: the name closest to a mistyped word, or else all names."""
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    if close:
        return f"did you mean {lower[close[0]]}?"
    return f"known: {', '.join(sorted(names))}"
