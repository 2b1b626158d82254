"""The network of a saved model, opened again exactly as it was when the model was fitted."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.errors import ModelError, UsageError, WeightsError
from featx.fingerprint import differences, sha256_file
from featx.plugins import named_by
from featx.progress import SILENT, Reporter
from featx.words import PRECISIONS

if TYPE_CHECKING:
    from featx.backbones import Backbone
    from featx.engines import LocalEngine
    from featx.predict.model import SavedModel
    from featx.preprocess import Preprocessing

__all__ = ["Network", "open_network"]

_MOST_PX = 1 << 14
_DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class Network:
    """What computes the features of images that a model takes."""

    backbone: Backbone
    engine: LocalEngine
    dtype: str


def open_network(  # noqa: PLR0913 - options of a command, all by name
    saved: SavedModel,
    *,
    weights: str | os.PathLike[str] | None = None,
    backbone: str | None = None,
    allow_code: Collection[str] = (),
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    reporter: Reporter = SILENT,
) -> Network:
    """Open the network of a model, and check that it computes the same features as then."""
    from featx.backbones import open_backbones
    from featx.engines import LocalEngine, resolve_device, resolve_runtime
    from featx.own_features import is_own

    features = saved.meta["features"]
    if is_own(features):
        raise ModelError(
            f"{saved.path} was fitted on features that featx did not compute: it cannot make them "
            "from images. Give it such features: featx.load_model(FILE).predict(X)"
        )
    name = _name(saved, backbone)
    preprocessing = _preprocessing(features)
    place = resolve_device(device)
    numbers = _choice(features, "precision", PRECISIONS), _choice(features, "store_dtype", _DTYPES)
    asked = str(features.get("runtime", "torch"))
    runtime, _ = resolve_runtime(asked, place, numbers[0])
    engine = LocalEngine(place, numbers[0], batch_size, workers, reporter.warn, runtime)
    with named_by(saved.path):
        (opened,) = open_backbones(
            name,
            weights=_weights(saved, name, weights),
            weights_key=saved.meta["weights"].get("key") or None,
            layers=[_text(features.get("point", {}), "layer")],
            pool=_text(features.get("point", {}), "pool"),
            overrides={
                "input_size": preprocessing.crop_px,
                "mean": preprocessing.mean,
                "std": preprocessing.std,
                "interpolation": preprocessing.interpolation,
                "bits": preprocessing.bits,
            },
            allow_code={*allow_code, backbone or ""},
            reporter=reporter,
        )
    network = Network(replace(opened, preprocessing=preprocessing), engine, numbers[1])
    _check(saved, network, weights)
    return network


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str):
        raise ModelError(f"the model does not say which {key} its features have")
    return value


def _choice(values: Mapping[str, Any], key: str, allowed: Sequence[str]) -> str:
    value = _text(values, key)
    if value not in allowed or value == "auto":
        raise ModelError(f"the model takes features of {key} {value!r}, which featx does not know")
    return value


def _name(saved: SavedModel, given: str | None) -> str:
    name = str(saved.meta["weights"].get("backbone") or saved.meta["features"].get("backbone"))
    if given is not None and given != name:
        raise UsageError(f"{saved.path} was fitted behind {name}, not {given}: leave it out")
    return name


def _preprocessing(features: Mapping[str, Any]) -> Preprocessing:
    from featx.preprocess import Preprocessing

    try:
        values = dict(features["preprocessing"])
        values |= {name: tuple(map(float, values[name])) for name in ("mean", "std")}
        found = Preprocessing(**values, origin="as the model was fitted")
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise ModelError(f"the model's preprocessing cannot be read: {error}") from error
    if max(found.crop_px, found.resize_px) > _MOST_PX:
        raise ModelError(
            f"the model takes images of {found.crop_px:,} pixels, more than {_MOST_PX:,}"
        )
    return found


def _weights(saved: SavedModel, name: str, given: str | os.PathLike[str] | None) -> str | None:
    from featx.backbones import is_trained

    record = saved.meta["weights"]
    if given is not None:
        return os.fspath(given)
    asked = name if is_trained(name) else record.get("asked")
    if not isinstance(asked, str) or not (is_trained(name) or Path(asked).is_absolute()):
        return None if asked is None else str(asked)
    known = str(record.get("file_sha256"))
    places = dict.fromkeys(path.absolute() for path in _places(saved, asked, record))
    found = [path for path in places if path.is_file()]
    if not found:
        raise WeightsError(
            f"{saved.path} was fitted with the weights {asked}, which do not exist any more: give "
            f"the same file with --weights FILE (its SHA-256 is {known})"
        )
    if len(found) > 1:
        found.sort(key=lambda path: sha256_file(path) != known)
    return str(found[0])


def _places(saved: SavedModel, asked: str, record: Mapping[str, Any]) -> Iterator[Path]:
    """Yield where a file may be: as it was named then, and beside the model or above it."""
    yield Path(asked)
    if isinstance(record.get("file"), str) and Path(record["file"]).is_absolute():
        yield Path(record["file"])
    parts = [part for part in Path(asked).parts if part not in (os.sep, os.pardir)]
    for folder in saved.path.absolute().parents:
        yield from (folder.joinpath(*parts[i:]) for i in range(len(parts)))


def _check(saved: SavedModel, network: Network, weights: str | os.PathLike[str] | None) -> None:
    from featx.images import DECODER

    wanted = saved.meta["features"]
    found = {
        "decoder": DECODER,
        **network.backbone.identity(),
        **network.engine.identity(),
        "store_dtype": network.dtype,
    }
    if "source_sha256" not in wanted:  # an older featx did not record it
        found.pop("source_sha256", None)
    if found["weights_sha256"] != wanted.get("weights_sha256"):
        which = network.backbone.weights.file or network.backbone.weights.label
        raise WeightsError(
            f"{which} does not hold the weights that {saved.path} was fitted with "
            f"({saved.meta['weights'].get('label')}): the SHA-256 of its tensors is "
            f"{found['weights_sha256']}, not {wanted.get('weights_sha256')}"
            + ("" if weights else "; give the right file with --weights FILE")
        )
    lines = differences(wanted, found)
    if lines or network.backbone.n_features != saved.n_features:
        raise ModelError(
            f"{saved.path} takes other features than this featx computes: "
            + ("; ".join(lines) or f"{saved.n_features:,} of them")
        )
