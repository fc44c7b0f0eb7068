"""Lightning: the callback logs the numbers of each validation epoch, by its own Trainer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from metric_objects import cloud
from peers import MARKS, package

from lidar_cli import AlphaReQ, LiDAR, RankMe, lidar, rankme

pytestmark = MARKS


@pytest.mark.filterwarnings("ignore")  # the Trainer's advice on loggers, workers and processors
def test_the_callback_logs_each_epoch_and_warns_of_what_it_does_not_determine() -> None:
    lightning = package("lightning")
    package("torchmetrics")
    from torchmetrics import MetricCollection

    from lidar_cli.integrations import LogMetrics

    class Scaled(lightning.LightningModule):  # type: ignore[name-defined, misc]
        """Embeds rows as themselves, times a weight that an epoch multiplies by 0.8."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))
            self.seen: list[dict[str, float]] = []

        def training_step(self, batch: Any, at: int) -> torch.Tensor:
            return self.weight**2

        def validation_step(self, batch: Any, at: int) -> None:
            pass

        def on_train_epoch_end(self) -> None:
            logged = self.trainer.callback_metrics
            self.seen.append({name: float(value) for name, value in logged.items()})

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    z = cloud()
    module = Scaled()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            LogMetrics(
                MetricCollection([LiDAR(n_views=4, dim=12), RankMe(dim=12), AlphaReQ(dim=12)]),
                lambda module, batch: module.weight * batch,
            )
        ],
    )
    loader = torch.utils.data.DataLoader(z, batch_size=16)
    with pytest.warns(UserWarning, match="no AlphaReQ: the fit reads eigenvalues 11 to 100"):
        trainer.fit(module, torch.utils.data.DataLoader(z, batch_size=60), loader)
    assert len(module.seen) == 2
    for weight, seen in zip((0.8, 0.64), module.seen, strict=True):
        assert math.isnan(seen["AlphaReQ"])
        assert seen["LiDAR"] == pytest.approx(lidar(weight * z), rel=1e-5)
        assert seen["RankMe"] == pytest.approx(rankme(weight * z[:, 0]), rel=1e-5)
