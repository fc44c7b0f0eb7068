"""A callback of Hugging Face's Trainer that logs metrics of the embeddings of every evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lidar_cli.errors import MissingExtra

try:
    from torchmetrics import MetricCollection
    from transformers import TrainerCallback

    from lidar_cli.integrations.logged_values import LoggedValues
except ImportError as error:
    raise MissingExtra("transformers", "transformers", "LogMetricsCallback") from error

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class LogMetricsCallback(TrainerCallback):
    """Logs metrics of the embeddings of each evaluation, with the prefix of the evaluation.

    After an evaluation its data is read a second time, since a callback does not receive the
    outputs of the model. `eval_NAME` is added to what `Trainer.evaluate` returns, and thus can be
    `metric_for_best_model`, and to the log. A metric that cannot be computed is NaN, with a warning
    that gives the reason, and is never the best.

    `eval_NAME_drawdown` is the fall of the metric `NAME` from its best value so far, as a share of
    that value's size; `eval_NAME_alarm` is 1 where this exceeds `alarm` or the metric has no value
    any more, else 0. The best values of a resumed training are those of its log.

    Args:
        metrics: the torchmetrics objects; each is reset when an evaluation has ended.
        embed: a function of the model and a batch of the evaluation loader that returns embeddings
            [b, q, d], q views of each of b samples, or [b, d] if every metric reads rows. It runs
            without gradients, with the model in evaluation mode.
        log: receives the values by name; `trainer.log` also sends them to Weights & Biases,
            TensorBoard or MLflow. None adds them to `state.log_history` alone.
        alarm: share of the best value, such as 0.2; a larger fall is logged and a Python warning.

    Example:
        >>> from torchmetrics import MetricCollection
        >>> from lidar_cli.integrations import LiDAR, LogMetricsCallback, RankMe
        >>> callback = LogMetricsCallback(
        ...     MetricCollection([LiDAR(n_views=10, dim=384), RankMe(dim=384)]),
        ...     lambda model, batch: model.embed(batch["views"]),  # [b, 10, 384]
        ...     alarm=0.2,
        ... )  # trainer.add_callback(callback); callback.log = trainer.log
        >>> sorted(callback.metrics)
        ['LiDAR', 'RankMe']

    References:
        Transformers, "Callbacks": https://huggingface.co/docs/transformers/main_classes/callback
    """

    def __init__(
        self,
        metrics: MetricCollection,
        embed: Callable[[nn.Module, Any], Tensor],
        log: Callable[[dict[str, float]], object] | None = None,
        alarm: float | None = None,
    ) -> None:
        self.metrics = metrics
        self.embed = embed
        self.log = log
        self._is_main = True
        self._logged = LoggedValues(metrics, alarm, self._warn)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the best values from the log of a training that is resumed."""
        self._logged.restore(state.log_history)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        eval_dataloader: Any = None,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Embed the evaluation data, then add each metric, computed over all processes."""
        assert model is not None
        values = {} if metrics is None else metrics
        self._is_main = state.is_world_process_zero
        self.metrics.to(next(model.parameters()).device)
        self.metrics.reset()
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for batch in eval_dataloader:
                self.metrics.update(self.embed(model, batch))
        model.train(was_training)
        # With several evaluation sets the Trainer's own values have the name of the set.
        prefixes = (name for name in values if name.endswith("_runtime"))
        prefix = next(prefixes, "eval_runtime").removesuffix("runtime")
        logged = {name: float(value) for name, value in self._logged.compute(prefix).items()}
        values.update(logged)
        if self.log is not None:
            self.log(dict(logged))
        else:
            state.log_history.append(logged | {"epoch": state.epoch, "step": state.global_step})

    def _warn(self, text: str) -> None:
        if self._is_main:
            warnings.warn(text, stacklevel=2)
