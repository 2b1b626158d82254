"""What is extracted and how, and the name of the file that it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.errors import UsageError
from featx.fewshot import DRAWS_VERSION, draw_subset
from featx.sources import ClassChoice, Source
from featx.store.recognise import name_cache

if TYPE_CHECKING:
    from featx.backbones import Backbone
    from featx.engines import Engine

__all__ = ["Sample", "Settings", "cache_path", "images_identity", "take_sample"]

ON_ERROR = ("skip", "raise")


@dataclass(frozen=True)
class Sample:
    """Which part of a data set is extracted."""

    per_class: int | None = None
    test_per_class: int | None = None
    seed: int = 0
    classes: ClassChoice = field(default_factory=ClassChoice)
    draws: int = DRAWS_VERSION

    def for_split(self, split: str) -> int | None:
        """Images per class of one split; None for all."""
        if split == "unlabeled":
            return None
        return self.per_class if split in ("train", "all") else self.test_per_class

    def record(self) -> dict[str, Any] | None:
        """Give what goes into the cache file; None where everything is extracted."""
        chosen = {} if self.classes.is_everything else {"classes": self.classes.record()}
        if self.per_class is None and self.test_per_class is None:
            return chosen or None
        return {
            "per_class": self.per_class,
            "test_per_class": self.test_per_class,
            "seed": self.seed,
            **chosen,
        }


@dataclass(frozen=True)
class Settings:
    """Choices of an extraction that are neither the source's nor the backbone's."""

    sample: Sample = field(default_factory=Sample)
    store_dtype: str = "float16"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    on_error: str = "skip"
    reuse: bool = False
    is_part: bool = False
    """Whether these are some images of many, so that all of them may be unreadable."""
    request: Mapping[str, Any] = field(default_factory=dict)
    splits: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            allowed = ", ".join(ON_ERROR)
            raise UsageError(f"on-error {self.on_error!r} is unknown: choose from {allowed}")


def take_sample(source: Source, sample: Sample) -> Source:
    """Restrict a source to its chosen classes, and to a stratified draw of them."""
    source = sample.classes.apply_to(source)
    per_class = sample.for_split(source.split)
    if per_class is None:
        return source
    # By paths: by content, all images would have to be read to take a few.
    images = [path.encode("utf-8", "surrogatepass") for path in source.paths]
    rows = draw_subset(
        source.labels,
        per_class,
        seed=sample.seed,
        class_names=list(source.class_names),
        images=images if sample.draws == DRAWS_VERSION else None,
    )
    return source.take(rows)


def images_identity(source: Source, content: str) -> dict[str, Any]:
    """Everything about the images of a cache that is fingerprinted."""
    return {
        "content": content,
        "n_images": len(source),
        "class_names": list(source.class_names),
    }


def cache_path(
    folder: Path, source: Source, backbone: Backbone, engine: Engine, settings: Settings
) -> Path:
    """Name of a cache file: the data, the backbone, and every choice that is not a default."""
    sample = settings.sample
    parts = [source.name, source.split]
    if not sample.classes.is_everything:
        parts.append(sample.classes.tag)
    per_class = sample.for_split(source.split)
    if per_class is not None:
        parts.append(f"{per_class}perclass" + (f"-seed{sample.seed}" if sample.seed else ""))
    parts.append(backbone.name)
    if not backbone.weights.is_default:
        parts.append(backbone.weights.label)
    if not backbone.is_default_layer:
        parts.append(backbone.layer)
    if backbone.pool != "none":
        parts.append(backbone.pool)
    for name, value in settings.overrides.items():
        text = "_".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)
        parts.append(f"{value}px" if name == "input_size" else f"{name}{text}")
    numbers = (engine.precision, engine.runtime, settings.store_dtype)
    parts += [part for part in numbers if part not in ("fp32", "torch", "float16")]
    return name_cache(folder, parts)
