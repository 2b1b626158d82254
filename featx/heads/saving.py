"""Fitted heads as plain values and arrays, and back: what a file of a model holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import ModelError, UsageError
from featx.heads.base import SOFTMAX, LinearModel, Model
from featx.heads.foreign import ForeignHead
from featx.heads.knn import KnnModel
from featx.heads.mlp import ACTIVATIONS, MlpModel
from featx.heads.scaling import SCALES, STANDARD, WHITEN, Scaling

__all__ = ["check_savable", "n_features_of", "pack_model", "unpack_model"]

_ARRAY, _TUPLE, _KIND, _FIELDS = "array", "tuple", "kind", "fields"
_KINDS: dict[str, type[Any]] = {
    "linear": LinearModel,
    "mlp": MlpModel,
    "knn": KnnModel,
    "scaling": Scaling,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_FLOATS = (np.float16, np.float32, np.float64)

Arrays = Mapping[str, NDArray[Any]]


def check_savable(head: Any) -> None:
    """Refuse a head whose models hold more than numbers."""
    if isinstance(head, ForeignHead):
        raise UsageError(
            f"models of {head.name} cannot be saved: featx saves numbers, never pickles, which "
            "can run any code when they are loaded, and this classifier is a Python object; take "
            "one of featx's own heads (featx list heads), or leave --save-models out"
        )


def pack_model(model: Model) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Take a fitted model apart."""
    arrays: dict[str, NDArray[Any]] = {}
    return _pack(model, "", arrays), arrays


def _pack(value: Any, name: str, arrays: dict[str, NDArray[Any]]) -> Any:
    if isinstance(value, np.ndarray):
        # A matrix product may add in another order where the memory has another one.
        is_transposed = value.flags.f_contiguous and not value.flags.c_contiguous
        arrays[name] = np.ascontiguousarray(value.T if is_transposed else value)
        return {_ARRAY: name, "transposed": is_transposed}
    if type(value) in _NAMES:
        prefix = f"{name}." if name else ""
        parts = {
            f.name: _pack(getattr(value, f.name), f"{prefix}{f.name}", arrays)
            for f in _of(value)
            if not (f.name == "axes" and value.axes is None)  # which older files do not have
        }
        return {_KIND: _NAMES[type(value)], _FIELDS: parts}
    if isinstance(value, tuple):
        return {_TUPLE: [_pack(item, f"{name}.{i}", arrays) for i, item in enumerate(value)]}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise UsageError(
        f"a model with {name or 'the type'} {type(value).__name__} cannot be saved: featx saves "
        "models of its own heads"
    )


def _of(value: Any) -> tuple[Any, ...]:
    return tuple(item for item in fields(value) if item.init)


def unpack_model(plain: Any, arrays: Arrays) -> Model:
    """Put a model together again, if its parts fit."""
    model = _unpack(plain, arrays, 0)
    check = _CHECKS.get(type(model))
    if check is None:
        raise ModelError("it holds no model")
    _require(isinstance(model.scaling, Scaling), "its scaling is none")
    classes = model.classes_
    _check_array("classes_", classes, (-1,), (np.int64,))
    _require(len(classes) >= 2, "it has fewer than two classes")
    _require(bool(classes[0] >= 0 and (np.diff(classes) > 0).all()), "its labels do not ascend")
    check(model)
    _check_scaling(model.scaling, n_features_of(model))
    found: Model = model
    return found


def _unpack(plain: Any, arrays: Arrays, depth: int) -> Any:
    _require(depth < 5, "its parts are nested too deep")
    if not isinstance(plain, dict):
        _require(
            plain is None or isinstance(plain, str | bool | int | float), "it has a strange part"
        )
        return plain
    if _ARRAY in plain:
        name = plain[_ARRAY]
        _require(isinstance(name, str) and name in arrays, f"it lacks the array {name!r}")
        return arrays[name].T if plain.get("transposed") is True else arrays[name]
    if isinstance(plain.get(_TUPLE), list):
        return tuple(_unpack(item, arrays, depth + 1) for item in plain[_TUPLE])
    kind, parts = plain.get(_KIND), plain.get(_FIELDS)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ModelError(f"it is a model of the kind {kind!r}, which this featx does not know")
    if not isinstance(parts, dict):
        raise ModelError("it has a part without fields")
    return _make(_KINDS[kind], {k: _unpack(v, arrays, depth + 1) for k, v in parts.items()})


