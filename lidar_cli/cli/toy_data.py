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
    command, and is not opened. more: switches to add to the command. result: its first words.
    """
    from lidar_cli.ranking.hyperparameters import recorded_data
    from lidar_cli.ranking.session import toy_data_note

    text = toy_data_note(data, result)
    if text is None:
        return
    folder, command = recorded_data(checkpoints), _command(more)
    if folder is None:
        write_remark(f"{text}: {command} --data FOLDER")
        return
    write_remark(text)
    write_remark("the checkpoints record where their images were; to use those:")
    named = f"./{folder}" if folder.startswith("-") else folder
    write_remark(f"{command} --data {shlex.quote(named)}")


def _command(more: Sequence[str]) -> str:
    """This command without --data and with switches that it lacks, as it is typed in a shell."""
    words = sys.argv[1:]
    for at in reversed(range(len(words))):
        if words[at].startswith("--data="):
            del words[at]
        elif words[at] == "--data":
            del words[at : at + 2]
    return shlex.join(["lidar", *words, *(word for word in more if word not in words)])
