"""What K checkpoints cost together, against K times one, and what bfloat16 does to their order."""

import dataclasses
import shutil
import time

import timm
import torch
from extraction import photographs, profile
from harness import Goal, Line, alternate, median, ratio
from make import checkpoint
from scipy.stats import kendalltau

from lidar_cli.core.metrics import METRICS
from lidar_cli.data.builtin import embedded_images
from lidar_cli.demo.run import train_all
from lidar_cli.extraction.run import extract_checkpoint
from lidar_cli.ranking.session import rank_directory
from lidar_cli.runtime.device import cpu_multiplies_in
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import EMBEDDED, ExtractSettings, RankSettings, ScoreSettings

K, N, Q, SIZE = 8, 24, 10, 224
WIDTHS = (8, 16, 32, 64)
REPEATS = 2
N_TRAINED, Q_TRAINED = 300, 4  # of the embedded images, for the checkpoints of `lidar demo`


def narrow_resnet(path, seed):
    """A ResNet whose forward costs more than a view all the same: thin layers use a CPU badly."""
    checkpoint(path, seed, widths=WIDTHS)


def tiny_vit(path, seed):
    """A ViT of one block on 49 patches, beside which decoding and views dominate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = timm.models.VisionTransformer(
        patch_size=32, embed_dim=128, depth=1, num_heads=2, num_classes=0
    )
    torch.save(model.state_dict(), path)


def bench_rank(device, folder):
    resnet = Runs(device, folder / "resnet", narrow_resnet)
    vit = Runs(device, folder / "vit", tiny_vit)
    yield vit.line("ViT of 1 block, width 128: decoding and views dominate", "kept in memory", 0.6)
    yield resnet.line(f"ResNet {'-'.join(map(str, WIDTHS))}: forward dominates", "kept in memory")
    name = "ViT of 1 block, width 128"
    yield vit.line(name, "in a scratch file", view_memory="1MB")
    yield vit.line(name, "drawn each time", view_memory="0")
    yield vit.line(name, "kept in memory, --no-store", store=False)


class Runs:
    """K checkpoints of one kind, ranked together or extracted and scored one by one."""

    def __init__(self, device, folder, make):
        self.device, self.folder = device, folder
        self.paths = [folder / "runs" / f"{seed}.pt" for seed in range(K)]
        for seed, path in enumerate(self.paths):
            make(path, seed)
        self.common = {
            "data": str(photographs(folder / "images", N)),
            "n_samples": N,
            "n_views": Q,
            "views": "simclr",
            "image_size": SIZE,
            "device": device,
        }

    def extract(self, at=0):
        output = self.folder / f"{at}.h5"
        settings = ExtractSettings(**self.common, output=output, overwrite=True)
        return extract_checkpoint(self.paths[at], settings).path

    def one_by_one(self):
        # with the intervals that `rank` gives
        scoring = ScoreSettings(device=self.device, confidence=RankSettings().confidence)
        for at in range(K):
            score_file(self.extract(at), scoring)

    def together(self, **more):
        cache = self.folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        settings = dataclasses.replace(RankSettings(**self.common), cache=cache, **more)
        rank_directory(self.folder / "runs", settings)

    def line(self, name, views, bound=None, **more):
        """A comparison; the remark says what one extract spends its time on."""
        spent = profile(self.extract)  # warms up as well
        sides = {"rank": lambda: self.together(**more), "one by one": self.one_by_one}
        seconds = alternate(sides, REPEATS, warm=0, device=self.device)
        return Line(
            "rank",
            f"K={K} {name}, n={N} q={Q}, {SIZE} px, views {views}",
            "K times extract and score with intervals, in one process",
            "float32",
            REPEATS,
            median(seconds["rank"]),
            median(seconds["one by one"]),
            "s",
            Goal(ratio(seconds["rank"], seconds["one by one"]), "times one by one", at_most=bound),
            f"of one extract: {spent}",
        )


def bench_precision(device, folder):
    """Each metric and the order of trained checkpoints in bfloat16, against float32."""
    runs = folder / "runs"
    train_all(runs, embedded_images(), 0, Progress())
    seconds, scores = {}, {}
    for kind in ("float32", "bfloat16"):
        settings = RankSettings(
            data=EMBEDDED, n_samples=N_TRAINED, n_views=Q_TRAINED, device=device, precision=kind,
            cache=folder / kind,
        )  # fmt: skip
        begun = time.process_time()
        (group,) = rank_directory(runs, settings).groups
        seconds[kind] = time.process_time() - begun
        scores[kind] = {row.path: row.score for row in group.rows}
    pairs = [(score, scores["bfloat16"][path]) for path, score in scores["float32"].items()]
    case = f"{len(pairs)} checkpoints of `lidar demo`, n={N_TRAINED} q={Q_TRAINED}"
    for name, metric in METRICS.items():
        values = [(a.value(name), b.value(name)) for a, b in pairs]
        if any(None in pair for pair in values):
            continue
        full, reduced = zip(*values, strict=True)
        changes = sorted(abs(b / a - 1) for a, b in values if a)
        tau = kendalltau(*([metric.sort_key(one) for one in side] for side in (full, reduced)))
        sides = median(reduced), median(full), ""
        change = Goal(median(changes), "relative change, median")
        remark = f"at most {changes[-1]:.2g}; Kendall tau of the order {tau.statistic:.3f}"
        against = "float32: medians of the values"
        yield Line("precision", f"{name}, {case}", against, "bfloat16", 1, *sides, change, remark)
    yield Line(
        "precision",
        f"processor time of rank, {case}",
        "float32",
        "bfloat16",
        1,
        seconds["bfloat16"],
        seconds["float32"],
        "s",
        Goal(seconds["bfloat16"] / seconds["float32"], "times the time"),
        f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 in oneDNN: "
        f"{cpu_multiplies_in('bfloat16')}",
    )
