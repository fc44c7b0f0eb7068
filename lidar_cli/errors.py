"""Every error that a user can cause.

    LidarError                 never raised itself; `exit_status` says what the shell sees
    |-- SettingsError      2   an option, variable or config key is wrong
    |   `-- MissingExtra   2   the option needs a package that is not installed
    |-- InputError         3   data or an array file cannot be used, or an output written
    |   |-- ProcessGroupBroken         3   processes that do one thing together lost each other
    |   `-- NoProcess      3   no process can be started to read files in: the machine's doing
    |-- FeatureFileError   3   an HDF5 feature file cannot be used
    |   |-- InUse          3   another process is writing it
    |   |-- Unresumable    3   what an interrupted run left cannot be gone on with
    |   `-- BadRows        3   rows of one file cannot be read or used; also an InputError
    |-- CheckpointError    3   a checkpoint cannot be used
    |   `-- NoWeights      3   the file holds no model weights at all (`rank` skips it)
    `-- DegenerateFeatures 3   the embeddings do not determine the number asked for

A message is one line: what was found, what was expected, what to do next. Its wording may change;
`code` does not: a short name of what is wrong, such as "no-such-file".
"""

import difflib


class LidarError(Exception):
    """Base of all errors that a user can cause.

    code: what is wrong, for programs and tests; that of the class unless one is given.
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
    """Processes that do one thing together lost each other; nothing more can be done together."""

    code = "process-group-broken"


class NoProcess(InputError):
    """No process can be started to read files in, which says nothing about any file."""

    code = "no-process"


class FeatureFileError(LidarError):
    """A feature file is not one, is incomplete, damaged, or in the way."""

    code = "feature-file"


class InUse(FeatureFileError):
    """Another process is writing this feature file; it must not be replaced."""

    code = "in-use"


class Unresumable(FeatureFileError):
    """A partial file is damaged, or was begun with other settings; only a new start helps."""

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
    """The embeddings do not determine the number that was asked for."""

    code = "degenerate-features"


# What one file can cause and the work on others outlives.
OF_ONE_FILE = (LidarError, OSError, MemoryError, RecursionError)


def first_line(error: BaseException) -> str:
    """What another library's error says, short enough to stand inside a line of ours."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    lines = (line for line in str(error).splitlines() if line.strip())
    unsaid = "it does not fit into memory" if isinstance(error, MemoryError) else None
    return next(lines, unsaid or type(error).__name__)


def printable(text: str) -> str:
    """The text in one line without what a terminal obeys: such characters as escapes, `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def shortened(text: str) -> str:
    """Text from a file, short enough to stand inside a line of ours, and printable."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 300 else f"{text[:300]}..."


def nearest(word: str, known: list[str]) -> str:
    """A phrase that names the known word closest to a mistyped one."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(sorted(known))}"
