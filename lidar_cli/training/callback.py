"""A callback of Lightning that reads the embeddings of every validation epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lidar_cli.errors import DegenerateFeatures, MissingExtra

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities import rank_zero_warn
    from torchmetrics import MetricCollection
except ImportError as error:
    raise MissingExtra("train", "lightning", "LogReadings") from error


class LogReadings(Callback):
    """Logs metrics of the embeddings of each validation epoch under their names.

        LogReadings(
            MetricCollection([LiDAR(n_views=10, dim=2048), RankMe(dim=2048)]),
            lambda module, batch: module.embed(batch["views"]),  # [b, q, d]
        )

    embed: from the module and a batch, as the validation loop meets them, to embeddings [b, q, d].
    A metric that an epoch does not determine is not logged, and a warning tells why.
    """

    def __init__(
        self, metrics: MetricCollection, embed: Callable[[LightningModule, Any], Tensor]
    ) -> None:
        self.metrics = metrics
        self.embed = embed

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last epoch."""
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
        """Log each metric of all processes together."""
        for name, metric in self.metrics.items():
            try:
                pl_module.log(name, metric.compute())
            except DegenerateFeatures as error:
                rank_zero_warn(f"no {name}: {error}")
