"""Data sets of the Hugging Face Hub by name: fetched once, and read like a folder."""

from __future__ import annotations

import re
from pathlib import Path

from featx.errors import MissingExtraError, SourceError, UsageError
from featx.progress import Reporter

__all__ = ["HUB", "fetch_dataset"]

HUB = "hf://"
_NAME = re.compile(
    r"(?:datasets/)?(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(?:@(?P<revision>[\w.-]+))?"
    r"(?:/(?P<folder>[\w./-]+))?"
)
_DATA = ("*.parquet", "*.arrow", "*.zip", "*.tar", "*.csv", "*.json", "*.jsonl")
_IMAGES = ("*.jpg", "*.jpeg", "*.png", "*.webp", "*.bmp", "*.tif", "*.tiff", "*.JPG", "*.JPEG")


def fetch_dataset(spec: str, reporter: Reporter) -> tuple[Path, str]:
    """Fetch what ``hf://owner/name[@revision][/folder]`` names: its folder here, and a name.

    Only files of data are fetched: no script of a data set is, and none is run.
    """
    match = _NAME.fullmatch(spec.removeprefix(HUB).rstrip("/"))
    if match is None or ".." in spec:
        raise UsageError(
            f"{spec!r} names no data set of the Hub: write hf://owner/name, and behind it "
            "@revision or /folder where needed, as in  hf://uoft-cs/cifar10"
        )
    repository = f"{match['owner']}/{match['name']}"
    folder = f"{match['folder']}/" if match["folder"] else ""
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise MissingExtraError("huggingface_hub", "hf", "data of the Hugging Face Hub") from error
    reporter.say(f"data set {repository} of the Hugging Face Hub: fetching files not here yet")
    try:
        root = snapshot_download(
            repository,
            repo_type="dataset",
            revision=match["revision"],
            allow_patterns=[folder + pattern for pattern in (*_DATA, *_IMAGES)],
        )
    except Exception as error:  # its HTTP library, and with it the errors, change with its version
        reason = " ".join(str(error).split()).rstrip(".")
        raise SourceError(
            f"the data set {repository} cannot be fetched from the Hugging Face Hub: "
            f"{reason[:300]}. Check its name on huggingface.co/datasets. For one that needs an "
            "account, log in with  hf auth login  . Without internet, fetch it elsewhere with  "
            f"hf download --repo-type dataset {repository} --local-dir DIR  and give the folder DIR"
        ) from error
    return _place(Path(root) / folder, spec), repository.replace("/", "-")


def _place(root: Path, spec: str) -> Path:
    """Give the folder of the data: the only one, where a data set has parts in folders."""
    if not root.is_dir():
        raise SourceError(f"{spec} has no Parquet files, no images and no archives")
    parts = sorted(path for path in root.iterdir() if path.is_dir() and [*path.glob("*.parquet")])
    is_plain = [*root.glob("*.parquet")] or any(path.name == "data" for path in parts)
    if is_plain or not parts or any((root / name).is_dir() for name in ("train", "test")):
        return root
    if len(parts) > 1:
        names = ", ".join(f"{spec.rstrip('/')}/{path.name}" for path in parts)
        raise UsageError(f"{spec} has several parts: choose one of {names}")
    return parts[0]
