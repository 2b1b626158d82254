from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from one_thread import one_thread
from PIL import Image
from torchvision import models

from featx.backbones import open_backbone
from featx.cli import main
from featx.engines import LocalEngine
from featx.errors import CacheMismatchError, ImageError, ProtocolError, SourceError, UsageError
from featx.extract import Sample, Settings, cache_path, extract, take_sample
from featx.sources import open_data
from featx.store import Cache

CPU = torch.device("cpu")


def image_tree(root: Path, n: int = 12, seed: int = 0) -> Path:
    """Two classes of small noisy pictures."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        folder = root / ("cats" if i % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), np.uint8)).save(folder / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def backbone():
    return open_backbone("squeezenet1_1", weights="random", overrides={"input_size": 64})


def run(source, backbone, target, **settings):
    engine = LocalEngine(CPU, "fp32", 4, 0)
    return extract(source, backbone, engine, target, Settings(**settings))


@pytest.mark.parametrize(("store_dtype", "tolerance"), [("float16", 1e-3), ("float32", 1e-5)])
def test_the_cache_holds_torchvisions_own_features_of_photographs(
    photographs, squeezenet_file, tmp_path, store_dtype, tolerance
):
    """64 photographs: 40 at full size, and 24 of them again at 96 pixels."""
    for i, path in enumerate(photographs):
        folder = tmp_path / "photos" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).symlink_to(path)
        if i < 24:
            Image.open(path).convert("RGB").resize((96, 96)).save(folder / f"small{i}.png")
    source = open_data(tmp_path / "photos")["all"]
    assert len(source) == 64
    squeezenet = open_backbone("squeezenet1_0", weights=str(squeezenet_file))
    target = tmp_path / "cache.h5"
    run(source, squeezenet, target, store_dtype=store_dtype)

    network = models.squeezenet1_0()
    network.load_state_dict(torch.load(squeezenet_file, weights_only=True))
    network.eval()
    transform = models.SqueezeNet1_0_Weights.IMAGENET1K_V1.transforms()
    with h5py.File(target, "r") as file:  # plain h5py, no featx
        assert file["features"].shape == (64, 86_528)
        assert file["features"].dtype == store_dtype
        names = [name.decode() for name in file["class_names"][:]]
        for i, raw in enumerate(file["paths"][:]):
            path = raw.decode()
            image = Image.open(tmp_path / "photos" / path).convert("RGB")
            with torch.inference_mode():
                expected = network.features(transform(image)[None]).flatten().numpy()
            difference = np.abs(file["features"][i].astype(np.float32) - expected).max()
            assert difference <= tolerance * np.abs(expected).max()
            assert names[file["labels"][i]] == path.split("/")[0]


def test_the_same_question_again_computes_nothing(tmp_path, backbone):
    source = open_data(image_tree(tmp_path / "d"))["all"]
    first = run(source, backbone, tmp_path / "c.h5")
    before = (tmp_path / "c.h5").read_bytes()
    second = run(source, backbone, tmp_path / "c.h5")
    assert (first.n_computed, second.n_computed) == (12, 0)
    assert (tmp_path / "c.h5").read_bytes() == before


def test_a_changed_image_is_a_mismatch_that_names_the_field(tmp_path, backbone):
    root = image_tree(tmp_path / "d")
    run(open_data(root)["all"], backbone, tmp_path / "c.h5")
    before = (tmp_path / "c.h5").read_bytes()
    Image.new("RGB", (24, 30)).save(root / "cats" / "01.png")
    with pytest.raises(CacheMismatchError, match="source.content"):
        run(open_data(root)["all"], backbone, tmp_path / "c.h5")
    assert (tmp_path / "c.h5").read_bytes() == before
    report = run(open_data(root)["all"], backbone, tmp_path / "c.h5", overwrite=True)
    assert report.n_computed == 12


def test_other_preprocessing_is_named_field_by_field(tmp_path, backbone):
    source = open_data(image_tree(tmp_path / "d"))["all"]
    run(source, backbone, tmp_path / "c.h5")
    changed = open_backbone(
        "squeezenet1_1",
        weights="random",
        overrides={"input_size": 64, "mean": (0.5, 0.5, 0.5)},
        pool="avg",
    )
    with pytest.raises(CacheMismatchError) as caught:
        run(source, changed, tmp_path / "c.h5")
    text = "\n".join(caught.value.differences)
    for field in ("preprocessing.mean", "point.pool", "point.feature_shape"):
        assert field in text
    assert "weights_sha256" not in text


def test_a_bad_image_is_a_failed_row_and_shifts_nothing(tmp_path, backbone):
    root = image_tree(tmp_path / "d")
    run(open_data(root)["all"], backbone, tmp_path / "good.h5")
    (root / "dogs" / "04.png").write_bytes(b"not an image")
    report = run(open_data(root)["all"], backbone, tmp_path / "bad.h5")
    assert report.n_failed == 1
    with Cache.open(tmp_path / "good.h5") as good, Cache.open(tmp_path / "bad.h5") as bad:
        row = bad.paths.index("dogs/04.png")
        assert list(np.flatnonzero(bad.status != 1)) == [row]
        assert row in bad.errors
        assert np.isnan(bad.X[row]).all()
        others = [i for i in range(12) if i != row]
        assert np.array_equal(bad.X[others], good.X[others])
    with pytest.raises(ImageError, match=r"dogs/04.png"):
        run(open_data(root)["all"], backbone, tmp_path / "stop.h5", on_error="raise")
    assert not (tmp_path / "stop.h5").exists()


def test_no_readable_image_at_all_is_an_error(tmp_path, backbone):
    root = image_tree(tmp_path / "d", n=4)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(SourceError, match="none of the 4 images"):
        run(open_data(root)["all"], backbone, tmp_path / "c.h5")
    assert not (tmp_path / "c.h5").exists()


def test_samples_are_stratified_and_nested(tmp_path):
    source = open_data(image_tree(tmp_path / "d", n=40))["all"]
    small, large = (take_sample(source, Sample(per_class=k)) for k in (3, 9))
    assert np.bincount(small.labels).tolist() == [3, 3]
    assert set(small.paths) < set(large.paths)
    assert take_sample(source, Sample()) is source
    assert set(take_sample(source, Sample(3, seed=1)).paths) != set(small.paths)
    with pytest.raises(ProtocolError, match="cats"):
        take_sample(source, Sample(per_class=21))


def test_every_choice_is_in_the_name(tmp_path, backbone):
    source = open_data(image_tree(tmp_path / "my photos"))["all"]

    def name(backbone=backbone, precision="fp32", **settings):
        engine = LocalEngine(CPU, precision)
        return cache_path(Path(), source, backbone, engine, Settings(**settings)).name

    assert name() == "my_photos-all-squeezenet1_1-random_0.h5"
    names = {
        name(),
        name(sample=Sample(5)),
        name(sample=Sample(5, seed=3)),
        name(overrides={"input_size": 64}),
        name(overrides={"mean": (0.5, 0.5, 0.5)}),
        name(precision="bf16"),
        name(store_dtype="float32"),
        name(open_backbone("squeezenet1_1", weights="random:1")),
        name(open_backbone("squeezenet1_1", weights="random", pool="avg")),
        name(open_backbone("squeezenet1_1", weights="random", layer="features.3")),
    }
    assert len(names) == 10


def test_an_unknown_policy_is_refused():
    with pytest.raises(UsageError, match="skip, raise"):
        Settings(on_error="ignore")


RUN_FEATX = "from featx.cli import main; raise SystemExit(main())"
# It commits every second batch, and waits before the last: a loaded machine might look away
# until all is done.
HELD = """
import time
from featx.store import journal
journal._GROUP_BYTES = 64 << 10
from featx.engines import LocalEngine
def hold(self, group, source, batches, real=LocalEngine.run_many, **options):
    yield from real(self, group, source, batches[:-1], **options)
    time.sleep(3600)
