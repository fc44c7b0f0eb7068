"""What the views of a batch cost, beside what a user would use instead to make them.

Every side starts from decoded photographs in memory and ends with normalised float32 views; each
peer makes one view at a time but kornia, which takes a batch of images of one size.
"""

import contextlib
import time
from collections import Counter
from unittest import mock

import numpy as np
import PIL
import torch
import torchvision
from harness import Goal, Line, Skipped, alternate, median, ratio
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2

from lidar_cli.views import operations
from lidar_cli.views import pipeline as augment
from lidar_cli.views.methods import find_recipe
from lidar_cli.views.pipeline import Views

SIZE, Q = 224, 10
EQUAL = [(375, 500)] * 6  # height, width
MIXED = [(375, 500), (500, 375), (333, 500), (427, 640), (500, 500), (240, 320)]
REPEATS = 5
WORKERS = 2


def photographs(sizes):
    """The two photographs of scikit-learn by turns, resized, as Pillow images."""
    both = [Image.fromarray(image) for image in load_sample_images().images]
    return [both[k % 2].resize((w, h), Image.BICUBIC) for k, (h, w) in enumerate(sizes)]


class PillowBlur:
    def __init__(self, low, high):
        self.low, self.high = low, high

    def __call__(self, image):
        sigma = float(torch.empty(1).uniform_(self.low, self.high))
        return image.filter(ImageFilter.GaussianBlur(sigma))


def pipeline(recipe, kind, transforms, pillow_blur=False):
    """A view of this kind as users compose it: `transforms` is torchvision's v1 or v2.

    v1 takes Pillow images, v2 uint8 tensors. pillow_blur: Pillow's filter whatever the recipe says.
    """
    t, mode = transforms, InterpolationMode(recipe.interpolation)
    if pillow_blur or recipe.blur_filter == "pillow":
        blur = PillowBlur(*recipe.blur_sigma)
    else:
        blur = t.GaussianBlur(recipe.kernel(SIZE), recipe.blur_sigma)
    solarise = t.RandomSolarize(128, recipe.solarise[kind % len(recipe.solarise)])
    last = [t.ToTensor()] if t is v1 else [t.ToDtype(torch.float32, scale=True)]
    return t.Compose(
        [
            t.RandomResizedCrop(SIZE, recipe.crop_scale, interpolation=mode, antialias=True),
            t.RandomHorizontalFlip(recipe.flip),
            t.RandomApply([t.ColorJitter(*recipe.jitter)], recipe.jitter_probability),
            t.RandomGrayscale(recipe.grey),
            t.RandomApply([blur], recipe.blur[kind % len(recipe.blur)]),
            *([solarise] if any(recipe.solarise) else []),
            *last,
            t.Normalize(recipe.mean, recipe.std),
        ]
    )


def one_at_a_time(pictures, recipe, transforms, pillow_blur=False):
    count = max(len(recipe.blur), len(recipe.solarise))
    kinds = [pipeline(recipe, kind, transforms, pillow_blur) for kind in range(count)]
    return lambda: [kinds[j % count](x) for x in pictures for j in range(Q)]


