"""The words that `--branch` takes, and which of a file's branches each of them names.

Every system has its own words for two sets of weights in a file. Here the one that the loss trains
is the student; a moving average of it, or a frozen target, is the teacher.
"""

from __future__ import annotations

from collections.abc import Iterable

from lidar_cli.checkpoints.formats.format import Branch

AUTO, STUDENT, TEACHER, ENCODER = "auto", "student", "teacher", "encoder"
STUDENT_WORDS = (
    *(STUDENT, ENCODER, "online", "online_encoder", "online_net", "online_network", "query"),
    *("encoder_q", "model", "net", "backbone"),
)
TEACHER_WORDS = (
    *(TEACHER, "target", "target_encoder", "target_net", "target_network", "target_model"),
    *("momentum", "momentum_encoder", "momentum_backbone", "momentum_model", "momentum_net"),
    *("ema", "ema_model", "model_ema", "state_dict_ema", "ema_encoder", "encoder_ema", "net_ema"),
    *("key", "encoder_k", "averaged_model", "teacher_model", "teacher_encoder"),
)
# Word of the user -> name of a branch.
WORDS = {
    AUTO: AUTO,
    **dict.fromkeys(STUDENT_WORDS, STUDENT),
    **dict.fromkeys(TEACHER_WORDS, TEACHER),
}


def named_branch(word: str, branches: Iterable[Branch]) -> Branch | None:
    """The branch with this name or alias, else the one that the word usually names; None if none.

    A branch 'encoder', which is alone, is the student.
    """
    branches = list(branches)
    for branch in branches:
        if word in (branch.name, *branch.aliases):
            return branch
    for branch in branches:
        if WORDS.get(word) in (branch.name, {ENCODER: STUDENT}.get(branch.name)):
            return branch
    return None
