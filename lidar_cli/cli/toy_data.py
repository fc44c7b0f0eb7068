"""The last lines on stderr of a command that named no data."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from lidar_cli.runtime.streams import write_remark


def note_toy_data(
    data: str, checkpoints: Sequence[str], *more: str, result: str = "this order is by"
) -> None:
    """Print that a result is of toy pictures, and the same command with the user's data, if so.

    data: of the result. checkpoints: paths; the folder of images that they record is part of the
    command, and is not opened. more: words to add to the command. result: its first words.
    """
    from lidar_cli.ranking.hyperparameters import recorded_data
    from lidar_cli.ranking.session import toy_data_note

    text = toy_data_note(data, result)
    if text is None:
        return
    folder = recorded_data(checkpoints)
    if folder is None:
        write_remark(f"{text}: {_command(*more, '--data')} FOLDER")
        return
    write_remark(text)
    write_remark("the checkpoints record where their images were; to use those:")
    write_remark(_command(*more, "--data", f"./{folder}" if folder.startswith("-") else folder))


def _command(*more: str) -> str:
    """This command with more words, as it is typed in a shell."""
    words = sys.argv[1:]
    for at in reversed(range(len(words))):
        if words[at].startswith("--data="):
            del words[at]
        elif words[at] == "--data":
            del words[at : at + 2]
    return shlex.join(["lidar", *words, *(word for word in more if word not in words)])