class ViewsOfPictures(Dataset):
    def __init__(self, pictures, recipe):
        self.pictures, self.view = pictures, pipeline(recipe, 0, v1, pillow_blur=True)

    def __len__(self):
        return len(self.pictures) * Q

    def __getitem__(self, k):
        return self.view(self.pictures[k // Q])


def kornia_chain(recipe, images):
    """kornia's SimCLR chain on a batch that holds each image Q times."""
    import kornia.augmentation as K

    b, c, s, h = recipe.jitter
    mode = recipe.interpolation.upper()
    kernel = recipe.kernel(SIZE)
    chain = torch.nn.Sequential(
        K.RandomResizedCrop((SIZE, SIZE), recipe.crop_scale, resample=mode),
        K.RandomHorizontalFlip(p=recipe.flip),
        K.ColorJitter(b, c, s, h, p=recipe.jitter_probability),
        K.RandomGrayscale(p=recipe.grey),
        K.RandomGaussianBlur((kernel, kernel), recipe.blur_sigma, p=recipe.blur[0]),
        K.Normalize(torch.tensor(recipe.mean), torch.tensor(recipe.std)),
    )
    batch = torch.stack(images).permute(0, 3, 1, 2)
    return lambda: chain(batch.float().div(255).repeat_interleave(Q, dim=0))


PARTS = [
    (augment, "resample", "resampling"),
    (operations, "JITTER", "jitter without hue"),
    (operations, "hue", "hue"),
    (operations, "blur", "blur"),
    (operations, "pillow_blur", "blur"),
    (augment._Normalised, "put", "normalising and storing"),
]


def shares(ours):
    """How one run divides: "resampling 40 %, ..."; on a GPU, shares of the time to launch."""
    spent = Counter()

    def clocked(name, function):
        def run(*arguments):
            start = time.perf_counter()
            result = function(*arguments)
            spent[name] += time.perf_counter() - start
            return result

        return run

    with contextlib.ExitStack() as stack:
        for home, attribute, name in PARTS:
            if attribute == "JITTER":
                *rest, hue = operations.JITTER
                value = [*(clocked(name, each) for each in rest), clocked("hue", hue)]
            else:
                value = clocked(name, getattr(home, attribute))
            stack.enter_context(mock.patch.object(home, attribute, value))
        start = time.perf_counter()
        ours()
        whole = time.perf_counter() - start
    spent["rest"] = whole - sum(spent.values())
    return ", ".join(f"{name} {share / whole:.0%}" for name, share in spent.most_common())


def compared(case, count, ours, peers, device, remark=""):
    """A line for each peer, all sides taking turns; figures are views a second."""
    seconds = alternate({"ours": ours, **peers}, REPEATS, device=device)
    for name in peers:
        on_gpu = torch.device(device).type == "cuda"
        least = 2 if "blur" in name or "DataLoader" in name else 1
        bound = {"at_least": 6 if on_gpu else least} if on_gpu or "Pillow" in name else {}
        yield Line(
            "views", case, name, "float32", REPEATS, count / median(seconds["ours"]),
            count / median(seconds[name]), "views/s",
            Goal(ratio(seconds[name], seconds["ours"]), "times as fast", **bound), remark,
        )  # fmt: skip


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@torch.inference_mode()
def bench_views(device, folder):
    """224 px: SimCLR against every peer, the other recipes against Pillow; one core, then two.

    Peers on Pillow images stay on the CPU; on a GPU the goal is 6 times the best of them.
    """
    pillow = f"Pillow {PIL.__version__} by torchvision {torchvision.__version__}"
    for name, sizes in (("simclr", EQUAL), ("simclr", MIXED), ("vicreg", EQUAL), ("dino", EQUAL)):
        recipe = find_recipe(name, "imagenet")
        pictures = photographs(sizes)
        images = [torch.from_numpy(np.array(picture)).to(device) for picture in pictures]
        views = Views(recipe, 0, Q, SIZE)
        samples, count = range(len(images)), len(images) * Q

        def ours(views=views, images=images, samples=samples):
            return views.views(images, samples)

        peers = {pillow: one_at_a_time(pictures, recipe, v1)}
        if name == "simclr":
            peers[f"{pillow}, Pillow's blur"] = one_at_a_time(pictures, recipe, v1, True)
            planar = [image.permute(2, 0, 1).contiguous() for image in images]
            peers[f"torchvision {torchvision.__version__} v2"] = one_at_a_time(planar, recipe, v2)
        if name == "simclr" and sizes is EQUAL:
            try:
                import kornia
            except ImportError:
                yield Skipped("views", "kornia is not installed: pip install kornia")
            else:
                peers[f"kornia {kornia.__version__}, batched"] = kornia_chain(recipe, images)
        case = f"{name}, {'equal' if sizes is EQUAL else 'mixed'} sizes, one thread"
        with threads(1):
            ours()
            breakdown = shares(ours)
            yield from compared(case, count, ours, peers, device, breakdown)

    recipe, pictures = find_recipe("simclr", "imagenet"), photographs(EQUAL * 4)
    images = [torch.from_numpy(np.array(picture)).to(device) for picture in pictures]
    views = Views(recipe, 0, Q, SIZE)
    loader = DataLoader(
        ViewsOfPictures(pictures, recipe), 60, num_workers=WORKERS, persistent_workers=True
    )
    peers = {f"DataLoader of {WORKERS} workers, Pillow": lambda: [len(batch) for batch in loader]}

    def batches():
        for first in range(0, len(images), 6):
            views.views(images[first : first + 6], range(first, first + 6))

    with threads(WORKERS):
        case = f"simclr, equal sizes, {WORKERS} threads"
        yield from compared(case, len(images) * Q, batches, peers, device)
