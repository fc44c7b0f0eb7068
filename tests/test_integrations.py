"""torchmetrics objects: equal to the functions on all data, however it arrives."""

import json
import math
import os
import pickle
import sys
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from command import Command, run_command
from make import environment
from metric_objects import RANKS, cloud, objects, values
from raising import raises
from torchmetrics import MetricCollection

from lidar_cli import AlphaReQ, LiDAR, RankMe, alpha_req, lidar, rankme
from lidar_cli.core import metrics, noise, spectra
from lidar_cli.core.metrics import METRICS
from lidar_cli.core.moments import Moments
from lidar_cli.errors import DegenerateFeatures
from lidar_cli.integrations import EmbeddingMetric
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ScoreSettings


def whole(z):
    """The same four numbers of all the data at once, by the functions."""
    n, q, _ = z.shape
    eigenvalues = spectra.lda_spectrum(Moments.of(z), 1e-4).eigenvalues
    return {
        "lidar": lidar(z),
        "pillai": metrics.pillai(noise.corrected_spectrum(eigenvalues, n, q)),
        "rankme": rankme(z[:, 0]),
        "alpha_req": alpha_req(z[:, 0], ranks=RANKS).alpha,
    }


@pytest.mark.parametrize("sizes", [[60], [1, 59], [7, 0, 20, 33], [1] * 60])
def test_batches_of_any_size_give_the_number_of_all_data(sizes):
    z = cloud()
    found = objects()
    for batch in z.split(sizes):
        for metric in found.values():
            metric.update(batch)
    assert values(found) == pytest.approx(whole(z), rel=1e-9)


def test_fewer_rows_than_dimensions():
    z = cloud(n=9, q=4, d=12)
    found = {"lidar": LiDAR(4, 12), "rankme": RankMe(12)}
    for metric in found.values():
        metric.update(z[:4])
        metric.update(z[4:])
    # The zero eigenvalues of RankMe are not counted beyond N, or epsilon would add to its entropy.
    expected = {"lidar": lidar(z), "rankme": rankme(z[:, 0])}
    assert values(found) == pytest.approx(expected, rel=1e-9)


def test_a_mean_far_beyond_the_spread_costs_no_digits():
    z = cloud().double()
    metric = LiDAR(4, 12)
    for batch in (z + 1e8).split(8):
        metric.update(batch)
    assert metric.compute().item() == pytest.approx(lidar(z), rel=1e-6)


def test_reset_forgets():
    found = objects()
    for metric in found.values():
        metric.update(cloud(seed=1) - 50.0)
        metric.reset()
        metric.update(cloud(seed=2))
    assert values(found) == pytest.approx(whole(cloud(seed=2)), rel=1e-9)


def test_forward_gives_the_value_of_the_batch_and_adds_it():
    z = cloud()
    metric = LiDAR(4, 12)
    for batch in z.split(20):
        assert metric(batch).item() == pytest.approx(lidar(batch), rel=1e-9)
    assert metric.compute().item() == pytest.approx(lidar(z), rel=1e-9)


def test_metrics_of_a_collection_share_a_state():
    z = cloud()
    collection = MetricCollection(objects())
    for batch in z.split(13):
        collection.update(batch)
    assert sorted(map(len, collection.compute_groups.values())) == [2, 2]
    found = {name: value.item() for name, value in collection.compute().items()}
    assert found == pytest.approx(whole(z), rel=1e-9)


def test_the_state_stays_double_through_casts_and_pickling():
    z = cloud()
    metric = LiDAR(4, 12)
    metric.update(z[:30])
    metric = pickle.loads(pickle.dumps(metric.half()))
    metric.update(z[30:])
    assert metric.moments.dtype == torch.float64
    assert metric.compute().item() == pytest.approx(lidar(z), rel=1e-9)


def test_what_is_not_determined_raises_and_other_shapes_are_refused():
    metric = LiDAR(4, 12)
    metric.update(cloud()[:1])
    with raises(DegenerateFeatures, "one-sample"):
        metric.compute()
    with pytest.raises(ValueError, match=r"expected a chunk \[c, 4, 12\], got \(60, 3, 12\)"):
        metric.update(cloud(q=3))
    with pytest.raises(ValueError, match=r"expected embeddings \[b, 12\] or \[b, q, 12\], got"):
        RankMe(12).update(torch.zeros(3, 11))


