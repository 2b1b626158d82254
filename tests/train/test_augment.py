"""Augmentation against torchvision's functions and SciPy's sampling at mapped coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torchvision.transforms import functional

from featx.errors import UsageError
from featx.train.images import Augment, sample_warped


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (64, 9, 9, 3), dtype=torch.uint8, generator=generator(7))


def chw(image: torch.Tensor) -> torch.Tensor:
    return image.permute(2, 0, 1)


def test_flip_mirrors_about_half_of_the_images(pixels: torch.Tensor) -> None:
    out = Augment(flip=True).move(pixels, generator())
    n_flipped = 0
    for before, after in zip(pixels, out, strict=True):
        mirrored = functional.hflip(chw(before))
        assert torch.equal(chw(after), mirrored) or torch.equal(after, before)
        n_flipped += torch.equal(chw(after), mirrored)
    assert 16 < n_flipped < 48


def test_crops_are_those_of_the_padded_image_and_all_occur(pixels: torch.Tensor) -> None:
    pad, side = 2, pixels.shape[1]
    found = set()
    for seed in range(6):
        out = Augment(crop=pad).move(pixels, generator(seed))
        for before, after in zip(pixels, out, strict=True):
            padded = functional.pad(chw(before), [pad])
            crops = {
                (top, left): functional.crop(padded, top, left, side, side)
                for top in range(2 * pad + 1)
                for left in range(2 * pad + 1)
            }
            found |= {at for at, crop in crops.items() if torch.equal(crop, chw(after))}
            assert any(torch.equal(crop, chw(after)) for crop in crops.values())
    assert len(found) == (2 * pad + 1) ** 2


@pytest.mark.parametrize("degrees", [15, -36, 90, 180])
def test_rotation_is_torchvisions_where_it_sees_no_border(degrees: float) -> None:
    images = torch.rand(1, 3, 33, 33, generator=generator())
    ours = sample_warped(images, torch.tensor([degrees / 360]), torch.ones(1))
    bilinear = functional.InterpolationMode.BILINEAR
    theirs = functional.rotate(images, degrees, interpolation=bilinear)
    y, x = np.mgrid[-16:17, -16:17]
    inside = torch.from_numpy(x**2 + y**2 < 15**2)
    assert torch.allclose(ours[..., inside], theirs[..., inside], atol=1e-4)


@pytest.mark.parametrize(("turn", "zoom"), [(0.1, 1.0), (0.0, 1.3), (0.0, 0.7), (-0.07, 1.2)])
def test_warp_is_sampling_at_keras_coordinates_with_mirrored_borders(
    turn: float, zoom: float
) -> None:
    image = torch.rand(20, 20, generator=generator(3))
    ours = sample_warped(image[None, None], torch.tensor([turn]), torch.tensor([zoom]))[0, 0]
    # Keras: about (side - 1) / 2, output to input, "reflect" is d c b a | a b c d | d c b a.
    centre, angle = 9.5, 2 * np.pi * turn
    y, x = np.mgrid[0:20, 0:20] - centre
    from_x = zoom * (np.cos(angle) * x - np.sin(angle) * y) + centre
    from_y = zoom * (np.sin(angle) * x + np.cos(angle) * y) + centre
    wanted = map_coordinates(image.numpy(), [from_y, from_x], order=1, mode="reflect")
    np.testing.assert_allclose(ours.numpy(), wanted, atol=2e-5)


def test_positive_turns_are_counter_clockwise_and_zooms_above_1_show_more() -> None:
    image = torch.zeros(1, 1, 21, 21)
    image[0, 0, 10, 16] = 1.0  # right of the centre
    turned = sample_warped(image, torch.tensor([0.25]), torch.ones(1))
    assert divmod(int(turned.argmax()), 21) == (4, 10)  # above it
    smaller = sample_warped(image, torch.zeros(1), torch.tensor([1.5]))
    assert divmod(int(smaller.argmax()), 21) == (10, 14)


def test_the_same_seed_gives_the_same_images_and_another_others(pixels: torch.Tensor) -> None:
    augment = Augment(flip=True, crop=2, rotation=0.1, zoom=0.1)
    images = pixels.permute(0, 3, 1, 2).float()
    results = [
        (augment.move(pixels, generator(seed)), augment.warp(images, generator(seed)))
        for seed in (1, 1, 2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results[:2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(*results[1:], strict=True))


def test_ranges_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from featx.train import images as module

    seen: list[torch.Tensor] = []

    def keep(images: torch.Tensor, turns: torch.Tensor, zooms: torch.Tensor) -> torch.Tensor:
        seen.extend([turns, zooms])
        return images

    monkeypatch.setattr(module, "sample_warped", keep)
    Augment(rotation=0.1, zoom=0.2).warp(torch.zeros(4000, 3, 1, 1), generator())
    turns, zooms = seen
    np.testing.assert_allclose([turns.min(), turns.max()], [-0.1, 0.1], atol=1e-3)
    np.testing.assert_allclose([zooms.min(), zooms.max()], [0.8, 1.2], atol=2e-3)
    assert turns.abs().max() <= 0.1
    assert (zooms - 1).abs().max() <= 0.2 + 1e-6
    assert torch.equal(Augment().warp(torch.ones(1, 3, 2, 2), generator()), torch.ones(1, 3, 2, 2))


def test_words_are_read() -> None:
    words = ("flip", "crop=4", "rotation=0.1", "zoom=0.25")
    assert Augment.parse(words) == Augment(flip=True, crop=4, rotation=0.1, zoom=0.25)
    assert Augment.parse(["flip=false"]) == Augment.parse([]) == Augment()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["flop"], "did you mean flip"),
        (["crop"], "a whole number"),
        (["crop=x"], "a whole number"),
        (["flip=3"], "true or false"),
        (["flip", "flip"], "given twice"),
        (["zoom=1.5"], r"in \[0, 1\)"),
        (["rotation=2"], r"in \[0, 0.5\]"),
        (["crop=-1"], r"in \[0, inf\)"),
    ],
)
def test_wrong_words_are_told(words: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Augment.parse(words)
