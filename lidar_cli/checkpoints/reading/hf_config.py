"""What the config.json of a Hugging Face or timm folder tells that the weights do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lidar_cli.errors import CheckpointError

EXACT_GELU = ("gelu", "gelu_python")  # both by the error function, as in every module here


def options_of(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """heads and eps of a transformer, where the configuration has them.

    Raises CheckpointError for values that no transformer has, and for an activation other than
    GELU, which the modules of this package cannot give.
    """
    heads, eps = config.get("num_attention_heads"), config.get("layer_norm_eps")
    activation = config.get("hidden_act", "gelu")
    if heads is not None and (type(heads) is not int or heads < 1):
        raise _refusal(origin, "num_attention_heads", heads, "a number of heads")
    if eps is not None and (type(eps) not in (int, float) or not 0 <= eps < 1):
        raise _refusal(origin, "layer_norm_eps", eps, "a small positive number")
    if activation not in EXACT_GELU:
        raise _refusal(origin, "hidden_act", activation, "gelu")
    told = {"heads": heads, "eps": eps}
    return {name: value for name, value in told.items() if value is not None}


def architecture(config: Mapping[str, Any] | None) -> str | None:
    """timm's name of the model, None for a configuration that is not timm's."""
    name = config.get("architecture") if config and "pretrained_cfg" in config else None
    return name if isinstance(name, str) else None


def _refusal(origin: str, name: str, value: object, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{origin}: config.json has {name} = {str(value)[:40]!r}; expected {expected}; "
        "name your own code with --model"
    )
