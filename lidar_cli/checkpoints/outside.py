"""What is outside a backbone, which no layer of the backbone needs: heads, other networks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lidar_cli.checkpoints.reading.lazy_tensor import Weight

NONE = "none"  # of --prefix: names without a prefix; of --projector-prefix: no projector
# Modules after a backbone, or for training alone.
HEAD = re.compile(
    r"(?!\w*norm)(\w+_)?(projector|projection|head|heads|predictor|prediction|mlp|fc|classifier|decoder|neck"
    r"|prototypes|queue|center|last_layer|loss|criterion)(\d+|_\w+)?"
)


def module_outside(name: str, prefix: str) -> str:
    """The outermost module with a tensor that has no part in a prefix: 'a.c' of a.c.w and a.b."""
    parts, inside = name.split("."), prefix.split(".")[:-1]
    shared = 0
    while shared < min(len(parts) - 1, len(inside)) and parts[shared] == inside[shared]:
        shared += 1
    return ".".join(parts[: shared + 1])


def is_outside(name: str, prefix: str) -> bool:
    """Whether a tensor is outside a backbone; at the top level, whether a head has its name."""
    if prefix:
        return not name.startswith(prefix)
    return "." in name and HEAD.fullmatch(name.partition(".")[0]) is not None


def remove_outside(rest: dict[str, Weight], prefix: str) -> tuple[str, ...]:
    """Remove what is outside a backbone from `rest`; return its modules."""
    outside = [name for name in rest if is_outside(name, prefix)]
    for name in outside:
        del rest[name]
    modules = dict.fromkeys(module_outside(name, prefix) for name in outside)
    return tuple(f"{module} (not read)" for module in modules)


def option_without(names: Sequence[str], prefix: str) -> str:
    """The end of an error about these names: the option without them, '' if they may be needed."""
    if not all(is_outside(name, prefix) for name in names):
        return ""
    modules = {module_outside(name, prefix) for name in names if "." in name}
    projector = f", name the projector: --projector-prefix {min(modules)}." if modules else ""
    projector = projector if len(modules) == 1 else ""
    return f"{projector}, or take the backbone alone: --prefix {prefix or NONE}"