def _make(kind: type[Any], values: dict[str, Any]) -> Any:
    assert is_dataclass(kind)  # noqa: S101 - for mypy
    unknown = values.keys() - {item.name for item in _of(kind)}
    if unknown:
        raise ModelError(f"its {min(unknown)} is something that this featx does not know")
    try:
        return kind(**values)
    except TypeError as error:
        raise ModelError(f"a part of it is missing ({error})") from error


def n_features_of(model: Any) -> int:
    """Length of the rows that a model takes."""
    if isinstance(model, MlpModel):
        return int(model.coefs_[0].shape[0])
    return int((model.rows if isinstance(model, KnnModel) else model.coef_).shape[1])


def _require(is_so: bool, problem: str) -> None:
    if not is_so:
        raise ModelError(f"its parts do not fit together: {problem}")


def _check_array(
    name: str, array: Any, shape: tuple[int, ...], dtypes: tuple[Any, ...] = (np.float64,)
) -> None:
    """Check type, shape (-1 is any length of at least 1) and values of an array."""
    _require(isinstance(array, np.ndarray) and array.dtype in dtypes, f"{name} has a wrong type")
    fits = array.ndim == len(shape) and all(
        n == wanted if wanted >= 0 else n > 0 for n, wanted in zip(array.shape, shape, strict=False)
    )
    wanted = " x ".join("any" if n < 0 else str(n) for n in shape)
    _require(fits, f"{name} has the shape {array.shape}, not {wanted}")
    _require(bool(np.isfinite(array).all()), f"{name} holds NaN or infinity")


def _n_outputs(classes: NDArray[np.int64]) -> int:
    return 1 if len(classes) == 2 else len(classes)


def _check_linear(model: LinearModel) -> None:
    n = _n_outputs(model.classes_)
    _check_array("coef_", model.coef_, (n, -1))
    _check_array("intercept_", model.intercept_, (n,))
    _require(model.link in ("", SOFTMAX), f"the link {model.link!r} is unknown")


def _check_mlp(model: MlpModel) -> None:
    weights, biases = model.coefs_, model.intercepts_
    _require(isinstance(weights, tuple) and isinstance(biases, tuple), "its layers are no lists")
    _require(0 < len(weights) == len(biases), "not every layer has weights and a bias")
    width = -1
    for i, (layer, bias) in enumerate(zip(weights, biases, strict=True)):
        is_last = i == len(weights) - 1
        _check_array(f"layer {i}", layer, (width, _n_outputs(model.classes_) if is_last else -1))
        width = layer.shape[1]
        _check_array(f"bias {i}", bias, (width,))
    known = isinstance(model.activation, str) and model.activation in ACTIVATIONS
    _require(known, f"the activation {model.activation!r} is unknown")
    _require(model.link == SOFTMAX, f"the link {model.link!r} is unknown")


def _check_knn(model: KnnModel) -> None:
    _check_array("rows", model.rows, (-1, -1), _FLOATS)
    _check_array("codes", model.codes, (len(model.rows),), (np.int64,))
    in_range = model.codes.min() >= 0 and model.codes.max() < len(model.classes_)
    _require(bool(in_range), "codes are no positions of classes_")
    k = model.n_neighbors
    _require(type(k) is int and 1 <= k <= len(model.rows), f"n_neighbors is {k!r}")
    _require(model.link == "shares", f"the link {model.link!r} is unknown")
    t = model.temperature
    _require(t is None or (isinstance(t, float) and 0 < t < np.inf), f"the temperature is {t!r}")


def _check_scaling(scaling: Scaling, n_features: int) -> None:
    word = scaling.name.partition("=")[0] if isinstance(scaling.name, str) else ""
    _require(word in SCALES, f"the scaling {scaling.name!r} is unknown")
    if word == WHITEN:
        _require(scaling.std is None, "its whitening has a standard deviation")
        _check_array("scaling.mean", scaling.mean, (n_features,))
        _check_array("scaling.axes", scaling.axes, (-1, n_features))
        return
    _require(scaling.axes is None, "its scaling has axes")
    if scaling.name != STANDARD:
        _require(scaling.mean is None and scaling.std is None, "its scaling has a mean")
        return
    _check_array("scaling.mean", scaling.mean, (n_features,))
    _check_array("scaling.std", scaling.std, (n_features,))
    _require(bool((np.asarray(scaling.std) > 0).all()), "scaling.std is not above 0")


_CHECKS: dict[type[Any], Callable[[Any], None]] = {
    LinearModel: _check_linear,
    MlpModel: _check_mlp,
    KnnModel: _check_knn,
}