LocalEngine.run_many = hold
"""


def words(data: Path, cache: Path) -> list[str]:
    return [
        *("extract", "--backbone", "squeezenet1_0", "--weights", "random", "--input-size", "64"),
        *("--data", str(data), "--cache", str(cache), "--batch-size", "4", "--workers", "1"),
    ]


def wait_for_journal(process, cache):
    """Wait until some rows are journalled, but not all."""
    while not any(path.read_bytes().count(b"\n") > 1 for path in cache.glob("*.journal")):
        assert process.poll() is None, "the extraction failed"
        time.sleep(0.05)


def content(path: Path) -> dict[str, bytes]:
    with h5py.File(path, "r") as file:
        return {name: dataset[()].tobytes() for name, dataset in file.items()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """80 images, and the content of their cache."""
    root = tmp_path_factory.mktemp("whole")
    data = image_tree(root / "d", n=80)
    with one_thread():
        assert main([*words(data, root / "cache"), "--quiet"]) == 0
    return data, content(next((root / "cache").glob("*.h5")))


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
)
def test_a_stopped_extraction_goes_on_and_gives_the_same_file(
    uninterrupted, tmp_path, forks, number, exit_code
):
    (data, whole), cache = uninterrupted, tmp_path / "cache"
    process = forks.start(HELD + RUN_FEATX, *words(data, cache), is_leader=True)
    wait_for_journal(process, cache)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does it, workers included
    else:
        process.send_signal(number)
    _, stderr = process.communicate()
    assert process.returncode == exit_code
    assert list(cache.glob("*.h5")) == []
    if number != signal.SIGKILL:
        assert "go on with:  featx extract" in stderr
        assert "Traceback" not in stderr
    again = forks.run(RUN_FEATX, *words(data, cache))
    assert "resuming: " in again.stderr
    n_again = int(again.stdout.split(": ")[1].split(", ")[2].split()[0])
    assert 0 < n_again < 80
    assert content(next(cache.glob("*.h5"))) == whole
    assert [path.suffix for path in cache.iterdir() if not path.name.startswith(".")] == [".h5"]
