"""What a user types by mistake, and what the answer must say.

words: after `lidar`, in the folder that `make_workplace` fills. next: what the message says to type
or to choose instead. torch: whether the answer may need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from make import checkpoint, image_folder

import lidar_cli


@dataclass(frozen=True)
class Mistake:
    words: str
    status: int
    next: str
    torch: bool = False


MISTAKES = (
    # the command
    Mistake("rnak runs/", 2, "did you mean rank?"),
    Mistake("runs/", 2, "lidar rank runs/ --data FOLDER"),
    Mistake("ckpt.pt", 2, "lidar inspect ckpt.pt"),
    Mistake("z.npy", 2, "lidar score z.npy"),
    # arguments and options
    Mistake("rank", 2, "lidar rank runs/ --data imagenet/"),
    Mistake("extract", 2, "lidar extract ckpt.pt --data imagenet/ -o ckpt.h5"),
    Mistake("score", 2, "lidar score ckpt.h5"),
    Mistake("rank runs/ -q", 2, "for paths alone --quiet"),
    Mistake("rank -q runs/", 2, "-q 10 for that many views of each image; for paths alone --quiet"),
    Mistake("rank runs/ -n", 2, "-n 1000"),
    Mistake("rank runs/ --lable backbone", 2, "did you mean --layer?"),
    Mistake("score z.npy --data photos", 2, "belongs to lidar rank, lidar compare, lidar extract"),
    Mistake("rank runs/ --json --csv", 2, "exclude each other; give one"),
    Mistake("rank runs/ --jsonl a.jsonl", 2, "belongs to --watch; add that"),
    Mistake("rank runs/ --race --jsonl a.jsonl", 2, "belongs to --watch; add that"),
    Mistake("rank runs/ --race --overwrite", 2, "name one"),
    Mistake("rank runs/ --params acc.csv", 2, "add --oracle for the accuracies or --report"),
    # names and numbers
    Mistake("rank runs/ --by lidarr", 2, "did you mean lidar? (lidar explain metrics)"),
    Mistake("rank runs/ --columns lidarr", 2, "did you mean lidar?"),
    Mistake("compare ckpt.pt runs/ --by lidarr", 2, "did you mean lidar? (lidar explain metrics)"),
    Mistake("compare ckpt.pt runs/ --views simcrl", 2, "did you mean simclr?"),
    Mistake("score z.npy --metrics lidar,rankmi", 2, "did you mean rankme?"),
    Mistake("rank runs/ -q 1", 2, "give -q 2 or more"),
    Mistake("rank runs/ -n 1", 2, "give -n 2 or more"),
    Mistake("compare ckpt.pt runs/ -q 1", 2, "give -q 2 or more"),
    Mistake("rank runs/ --data-dir photos", 2, "for a folder of images --data FOLDER alone"),
    Mistake("rank runs/ --data photos --data-dir photos", 2, "leave it out for --data photos"),
    Mistake("rank runs/ --metric rankme", 2, "did you mean --by?"),
    Mistake("rank runs/ --oracle photos", 3, "a folder; expected a CSV file"),
    Mistake("rank runs/ -q 0", 2, "give -q 2 or more, or order by what needs none: --by rankme"),
    Mistake("extract ckpt.pt -q 1", 2, "give -q 2 or more"),
    Mistake("rank runs/ --confidence 95", 2, "such as 0.95"),
    Mistake("rank runs/ --precision float23", 2, "did you mean float32?"),
    Mistake("score z.npy --metrics defualt", 2, "did you mean default?"),
    Mistake("rank runs/ --oracle prob", 3, "no such file; did you mean probe?"),
    Mistake("score z.npy --confidence 0.9 --groups label", 3, "did you mean labels?"),
    Mistake("rank runs/ --device cdua", 2, "did you mean cuda?"),
    Mistake("rank runs/ --view-memory atuo", 2, "did you mean auto?"),
    Mistake("rank runs/ --data embeded", 3, "did you mean embedded?"),
    Mistake("rank runs/ --layer backbnoe", 2, "did you mean backbone?"),
    Mistake("extract ckpt.pt --layer mlp", 3, "it has backbone, projector", torch=True),
    Mistake("rank runs/ --views simcrl", 2, "did you mean simclr?"),
    Mistake("rank runs/ --format solo", 2, "did you mean solo-learn? (lidar inspect --formats)"),
    Mistake("rank runs/ --branch techer", 2, "did you mean teacher?"),
    Mistake("rank runs/ --assume head=3", 2, "the keys are heads, eps"),
    Mistake("rank runs/ --device gpu", 2, "expected auto, cpu, cuda or cuda:N"),
    Mistake("rank runs/ --memory lots", 2, "something like 64MB or 2GB"),
    Mistake("extract ckpt.pt --arch resnet50", 3, "leave out --arch resnet50", torch=True),
    # paths
    Mistake("rank rusn/", 3, "did you mean runs/?"),
    Mistake("rank rusn/a", 3, "did you mean runs/a/?"),
    Mistake("rank runs/ --data photso/", 3, "did you mean photos/?"),
    Mistake("rank runs/ --oracle acc.cvs", 3, "did you mean acc.csv?"),
    Mistake("cache rusn/", 3, "did you mean runs/?"),
    Mistake("extract ckpt.p", 3, "did you mean ckpt.pt?"),
    Mistake("score zz.npy", 3, "did you mean z.npy?"),
    Mistake("extract link.pt", 3, "a link to gone.pt, which does not exist"),
    Mistake("score z.npy --groups no.csv", 2, "--confidence 0.95; and --groups no.csv: no such"),
    Mistake("score z.npy --config bad.toml", 2, "not valid TOML"),
    Mistake("rank runs/ --config unknown.toml", 2, "did you mean n_samples?"),
    # one kind of file for another
    Mistake("extract runs/", 3, "lidar rank runs --data FOLDER"),
    Mistake("extract ckpt.pt runs/a/last.ckpt", 2, "lidar rank ckpt.pt runs/a/last.ckpt --data"),
    Mistake("extract z.npy", 3, "lidar score z.npy"),
    Mistake("extract page.pt", 3, "saved in place of a download; fetch the file again"),
    Mistake("extract acc.csv", 3, "a text file; expected"),
    Mistake("extract pointer.pt", 3, "git lfs pull"),
    Mistake("score ckpt.pt", 3, "lidar extract ckpt.pt --data FOLDER -o ckpt.h5"),
    Mistake("score runs/", 3, "lidar rank runs --data FOLDER"),
    Mistake("probe ckpt.pt", 3, "lidar extract ckpt.pt --data FOLDER -o ckpt.h5"),
    Mistake("probe z.npy", 3, "lidar extract ckpt.pt --data FOLDER"),
    Mistake("inspect z.npy", 3, "lidar score z.npy"),
    Mistake("rank page.pt", 3, "saved in place of a download; fetch the file again"),
    Mistake("score page.pt", 3, "a web page, not what was to be downloaded; fetch it again"),
    # contents
    Mistake("score cut.h5", 3, "cut.h5: cannot be opened"),
    Mistake("score cut.npy", 3, "truncated, 200 of 9,728 bytes; copy or write the file again"),
    Mistake("score row.npy", 3, "expected one of (n, q, d) or (N, d)"),
    Mistake("score cut.npz", 3, "copy or save it again"),
    Mistake("score hostile.pt", 3, "names os.system, which no checkpoint needs"),
    Mistake("extract hostile.pt", 3, "names os.system, which no checkpoint needs"),
    Mistake("extract step.pt", 3, "holds no model weights (found step)"),
    Mistake("extract ckpt.pt --prefix model.", 3, "model."),
    Mistake("extract ckpt.pt --branch teacher", 3, "teacher"),
    Mistake("extract ckpt.pt --assume heads=3", 2, "nothing in it has heads; leave it out"),
    Mistake("probe cut.h5", 3, "cut.h5: cannot be opened"),
    Mistake("probe unlabelled.h5", 3, "a folder with a subfolder a class"),
    Mistake("probe --train unlabelled.h5 --test unlabelled.h5", 3, "a folder with a subfolder a"),
    Mistake("extract ckpt.pt --layer predictor", 3, "use --layer backbone"),
    Mistake("extract ckpt.pt --layer patches", 3, "use --layer backbone"),
    Mistake("rank runs/ --oracle wrong.csv", 3, "accuracy 'high' is not a number"),
    Mistake("rank runs/ --oracle acc.csv --params bad.toml", 3, "no column 'path'"),
    Mistake("score z.npy --confidence 0.9 --groups twice.csv", 3, "'1' is in two groups"),
    Mistake("compare ckpt.pt cut.h5", 3, "cut.h5: cannot be opened"),
    Mistake("compare acc.csv ckpt.pt", 3, "a text file; expected"),
    Mistake("compare empty ckpt.pt", 3, "empty: no checkpoint in it"),
    Mistake("rank runs --data empty", 3, "no images could be listed: no file ends in .bmp"),
    Mistake("extract ckpt.pt --data photos --split val", 3, "no split 'val' in it"),
    Mistake("rank empty", 3, "no checkpoint in it; expected files ending in"),
    Mistake("rank runs --exclude a", 3, "that --include and --exclude leave"),
    # outputs
    Mistake("demo acc.csv/demo", 3, "cannot be created: Not a directory; name another folder"),
    Mistake("extract ckpt.pt -o out/x.h5", 2, "mkdir -p out"),
    Mistake("rank runs/ --report out/page.html", 2, "mkdir -p out"),
    Mistake("rank runs/ --report page.pdf", 2, "expected a name that ends in .html"),
    Mistake("score z.npy --plot spectra.pdf", 2, "expected a name that ends in .png or .svg"),
)


def make_workplace(folder: Path) -> None:
    """The files that the mistakes are about."""
    (folder / "runs" / "a").mkdir(parents=True)
    checkpoint(folder / "ckpt.pt")
    checkpoint(folder / "runs" / "a" / "last.ckpt", seed=1)
    np.save(folder / "z.npy", np.random.default_rng(0).normal(size=(50, 3, 8)))
    (folder / "bad.toml").write_text("n_samples = = 3\n")
    (folder / "unknown.toml").write_text("n_sample = 3\n")
    image_folder(folder / "photos", 4)
    (folder / "acc.csv").write_text("path,accuracy\n")
    (folder / "wrong.csv").write_text("path,accuracy\nlast.ckpt,high\n")
    (folder / "twice.csv").write_text("id,group\n1,a\n1,b\n")
    (folder / "page.pt").write_text("<!DOCTYPE html>\n<html></html>\n")
    (folder / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (folder / "empty").mkdir()
    np.save(folder / "row.npy", np.zeros(3))
    np.savez(folder / "z.npz", np.zeros((4, 3, 2)))
    torch.save({"step": 3}, folder / "step.pt")
    (folder / "hostile.pt").write_bytes(b"\x80\x02cos\nsystem\n(S'ls runs'\ntR.")
    (folder / "cut.npy").write_bytes((folder / "z.npy").read_bytes()[:200])
    (folder / "cut.npz").write_bytes((folder / "z.npz").read_bytes()[:-30])
    with h5py.File(folder / "z.h5", "w") as file:
        file["z"] = np.zeros((4, 3, 2))
    lidar_cli.write_features(folder / "unlabelled.h5", clean=np.zeros((2, 2), np.float32))
    (folder / "cut.h5").write_bytes((folder / "z.h5").read_bytes()[:1000])
    (folder / "link.pt").symlink_to("gone.pt")
