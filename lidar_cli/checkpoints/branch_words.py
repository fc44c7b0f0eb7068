"""The words for two sets of weights in a file: in names of tensors, keys of dicts and `--branch`.

Every system has its own. Here the set that the loss trains is the student; a moving average of it,
or a frozen target, is the teacher.
"""

from __future__ import annotations

import re

AUTO, STUDENT, TEACHER, ENCODER = "auto", "student", "teacher", "encoder"
AVERAGED = re.compile(
    r"(\w+_)?(teacher|target|momentum|ema|swa|averaged|average|avg|frozen)(_\w+)?|\w+_k|key"
)
TRAINED = re.compile(r"(student|online|query)(_\w+)?|\w+_(student|online|q)")
UNMARKED = (ENCODER, "model", "net", "backbone")  # trained, next to a set with a word for averages
# Of all words that `--branch` takes, those that its completion offers.
OFFERED = (
    *(AUTO, STUDENT, *UNMARKED, "online", "online_encoder", "online_net", "online_network"),
    *("query", "encoder_q", TEACHER, "target", "target_encoder", "target_net", "target_network"),
    *("target_model", "momentum", "momentum_encoder", "momentum_backbone", "momentum_model"),
    *("momentum_net", "ema", "ema_model", "model_ema", "state_dict_ema", "ema_encoder"),
    *("encoder_ema", "net_ema", "key", "encoder_k", "averaged_model", "teacher_model"),
    "teacher_encoder",
)


def is_averaged(name: str) -> bool:
    """Whether a part of a name is a word for averaged or frozen weights."""
    return any(AVERAGED.fullmatch(part) for part in name.split("."))


def is_trained(name: str) -> bool:
    """Whether a part of a name is a word for weights that are trained next to averaged ones."""
    return any(TRAINED.fullmatch(part) for part in name.split("."))


def usual_branch(word: str) -> str | None:
    """The branch that a word usually names; None if it is no word for a set of weights."""
    if AVERAGED.fullmatch(word):
        return TEACHER
    return STUDENT if word in UNMARKED or TRAINED.fullmatch(word) else None
