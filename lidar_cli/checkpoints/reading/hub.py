"""Names on the Hugging Face Hub in place of paths: hf-hub:ORG/NAME[@REVISION], timm:NAME.

huggingface_hub, which comes with timm, fetches config.json and the weights into its own cache, or
finds them there; they are then read as those of any folder, and nothing in them is run.
"""

from __future__ import annotations

from pathlib import Path

from lidar_cli.checkpoints.reading.folder import WEIGHTS
from lidar_cli.errors import CheckpointError, first_line

PREFIXES = {"hf-hub:": "", "timm:": "timm/"}  # with what the name then begins on the Hub


def local(path: Path) -> Path:
    """The folder in the cache that holds what a name stands for; a path as it is.

    Raises CheckpointError for what is no name, or if the Hub has no such model, does not give it,
    or is out of reach.
    """
    for prefix, owner in PREFIXES.items():
        if str(path).startswith(prefix):
            name, _, revision = str(path).removeprefix(prefix).partition("@")
            if ".." in revision:  # in no name that git takes, but in one that leaves the cache
                raise CheckpointError(
                    f"{path}: {revision} is no revision; expected a branch, tag or commit"
                )
            return _fetch(path, owner + name, revision or None)
    return path


def _fetch(path: Path, name: str, revision: str | None) -> Path:
    from huggingface_hub import errors, hf_hub_download

    unreachable: Exception | None = None
    found: Path | None = None
    try:
        for file in ("config.json", *WEIGHTS):
            try:
                got = Path(hf_hub_download(name, file, revision=revision))
            except errors.LocalEntryNotFoundError as error:  # of the cache: the Hub was not asked
                unreachable = error
            except errors.EntryNotFoundError:  # the model has no such file
                continue
            else:
                if file in WEIGHTS:
                    found = got.parent
                    break
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{path}: the Hub gives {name} only to those who accept its conditions; do so on its "
            "page there, then run: hf auth login"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise CheckpointError(
            f"{path}: the Hub has no {name}{f' at {revision}' if revision else ''}, or it is "
            "private; check the name, or run: hf auth login"
        ) from error
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be fetched: {first_line(error)}") from error
    if found is None and unreachable is not None:
        raise CheckpointError(
            f"{path}: {name} is not in the cache of huggingface_hub, and the Hub is out of reach; "
            f"on a machine that reaches it run: hf download {name}"
        ) from unreachable
    if found is None:
        raise CheckpointError(
            f"{path}: {name} has neither {' nor '.join(WEIGHTS)}; expected the weights in one "
            "file; fetch what it has and name that file"
        )
    return found
