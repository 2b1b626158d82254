"""Which columns of a data set of Hugging Face are the image and the label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featx.errors import SourceError
from featx.progress import Reporter
from featx.records import parse_json
from featx.sources.hub.shards import Shard, import_pyarrow
from featx.sources.labels import clean, label_text, number_labels
from featx.sources.split_columns import MOST_LOOKED_AT, may_be_split
from featx.sources.tables import find_column

__all__ = [
    "Columns",
    "choose_columns",
    "features_of",
    "has_images",
    "join_labels",
    "read_labels",
    "read_short_columns",
]

Features = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """The columns that are read."""

    image: str
    label: str
    class_names: tuple[str, ...] | None


def features_of(schema: Any) -> Features:
    """Read the features that `datasets` writes into the metadata of a schema."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def has_images(schema: Any) -> bool:
    """Tell whether a column of a schema holds encoded images."""
    return bool(_image_columns(schema, features_of(schema)))


def choose_columns(where: str, schema: Any, features: Features) -> Columns:
    """Choose the columns of image and label.

    The only one of its kind, or the one that is called ``image`` or ``label``. Images are
    Image features, or without features columns of bytes; labels are ClassLabel features, or
    without one a column of texts or numbers called ``label``, in any case.
    """
    image = _only(where, schema, _image_columns(schema, features), "image")
    label = _only(where, schema, _label_columns(schema, features), "label")
    return Columns(image, label, _names(where, features.get(label)))


def _kind(features: Features, name: str) -> str:
    feature = features.get(name)
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _image_columns(schema: Any, features: Features) -> list[str]:
    marked = [name for name in schema.names if _kind(features, name) == "Image"]
    return marked or [field.name for field in schema if _has_bytes(field.type)]


def _has_bytes(kind: Any) -> bool:
    types = import_pyarrow().types
    if types.is_struct(kind):  # of a column of paths alone, the bytes are null
        inner = {field.name: field.type for field in kind}.get("bytes")
        return inner is not None and (types.is_null(inner) or _has_bytes(inner))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _label_columns(schema: Any, features: Features) -> list[str]:
    marked = [name for name in schema.names if _kind(features, name) == "ClassLabel"]
    plain = [name for name in schema.names if _is_plain(schema, name)]
    called = [name for name in plain if name.lower() == "label"]
    return marked or called or [name for name in plain if name.lower() == "labels"]


def _is_plain(schema: Any, name: str) -> bool:
    """Tell whether a column holds texts, numbers, or True and False."""
    types, kind = import_pyarrow().types, schema.field(name).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    tests = (types.is_string, types.is_large_string, types.is_integer, types.is_floating)
    return types.is_boolean(kind) or any(test(kind) for test in tests)


def _only(where: str, schema: Any, found: list[str], wanted: str) -> str:
    named = find_column(where, schema.names if wanted == "label" else found, [wanted])
    if len(found) == 1 or named in found:
        return named if named in found else found[0]
    columns = ", ".join(f"{field.name} ({str(field.type)[:40]})" for field in schema)
    feature = {"image": "Image", "label": "ClassLabel"}[wanted]
    if not found:
        raise SourceError(
            f"{where} has no column of the feature {feature} among {columns}: cast the "
            f"{wanted} to it, with  cast_column  of the package datasets"
        )
    raise SourceError(
        f"{where} has {len(found)} columns of the feature {feature} ({', '.join(found)}) among "
        f"{columns}: choose one by its name, with  rename_column({found[0]!r}, {wanted!r})  "
        "of the package datasets"
    )


def _names(where: str, feature: Any) -> tuple[str, ...] | None:
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return None
    names = feature.get("names") or range(int(feature.get("num_classes") or 0))
    cleaned = tuple(clean(str(name)) for name in names)
    if len(set(cleaned)) != len(cleaned):
        raise SourceError(f"{where} has a class name twice: give each class a name of its own")
    return cleaned


def read_labels(shard: Shard, columns: Columns) -> np.ndarray | list[str]:
    """Read the labels of one file, N rows."""
    if columns.class_names is None:
        return list(map(_text, shard.column(columns.label).to_pylist()))
    return _numbers(shard, columns.label, len(columns.class_names))


def join_labels(
    labels: Mapping[str, Sequence[np.ndarray | list[str]]],
    class_names: tuple[str, ...] | None,
    where: str,
    reporter: Reporter,
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Join the labels of each split's files, as numbers."""
    if class_names is None:
        joined = {
            split: [text for part in parts for text in part] for split, parts in labels.items()
        }
        return number_labels(joined, where, reporter)
    none = np.empty(0, np.int64)
    numbers = {split: np.concatenate([none, *parts]) for split, parts in labels.items()}
    n_unknown = sum(int((rows < 0).sum()) for rows in numbers.values())
    if n_unknown:
        reporter.warn(
            f"{where}: {n_unknown:,} labels are -1 or missing, which means that the class is "
            "unknown"
        )
    return class_names, numbers


def read_short_columns(shard: Shard, columns: Columns, features: Features) -> dict[str, list[str]]:
    """Read the columns of one file that may say the splits: those with few different values."""
    found = {}
    for name in shard.schema.names:
        if name in (columns.image, columns.label) or not _is_plain(shard.schema, name):
            continue
        column = shard.column(name)
        if may_be_split(name, map(str, column.slice(0, MOST_LOOKED_AT).unique().to_pylist())):
            words = dict(enumerate(_names(shard.file, features.get(name)) or ()))
            found[name] = [words.get(value, _text(value)) for value in column.to_pylist()]
    return found


def _numbers(shard: Shard, name: str, n_classes: int) -> np.ndarray:
    column = shard.column(name)
    types = import_pyarrow().types
    numbers = column.cast(column.type.value_type) if types.is_dictionary(column.type) else column
    if not (types.is_integer(numbers.type) or types.is_floating(numbers.type)):
        raise SourceError(f"{shard.file}: {name!r} is {column.type}, not whole numbers")
    found = np.nan_to_num(numbers.fill_null(-1).to_numpy(), nan=-1)
    labels = np.asarray(found, dtype=np.int64)
    if (labels != found).any():
        raise SourceError(f"{shard.file}: {name!r} has numbers with a fraction, which no class has")
    wrong = np.flatnonzero((labels < -1) | (labels >= n_classes))
    if len(wrong):
        raise SourceError(
            f"{shard.file}, row {wrong[0]:,}: the label {labels[wrong[0]]} is none of the "
            f"{n_classes} classes (-1 is unknown)"
        )
    return labels


def _text(value: Any) -> str:
    return label_text(value) or ""
