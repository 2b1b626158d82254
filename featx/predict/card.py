"""A model card of a saved model, in the format of the Hugging Face Hub, from what its file says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from featx.predict.model import SavedModel, test_text
from featx.report.tables import markdown_text
from featx.text import visible

__all__ = ["model_card"]

_MOST_CLASSES = 50


def model_card(model: SavedModel) -> str:
    """Write the card as Markdown behind a block of YAML (huggingface.co/docs/hub/model-cards)."""
    head = (f"{name}: {json.dumps(value)}" for name, value in _metadata(model).items())
    # JSON is YAML too, and needs no quoting rules of its own.
    return "\n".join(["---", *head, "---", "", *_body(model), ""])


def _metadata(model: SavedModel) -> dict[str, Any]:
    test = model.meta["test"]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": test["data"], "type": test["data"], "split": test["split"]},
        "metrics": [{"type": "accuracy", "value": test["accuracy"], "name": "accuracy"}],
    }
    return {
        "library_name": "featx",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "transfer-learning", "linear-probe", "frozen-features"],
        "model-index": [{"name": model.path.stem, "results": [result]}],
    }


def _body(model: SavedModel) -> Iterator[str]:
    meta = model.meta
    features, train, test = meta["features"], meta["train"], meta["test"]
    yield f"# {_word(model.path.stem)}"
    yield ""
    yield (
        f"A classifier of {len(model.class_names):,} classes of images: {_word(meta['head'])}, "
        f"fitted on frozen features of {_word(features.get('backbone'))}. The backbone itself was "
        "not trained."
    )
    yield from ("", "## How to use it", "", "```console")
    yield f"featx predict --model {visible(model.path.name, keep='')} IMAGES"
    yield from ("```", "", "## What it takes", "")
    yield from _lines(dict(_backbone(meta)))
    yield from ("", "## How it was fitted", "")
    drawn = f"{train['per_class']} per class, seed {train['seed']}"
    yield from _lines(
        {
            "training images": f"{train['n_train']:,} of {train['data']} ({drawn})",
            "head": f"{meta['head']} {_settings(meta['head_settings'])}".strip(),
            "penalty C": "none" if meta["C"] is None else f"{meta['C']:.4g}",
            "scaling of features": meta["scale"],
            "weights of classes": meta["class_weight"] or "none",
            "made by": f"featx {meta['featx_version']}, {meta['created']}, fit {meta['fit_id']}",
        }
    )
    yield from ("", "## How good it is", "")
    yield (
        f"Accuracy {test_text(meta)} on {_word(test['data'])}, {_word(test['split'])}, when it was "
        "fitted. On other images, of another camera or time, it may be lower: measure it there."
    )
    yield from ("", "## Classes", "")
    yield ", ".join(_word(name) for name in model.class_names[:_MOST_CLASSES]) + (
        f" and {len(model.class_names) - _MOST_CLASSES:,} more"
        if len(model.class_names) > _MOST_CLASSES
        else ""
    )


def _backbone(meta: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    features, weights = meta["features"], meta["weights"]
    point = features.get("point", {})
    yield "backbone", str(features.get("backbone"))
    if weights.get("sha256"):
        yield "weights", f"{weights.get('label')}, SHA-256 of the tensors {weights['sha256'][:16]}…"
    yield (
        "layer",
        f"{point.get('layer')}, pool {point.get('pool')}, {meta['n_features']:,} values",
    )
    if "input_size" in features:
        yield "image size", f"{features['input_size']} px"
    for name, value in features.get("preprocessing", {}).items():
        yield name.replace("_", " "), str(value)


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _lines(told: Mapping[str, str]) -> Iterator[str]:
    yield from (f"- **{name}**: {_word(value)}" for name, value in told.items())


def _word(value: object) -> str:
    return markdown_text(visible(str(value), keep=""))
