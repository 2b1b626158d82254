from __future__ import annotations

import math
import tomllib
from pathlib import Path

import pytest

from featx.backbones import list_layers, outline
from featx.backbones.pools import pooled_shape
from featx.errors import UsageError
from featx.networks import count, get_network, get_top, is_network
from featx.reproduce import Options, Recipe, all_recipes, find_recipes, read_recipe
from featx.reproduce.recipe import PRETRAINED

OWN = """
[system]
source = "me"
title = "a network"

[extract]
backbone = "resnet18"

[fit]
heads = "ncm"
per_class = [5]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text)
    return path


# Every accuracy of the published tables: what featx brings a recipe for.
REPORTED = {
    "Klimack and Recio": [
        *[0.86, 0.659, 0.96, 0.9835, 0.9914, 0.9993, 0.9826, 0.9926, 0.9863, 0.9863, 0.9272],
        *[0.04, 0.04],
    ],
    "Hoogasian": [0.80, 0.71, 0.71],
    "Nellangara": [0.51, 0.77, 0.99, 0.99],
    "Cristian": [0.95],
    "Veer, Ram, Ranjani": [0.75, 0.79, 0.83, 0.93, 0.93, 0.995, 0.995],
}


def test_every_published_accuracy_has_a_recipe() -> None:
    found: dict[str, list[float]] = {}
    for recipe in all_recipes():
        if recipe.reported.accuracy is not None:
            found.setdefault(recipe.system.source, []).append(recipe.reported.accuracy)
            assert recipe.reported.where
    assert {source: sorted(values) for source, values in found.items()} == {
        source: sorted(values) for source, values in REPORTED.items()
    }


def test_the_documents_list_every_recipe_as_it_is() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reproductions.md").read_text(encoding="utf-8")
    for recipe in all_recipes():
        assert f"| `{recipe.name}` | {recipe.system.title} |" in text, recipe.name


def test_recipes_say_how_they_differ_and_have_a_small_scale() -> None:
    for recipe in all_recipes():
        assert recipe.differs, recipe.name
        assert recipe.small, recipe.name
        small = recipe.at_scale("small")
        assert small != recipe
        parts = [part for part in ("train", "pretrain") if recipe.has(part)]
        for part in parts:
            assert small.train_plan(part).epochs <= recipe.train_plan(part).epochs
            pool = small.data.cache_per_class
            most = small.train_plan(part).per_class
            assert all(k == "all" or (pool is not None and k <= pool) for k in most), recipe.name
        if recipe.has("fit") and small.data.cache_per_class is not None:
            sizes = [int(k) for k in small.settings().per_class if k != "all"]
            assert all(k <= small.data.cache_per_class for k in sizes), recipe.name
            # Draws of all images there are would be one draw.
            are_several = small.settings().repeats > 1
            assert not are_several or min(sizes) < small.data.cache_per_class, recipe.name


def test_networks_and_tops_of_all_recipes_exist() -> None:
    for recipe in all_recipes():
        for part in ("train", "pretrain"):
            if not recipe.has(part):
                continue
            for scale in ("full", "small"):
                plan = recipe.at_scale(scale).train_plan(part)
                if is_network(plan.network):
                    get_network(plan.network)
                if plan.top is not None:
                    get_top(plan.top)


@pytest.mark.parametrize(
    "name", ["klimack-recio-100-vgg16-svm", "klimack-recio-100-inceptionv3-svm"]
)
def test_reported_feature_sizes_are_those_of_the_backbones(name: str) -> None:
    [recipe] = find_recipes([name])
    plan = recipe.plan()
    points, default = list_layers(plan.backbone[0], overrides=plan.overrides())
    shape = next(point.shape for point in points if point.name == default)
    assert math.prod(shape) == recipe.reported.features


@pytest.mark.parametrize("recipe", all_recipes(), ids=lambda recipe: recipe.name)
def test_feature_points_of_all_recipes_exist(recipe: Recipe) -> None:
    for part, key in (("extract", "backbone"), ("train", "network")):
        values = recipe.at_scale("small").parts.get(part, {})
        names = values.get(key, ())
        name = names[0] if isinstance(names, tuple) and names else names
        if not name or name == PRETRAINED or is_network(name):
            continue
        size = values.get("input_size")
        loaded = outline(name, {"input_size": size} if isinstance(size, int) else {})
        taps = loaded.tap(loaded.preprocessing.crop_px)
        layer = values.get("layer") or None
        point = taps.find(layer[0] if isinstance(layer, tuple) else layer)
        pooled_shape(point.shape, values.get("pool", "none"))
        assert point.n_values > 0


def test_keys_of_the_files_are_toml_that_others_can_read() -> None:
    for recipe in all_recipes():
        values = tomllib.loads(recipe.path.read_text(encoding="utf-8"))
        assert values["system"]["source"] == recipe.system.source


def test_names_beginnings_and_paths(tmp_path: Path) -> None:
    assert [r.name for r in find_recipes(["nellangara-vgg16"])] == ["nellangara-vgg16"]
    begun = [recipe.name for recipe in find_recipes(["klimack-recio-100", "klimack-recio-100-cnn"])]
    assert len(begun) == len(set(begun)) == 4
    assert all(name.startswith("klimack-recio-100") for name in begun)
    own = write(tmp_path, OWN)
    assert [recipe.name for recipe in find_recipes([str(own)])] == ["own"]
    with pytest.raises(UsageError, match="did you mean nellangara-cnn"):
        find_recipes(["nelangara-cnn"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("backbone =", "bakbone ="), "did you mean backbone"),
        (("[fit]", "[fits]"), "did you mean fit"),
        (("[5]", '["five"]'), "per_class is 'five'"),
        (("[5]", "[5.5]"), "must be a whole number or text"),
        (('"ncm"', '"nmc"'), "did you mean ncm"),
        (("title =", "titel ="), "did you mean title"),
        (('title = "a network"\n', ""), "title"),
        (('[fit]\nheads = "ncm"\nper_class = [5]\n', ""), "go together"),
        (("[extract]", "[extract]\nper_class = 5"), "unknown key in \\[extract\\]"),
        (("[extract]", '[extract]\npreprocess = "divide-onl"'), "did you mean divide-only"),
        (("[fit]", "[small.fit]\nper_clas = 3\n[fit]"), "did you mean per_class"),
        (("[fit]", "[train]\nnetwork = '@pretrain'\n[fit]"), "go together"),
        (("[fit]", "[fit"), "is no TOML"),
        (("[system]", "extract = 3\n[system]"), "is no TOML"),
    ],
)
def test_wrong_recipes(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    assert change[0] in OWN
    with pytest.raises(UsageError) as caught:
        read_recipe(write(tmp_path, OWN.replace(*change)))
    import re

    assert re.search(words, str(caught.value)), str(caught.value)
    assert "own.toml" in str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))


def test_small_scale_replaces_only_what_it_names(tmp_path: Path) -> None:
    text = OWN + "\n[data]\ncache_per_class = 50\n[small.data]\ncache_per_class = 7\n"
    small = read_recipe(write(tmp_path, text)).at_scale("small")
    assert small.plan().per_class == 7
    assert small.plan().backbone == ("resnet18",)
    assert small.described_scale() == "cache_per_class=7"


def test_what_the_user_replaces(tmp_path: Path) -> None:
    text = OWN.replace("[extract]", '[extract]\nlayer = "layer3"')
    recipe = read_recipe(write(tmp_path, text))
    options = Options(
        data={"cifar10": "/x"}, backbone={"resnet18": "vgg11"}, weights={"vgg11": "random"}
    )
    changed = options.apply(recipe)
    plan = changed.plan()
    assert (plan.data, plan.backbone, plan.weights, plan.layer) == ("/x", ("vgg11",), "random", ())
    assert changed.replaced == ("vgg11 in place of resnet18", "random weights")
    assert recipe.plan().backbone == ("resnet18",)
    assert Options(backbone={"other": "vgg11"}).apply(recipe) == recipe


def test_chain_of_two_trainings() -> None:
    [recipe] = find_recipes(["veer-4-densenet161"])
    assert recipe.train_plan().network == PRETRAINED
    first = recipe.train_plan("pretrain")
    network = get_network(first.network).build(10, 32, seed=0)
    assert round(count(network).n_parameters / 1e6, 3) == 26.483