@pytest.mark.parametrize("name", objects())
def test_no_data_and_data_that_is_not_finite_give_nan_with_a_warning(name):
    metric = objects()[name]
    with pytest.warns(UserWarning, match="was called before the ``update``"):  # torchmetrics' own
        assert math.isnan(metric.compute())
    for bad in (math.nan, math.inf):
        metric.reset()
        metric.update(cloud())
        metric.update(cloud(seed=1) * bad)
        with pytest.warns(UserWarning, match="is NaN: an embedding was NaN or Inf"):
            assert math.isnan(metric.compute())
    metric.reset()
    metric.update(cloud()[:0])
    with pytest.warns(UserWarning, match="is NaN: no embedding was added"):
        assert math.isnan(metric.compute())
    metric.reset()
    metric.update(cloud())
    assert metric.compute().item() == pytest.approx(whole(cloud())[name], rel=1e-9)


WORKER = """
import json, sys
import torch
import torch.distributed as dist
from metric_objects import cloud, objects, values

rank, place, splits = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
results = []
for sizes in splits:
    found = objects()
    for batch in cloud().split(sizes)[rank].split(7):
        for metric in found.values():
            if len(batch):
                metric.update(batch)
    first = values(found)
    for metric in found.values():  # a synchronised state must not be taken for the process's own
        metric.update(cloud(seed=5)[rank::2])
    results.append([first, values(found)])
print(json.dumps(results))
dist.destroy_process_group()
"""


def test_two_processes_agree_on_the_number_of_all_data(tmp_path):
    """For each number of samples that the first and the second have."""
    more = torch.cat([cloud(), cloud(seed=5)])
    for results in of_two_processes(WORKER, tmp_path / "meet", [[41, 19], [60, 0]]):
        assert len(results) == 2
        for first, second in results:
            assert first == pytest.approx(whole(cloud()), rel=1e-9)
            assert second == pytest.approx(whole(more), rel=1e-9)


COLLAPSED = """
import json, sys
import torch.distributed as dist
from metric_objects import cloud, objects, values
from lidar_cli.errors import DegenerateFeatures
from lidar_cli.integrations import EmbeddingMetric
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ScoreSettings

rank, place = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
seen = objects()
refused = []
for name, metric in seen.items():
    metric.update(0 * cloud()[:1])
    try:
        metric.compute()
    except DegenerateFeatures:
        refused.append(name)
    metric.update(cloud()[rank::2])
print(json.dumps([refused, {name: int(metric.moments[0, 0]) for name, metric in seen.items()}]))
dist.destroy_process_group()
"""


def test_after_a_refused_number_a_process_has_its_own_data_again(tmp_path):
    for refused, counts in of_two_processes(COLLAPSED, tmp_path / "meet"):
        assert refused == [*objects()]
        assert counts == dict.fromkeys(objects(), 31)  # one of 0, and 30 of the 60


def of_two_processes(script, meet, splits=()):
    """What each of two processes that run a script prints, from JSON."""
    paths = environment(PYTHONPATH=os.pathsep.join(sys.path))
    running = [
        Command([rank, meet, json.dumps(splits)], meet.parent, paths, script=script)
        for rank in range(2)
    ]
    ends = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], ends
    return [json.loads(stdout) for stdout, _ in ends]


def test_without_the_extra_one_line_names_it(tmp_path):
    script = "import sys; sys.modules['torchmetrics'] = None; from lidar_cli import LiDAR"
    ended = run_command([], tmp_path, environment(), script=script)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "lidar_cli.errors.MissingExtra: a metric while training needs the package torchmetrics, "
        "which is not installed; install it with: pip install 'lidar-cli[train]'"
    )


def test_the_package_itself_needs_neither_extra(tmp_path):
    script = (
        "import sys; sys.modules |= {'torchmetrics': None, 'lightning': None}\n"
        "import lidar_cli.integrations as integrations\n"
        "print(integrations.__all__)\n"
        "from lidar_cli.integrations import LogMetrics"
    )
    ended = run_command([], tmp_path, environment(), script=script)
    assert ended.returncode == 1
    assert "'LogMetrics'" in ended.stdout
    assert "LogMetrics needs the package lightning" in ended.stderr.splitlines()[-1]


def test_a_metric_of_the_sphere_or_of_no_such_name_is_refused():
    for name in ("alignment", "retrieval", "lidarr"):
        with pytest.raises(ValueError, match=f"no metric of a spectrum is called '{name}'"):
            EmbeddingMetric(name, dim=3)


