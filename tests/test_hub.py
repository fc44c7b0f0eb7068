"""Names on the Hub: out of huggingface_hub's own cache, and over HTTP from a server here."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from formats import FIXTURES
from make import image_folder, lidar
from safetensors.torch import save_file
from torch import Tensor

from lidar_cli.features.reader import read_hdf5, read_provenance

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3}


def vit_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(**MODEL, num_classes=0)
    return {name: torch.randn_like(t) * 0.1 for name, t in model.state_dict().items()}


def timm_config(architecture: str) -> str:
    pretrained = {"input_size": [3, 32, 32], "mean": [0.485, 0.456, 0.406], "tag": "test"}
    return json.dumps(
        {"architecture": architecture, "num_classes": 0, "pretrained_cfg": pretrained}
    )


def cache(home: Path, repository: str, files: Mapping[str, bytes]) -> None:
    """One revision of a repository: blobs by their hash, a snapshot of links, the branch's head."""
    root = home / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        (root / "blobs" / digest).write_bytes(content)
        (snapshot / name).symlink_to(Path("../../blobs") / digest)


def saved(tensors: dict[str, Tensor], folder: Path) -> bytes:
    save_file(tensors, folder / "w.safetensors")
    return (folder / "w.safetensors").read_bytes()


def test_a_cached_model_is_embedded_off_line(tmp_path: Path) -> None:
    """The same numbers as from the file itself, and what its config.json says counts."""
    weights = saved(vit_weights(), tmp_path)
    home = tmp_path / "hub"
    files = {"config.json": timm_config("resnet18").encode(), "model.safetensors": weights}
    cache(home, "timm/wrong.test", files)
    files["config.json"] = json.dumps({"num_attention_heads": 3}).encode()
    cache(home, "someone/vit.test", files)
    images = image_folder(tmp_path / "images", 4)
    options = ["--data", images, "-n", 4, "-q", 2, "--image-size", 32]
    environment = {"HF_HUB_CACHE": str(home)}
    for name in ("hf-hub:someone/vit.test", "w.safetensors"):
        ended = lidar("extract", name, *options, cwd=tmp_path, **environment)
        assert ended.returncode == 0, ended.stderr
    (fetched,), (plain,) = (
        [list(e.chunks(10**6)) for e in read_hdf5(tmp_path / f"{stem}.h5", "backbone")]
        for stem in ("vit.test", "w")
    )
    assert torch.equal(fetched[0].views, plain[0].views)
    assert read_provenance(tmp_path / "vit.test.h5")["checkpoint"] == "hf-hub:someone/vit.test"
    ended = lidar("inspect", "timm:wrong.test", cwd=tmp_path, **environment)
    assert ended.returncode == 3
    assert "missing" in ended.stderr  # of the ResNet that the configuration names


def test_timms_architecture_is_the_configurations(tmp_path: Path) -> None:
    """A model that shapes alone do not determine."""
    model = timm.create_model("convnext_atto", num_classes=0)
    content = saved(dict(model.state_dict()), tmp_path)
    files = {"model.safetensors": content, "config.json": timm_config("convnext_atto").encode()}
    cache(tmp_path / "hub", "timm/convnext_atto.test", files)
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    ended = lidar("inspect", "--json", "timm:convnext_atto.test", cwd=tmp_path, **environment)
    assert ended.returncode == 0, ended.stderr
    (report,) = json.loads(ended.stdout)
    assert (report["architecture"], report["file"]) == ("convnext_atto", "timm:convnext_atto.test")
    for name, shown in (("convnext_of_2031", "convnext_of_2031"), ("a\x1b[2J", r"'a\x1b[2J'")):
        files["config.json"] = timm_config(name).encode()
        cache(tmp_path / "hub", f"timm/later{len(name)}", files)
        ended = lidar("inspect", f"timm:later{len(name)}", cwd=tmp_path, **environment)
        assert ended.returncode == 3
        assert f"names timm's {shown}, which timm" in ended.stderr


def test_pickled_weights_of_the_hub_are_read_as_data(tmp_path: Path) -> None:
    path = FIXTURES["dino-vit"]().save(tmp_path)
    cache(tmp_path / "hub", "me/dino", {"pytorch_model.bin": path.read_bytes()})
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    ended = lidar("inspect", "--json", "hf-hub:me/dino", cwd=tmp_path, **environment)
    assert ended.returncode == 0, ended.stderr
    (report,) = json.loads(ended.stdout)
    assert (report["format"], report["kind"]) == ("dino", "zip")


class Hub(BaseHTTPRequestHandler):
    """What the Hub answers to questions for a file, for one model and for one gated one."""

    files: Mapping[str, bytes] = {}

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        content = self.files.get(name) if repository == "me/model" else None
        if content is not None and revision in ("main", "v1", COMMIT):
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
        else:
            codes = {"me/gated": (403, "GatedRepo")}
            codes |= dict.fromkeys(("me/model", "me/empty"), (404, "EntryNotFound"))
            status, code = codes.get(repository, (401, "RepoNotFound"))
            if repository == "me/model" and revision not in ("main", "v1", COMMIT):
                status, code = 404, "RevisionNotFound"
            content = b""
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    Hub.files = {"model.safetensors": saved(vit_weights(), tmp_path_factory.mktemp("weights"))}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(endpoint: str, name: str, folder: Path) -> tuple[int, str, str]:
    environment = {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_CACHE": str(folder / "hub"),
    }
    ended = lidar("inspect", name, cwd=folder, **environment)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize("name", ["hf-hub:me/model", "hf-hub:me/model@v1"])
def test_a_model_is_fetched_and_then_in_the_cache(name: str, endpoint: str, tmp_path: Path) -> None:
    status, out, err = ask(endpoint, name, tmp_path)
    assert status == 0, err
    assert "vit_tiny_patch8" in out
    offline = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    assert lidar("inspect", name, cwd=tmp_path, **offline).stdout == out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf-hub:me/gated", "only to those who accept its conditions"),
        ("hf-hub:me/other", "the Hub has no me/other, or it is private; check the name"),
        ("hf-hub:me/model@v2", "the Hub has no me/model at v2"),
        ("timm:absent", "the Hub has no timm/absent"),
        ("hf-hub:me/empty", "has neither model.safetensors nor pytorch_model.bin; expected"),
        ("hf-hub:a/b/c", "cannot be fetched: "),
        ("hf-hub:../../a", "cannot be fetched: "),
        ("hf-hub:me/model@../../../a", "../../../a is no revision; expected a branch, tag or"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(
    name: str, message: str, endpoint: str, tmp_path: Path
) -> None:
    status, out, err = ask(endpoint, name, tmp_path)
    assert (status, out) == (3, "")
    assert f"error: {name}: " in err
    assert message in err
    assert "Traceback" not in err


def test_off_line_and_not_in_the_cache_is_one_line(tmp_path: Path) -> None:
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    ended = lidar("extract", "hf-hub:me/model", cwd=tmp_path, **environment)
    assert (ended.returncode, ended.stdout) == (3, "")
    line = ended.stderr.splitlines()[-1]
    assert "hf-hub:me/model: me/model is not in the cache of huggingface_hub" in line
    assert line.endswith("run: hf download me/model")
