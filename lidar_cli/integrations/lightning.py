"""A Lightning callback that logs metrics of the embeddings of every validation epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lidar_cli.errors import MissingExtra

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities import rank_zero_warn
    from torchmetrics import MetricCollection

    from lidar_cli.integrations.logged_values import LoggedValues
except ImportError as error:
    raise MissingExtra("train", "lightning", "LogMetrics") from error


class LogMetrics(Callback):
    """Logs metrics of the embeddings of each validation epoch under their names.

    A metric that cannot be computed in an epoch, for example because the embedding collapsed, is
    logged as NaN, with a warning that gives the reason. ModelCheckpoint then writes `nan` into the
    file's name and ranks the file below every finite one. EarlyStopping ends the training at the
    first NaN, except with `check_finite=False`, where the epoch counts as one without improvement.

    `NAME_drawdown` is the fall of the metric `NAME` from its best value so far, as a share of that
    value's size; `NAME_alarm` is 1 where this exceeds `alarm` or the metric has no value any more,
    else 0. A checkpoint of the training holds the best values.

    Args:
        metrics: the torchmetrics objects; each is reset when a validation epoch starts.
        embed: a function of the module and a batch of the validation loader that returns embeddings
            [b, q, d], q views of each of b samples, or [b, d] if every metric reads rows.
        alarm: share of the best value, such as 0.2; a larger fall is logged and a Python warning.

    Example:
        >>> from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
        >>> from torchmetrics import MetricCollection
        >>> from lidar_cli.integrations import LiDAR, LogMetrics, RankMe
        >>> callbacks = [
        ...     LogMetrics(
        ...         MetricCollection([LiDAR(n_views=10, dim=2048), RankMe(dim=2048)]),
        ...         lambda module, batch: module.embed(batch["views"]),  # [b, 10, 2048]
        ...     ),
        ...     ModelCheckpoint(monitor="LiDAR", mode="max", filename="{epoch}-{LiDAR:.2f}"),
        ...     EarlyStopping(monitor="LiDAR", mode="max", check_finite=False),
        ... ]  # for Trainer(callbacks=callbacks)
        >>> sorted(callbacks[0].metrics)
        ['LiDAR', 'RankMe']

    References:
        Lightning, "Callback": https://lightning.ai/docs/pytorch/stable/extensions/callbacks.html
    """

    def __init__(
        self,
        metrics: MetricCollection,
        embed: Callable[[LightningModule, Any], Tensor],
        alarm: float | None = None,
    ) -> None:
        self.metrics = metrics
        self.embed = embed
        self._logged = LoggedValues(metrics, alarm, rank_zero_warn)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the metrics."""
        self.metrics.to(pl_module.device)
        self.metrics.reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        self.metrics.update(self.embed(pl_module, batch))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log each metric, computed over all processes, but for a check before the training."""
        if trainer.sanity_checking:
            return
        for name, value in self._logged.compute().items():
            pl_module.log(name, value)

    def state_dict(self) -> dict[str, Any]:
        """The best values so far, for a checkpoint of the training."""
        return {"peaks": dict(self._logged.peaks)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the best values of a checkpoint."""
        self._logged.peaks = dict(state_dict["peaks"])