def test_every_metric_of_a_spectrum_is_that_of_score(tmp_path):
    z = cloud(n=300, q=4, d=110)
    numpy.save(tmp_path / "z.npy", z)
    (score,) = score_file(tmp_path / "z.npy", ScoreSettings(device="cpu", metrics="all"))
    for name, metric in METRICS.items():
        if metric.reads != "sphere" and not metric.reads_subset:
            streamed = EmbeddingMetric(name, dim=110, n_views=4)
            for batch in z.split(70):
                streamed.update(batch)
            assert streamed.compute().item() == pytest.approx(score.value(name), rel=1e-6), name
            assert streamed.higher_is_better is metric.higher_is_better
    assert LiDAR.higher_is_better is True
    assert AlphaReQ.higher_is_better is None


# Lightning


def trained(tmp_path, scales, *callbacks, alarm=None, resume=None):
    """A Trainer after one epoch a scale: embeddings are all data times it, NaN as they are.

    The Trainer stops when a callback stops it. Its checkpoints are named by epoch and value.
    """
    lightning = pytest.importorskip("lightning")
    from lidar_cli.integrations import LogMetrics

    class Scaled(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def training_step(self, batch, at):
            return self.weight**2

        def validation_step(self, batch, at):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    logged = LogMetrics(
        MetricCollection([LiDAR(n_views=4, dim=12, delta=1.0)]),
        lambda module, batch: scales[module.current_epoch] * batch,
        alarm,
    )
    trainer = lightning.Trainer(
        max_epochs=len(scales), accelerator="cpu", logger=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[logged, *callbacks],
    )  # fmt: skip
    data = torch.utils.data.DataLoader(cloud(), batch_size=60)
    validation = torch.utils.data.DataLoader(cloud(), batch_size=16)
    trainer.fit(Scaled(), data, validation, ckpt_path=resume)
    return trainer


def kept(tmp_path, scales, save_top_k):
    """Names of the checkpoints that ModelCheckpoint leaves, and of its best."""
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    checkpoint = callbacks.ModelCheckpoint(
        tmp_path, "{epoch}-{LiDAR:.4f}", monitor="LiDAR", mode="max", save_top_k=save_top_k
    )
    trained(tmp_path, scales, checkpoint)
    return sorted(path.stem for path in tmp_path.glob("*.ckpt")), Path(
        checkpoint.best_model_path
    ).stem


def named(epoch, scale):
    value = math.nan if scale == 0 or math.isnan(scale) else lidar(scale * cloud(), delta=1.0)
    return f"epoch={epoch}-LiDAR={value:.4f}"


@pytest.mark.filterwarnings("ignore")  # the Trainer's advice on loaders, processors and folders
@pytest.mark.parametrize("undetermined", [0.0, math.nan])
def test_no_checkpoint_carries_a_value_that_its_epoch_did_not_have(tmp_path, undetermined):
    scales = [1.0, undetermined, 0.5]
    every, best = kept(tmp_path, scales, save_top_k=-1)
    assert len({lidar(scale * cloud(), delta=1.0) for scale in (1.0, 0.5)}) == 2
    assert every == [named(epoch, scale) for epoch, scale in enumerate(scales)]
    assert best == max(named(0, 1.0), named(2, 0.5), key=lambda name: float(name.split("=")[-1]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("save_top_k", [1, 2, -1])
def test_a_collapse_in_the_first_epoch_ends_nothing_and_is_not_the_best(tmp_path, save_top_k):
    scales = [0.0, math.nan, 0.5]
    every, best = kept(tmp_path, scales, save_top_k)
    assert best == named(2, 0.5)
    assert len(every) == (3 if save_top_k == -1 else save_top_k)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("check_finite", "epochs"), [(True, 2), (False, 4)])
def test_early_stopping_ends_at_nan_unless_it_does_not_check(tmp_path, check_finite, epochs):
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    stopping = callbacks.EarlyStopping(
        monitor="LiDAR", mode="max", patience=3, check_finite=check_finite
    )
    trainer = trained(tmp_path, [1.0, 0.0, 0.5, 1.0], stopping)
    assert trainer.current_epoch == epochs


def falls(scales, alarm):
    """What is logged after each scale, by the definition: the best value so far, and the fall."""
    expected, best = [], -math.inf
    for scale in scales:
        value = lidar(scale * cloud(), delta=1.0) if scale else math.nan
        best = max(best, value) if scale else best
        share = (best - value) / abs(best)
        over = float(not scale or share > alarm)
        expected.append({"LiDAR": value, "LiDAR_drawdown": share, "LiDAR_alarm": over})
    return [pytest.approx(each, rel=1e-6, nan_ok=True) for each in expected]


FALLING = [0.5, 1.0, 0.9, 0.3, 0.0]  # up, down a little, far down, collapsed
ALARM = 0.005  # between the falls at 0.9 and 0.3, which are 0.0001 and 0.007


@pytest.mark.filterwarnings("ignore")
def test_the_fall_from_the_best_epoch_is_logged_also_after_a_restart(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Logged(lightning.Callback):
        def __init__(self):
            self.epochs = []

        def on_validation_end(self, trainer, module):
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self.epochs.append(metrics)

    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    saved, first, second = callbacks.ModelCheckpoint(tmp_path, "last"), Logged(), Logged()
    trained(tmp_path, FALLING[:2], saved, first, alarm=ALARM)
    with pytest.warns(UserWarning, match="alarm: LiDAR") as warned:
        trained(tmp_path, FALLING, second, alarm=ALARM, resume=tmp_path / "last.ckpt")
    assert [*first.epochs, *second.epochs] == falls(FALLING, ALARM)
    alarms = [str(one.message) for one in warned if "alarm: " in str(one.message)]
    assert len(alarms) == 2  # of the last two epochs
    assert "no value" in alarms[1]


# Hugging Face's Trainer


class Scaled(torch.nn.Module):
    """Embeddings are the batch times the next of some scales, one for each evaluation."""

    def __init__(self, scales):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.scales = iter(scales)

    def forward(self, x):
        return {"loss": self.weight**2}


def evaluated(model, loader):
    """An `embed` of all batches of the loader by one scale, and the callback of it."""
    from lidar_cli.integrations import LogMetricsCallback

    batches = len(loader)
    seen = [0, 1.0]

    def embed(model, batch):
        assert not model.training
        assert not torch.is_grad_enabled()
        seen[1] = seen[1] if seen[0] % batches else next(model.scales)
        seen[0] += 1
        return seen[1] * batch["x"]

    metrics = MetricCollection([LiDAR(n_views=4, dim=12, delta=1.0)])
    return LogMetricsCallback(metrics, embed, alarm=ALARM)


def unprefixed(record):
    """The entries of our metric, without the prefix of the evaluation."""
    return {name.removeprefix("eval_"): v for name, v in record.items() if "LiDAR" in name}


def test_each_evaluation_of_hugging_face_is_logged_and_returned():
    trainer = pytest.importorskip("transformers.trainer_callback")
    loader = [{"x": batch} for batch in cloud().split(16)]
    returned = []
    state, control = trainer.TrainerState(), trainer.TrainerControl()
    for scales in (FALLING[:2], FALLING[2:]):  # a training, and the same one resumed
        model = Scaled(scales).train()
        handler = trainer.CallbackHandler([evaluated(model, loader)], model, None, None, None)
        handler.eval_dataloader = loader
        handler.on_train_begin(None, state, control)
        for scale in scales:
            state.global_step += 10
            metrics = {"eval_loss": 1.0, "eval_runtime": 0.1}
            with warnings.catch_warnings(record=True, action="always") as warned:
                handler.on_evaluate(None, state, control, metrics)
            texts = [str(one.message) for one in warned]
            returned.append(unprefixed(metrics))
            assert any("alarm: eval_LiDAR" in text for text in texts) is (scale < 0.5)
            assert model.training
    expected = falls(FALLING, ALARM)
    assert returned == expected
    assert [unprefixed(record) for record in state.log_history] == expected
    assert [record["step"] for record in state.log_history] == [10, 20, 30, 40, 50]


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_selects_its_best_model_by_it(tmp_path):
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    data = [{"x": sample} for sample in cloud()]
    settings = transformers.TrainingArguments(
        tmp_path, num_train_epochs=3, eval_strategy="epoch", save_strategy="best", use_cpu=True,
        metric_for_best_model="LiDAR", greater_is_better=True, report_to=[], disable_tqdm=True,
        per_device_train_batch_size=60, per_device_eval_batch_size=16,
    )  # fmt: skip
    model = Scaled(FALLING[1:4])
    trainer = transformers.Trainer(model, settings, train_dataset=data, eval_dataset=data)
    callback = evaluated(model, range(4))
    trainer.add_callback(callback)
    callback.log = trainer.log
    trainer.train()
    logged = [unprefixed(record) for record in trainer.state.log_history]
    assert [record for record in logged if record] == falls(FALLING[1:4], ALARM)
    assert trainer.state.best_metric == pytest.approx(lidar(cloud(), delta=1.0))
    assert trainer.state.best_global_step == 1
