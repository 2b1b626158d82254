"""The preprocessing of timm's weights, against timm's own transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from featx.backbones import open_backbone
from featx.errors import UsageError
from featx.preprocess import Preprocessing

timm = pytest.importorskip("timm")

# One of each crop mode, crop ratio, filter and scaling that differ among timm's weights.
TAGS = [
    "resnet18.a1_in1k",  # crop 0.95, bicubic
    "resnet18.tv_in1k",  # crop 0.875, bilinear
    "inception_v3.tv_in1k",  # mean and std 0.5, other than torchvision's for the same weights
    "vit_small_patch14_reg4_dinov2.lvd142m",  # 518 pixels, crop 1.0
    "vit_base_patch16_clip_224.openai",  # CLIP's mean and std
    "convnext_small.fb_in22k_ft_in1k_384",  # squash
    "deepseek_vit_412m_align.deepseek_v4_flash_vision_exp",  # border
]


def picture(width, height):
    rng = np.random.default_rng(width)
    small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", TAGS)
@pytest.mark.parametrize("size", [(640, 427), (200, 333)])
def test_the_pixels_are_those_of_timms_own_transform(name, size):
    if not timm.list_pretrained(name):
        pytest.skip(f"this timm has no {name}")
    cfg = timm.models.get_pretrained_cfg(name).to_dict()
    config = timm.data.resolve_data_config(pretrained_cfg=cfg)
    transform = timm.data.create_transform(**config, is_training=False)
    ours = Preprocessing.from_timm(cfg)
    image = picture(*size)
    mine = ours.normalise(torch.from_numpy(ours.pixels(image).copy())[None])[0]
    assert torch.equal(mine, transform(image))


def test_every_other_input_size_is_resized_as_by_timm():
    configs = {}
    for name in timm.list_pretrained():
        cfg = timm.models.get_pretrained_cfg(name).to_dict()
        if cfg["input_size"][1] == cfg["input_size"][2]:
            configs[cfg["input_size"], cfg["crop_pct"], cfg["crop_mode"]] = cfg
    assert len({crop_pct for _, crop_pct, _ in configs}) > 9
    for cfg in configs.values():
        ours = Preprocessing.from_timm(cfg)
        for px in range(32, 513, 3):
            config = timm.data.resolve_data_config({"input_size": (3, px, px)}, pretrained_cfg=cfg)
            resize = timm.data.create_transform(**config, is_training=False).transforms[0]
            wanted = resize.size if isinstance(resize.size, int) else resize.size[0]
            assert ours.override(input_size=px).resize_px == wanted, (cfg["crop_pct"], px)
            assert "crop_pct" not in ours.override(input_size=px).identity()
    resnet = timm.models.get_pretrained_cfg("resnet18.a1_in1k").to_dict()
    assert Preprocessing.from_timm(resnet).override(input_size=100).resize_px == 105


def test_positions_that_are_interpolated_are_said(tmp_path):
    name = "timm/vit_tiny_patch16_224"
    network = timm.create_model("vit_tiny_patch16_224")
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    file = str(tmp_path / "vit.pth")
    usual = open_backbone(name, weights=file, overrides={"input_size": 224})
    assert "interpolated" not in usual.preprocessing.origin
    smaller = open_backbone(name, weights=file, overrides={"input_size": 96})
    said = "positions interpolated: pos_embed from 1 x 197 x 192 to 1 x 37 x 192"
    assert said in smaller.preprocessing.describe()
    assert "interpolated" not in str(smaller.identity())


def test_the_crop_mode_is_part_of_the_identity_where_it_is_not_the_usual_one():
    usual = Preprocessing(256, 224, "bicubic", (0.5,) * 3, (0.5,) * 3)
    squash = Preprocessing(256, 224, "bicubic", (0.5,) * 3, (0.5,) * 3, crop_mode="squash")
    assert "crop_mode" not in usual.identity()
    assert squash.identity()["crop_mode"] == "squash"
    assert "both sides to 256" in squash.describe()
    with pytest.raises(UsageError, match="center, squash, border"):
        Preprocessing(256, 224, "bicubic", (0.5,) * 3, (0.5,) * 3, crop_mode="pad")


def test_timms_inception_is_scaled_unlike_torchvisions():
    one = open_backbone("timm/inception_v3", weights="random").preprocessing
    other = open_backbone("inception_v3", weights="random").preprocessing
    assert (one.mean, one.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (one.resize_px, one.crop_px, one.interpolation) == (341, 299, "bicubic")
    assert (other.resize_px, other.crop_px, other.interpolation) == (342, 299, "bilinear")
    assert other.mean == (0.485, 0.456, 0.406)
