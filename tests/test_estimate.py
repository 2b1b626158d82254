"""A dry run says what the run then does, and leaves nothing."""

from __future__ import annotations

import re

import pytest
from small_photos import make_photos

from featx.cli import main
from featx.extract import estimate, estimate_plan
from featx.extract.plan import Plan
from featx.store import Cache
from featx.text import size_text

WORDS = "extract --backbone squeezenet1_1 --weights random:3 --data pets --input-size 64 -b 4 -j 0"


@pytest.fixture(autouse=True)
def pets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "pets", {"cat": (64, 64), "dog": (64, 64)}, n=10)
    return tmp_path


def dry(capsys, *more):
    assert main([*WORDS.split(), *more, "--dry-run", "-q"]) == 0
    return capsys.readouterr().out.splitlines()


def test_what_a_dry_run_says_is_what_the_run_does(pets, capsys):
    lines = dry(capsys, "--layer", "features.3", "features")
    assert [path.name for path in pets.iterdir()] == ["pets"]
    files = dict(line.split(": ") for line in lines if line.startswith("cache/"))
    assert main([*WORDS.split(), "--layer", "features.3", "features", "-q"]) == 0
    capsys.readouterr()
    for path, what in files.items():
        with Cache.open(path) as cache:
            n, d = cache.X.shape
            assert what == f"{n} x {d:,} float16, {size_text(2 * n * d)}"
    assert re.fullmatch(r"squeezenet1_1: [\d,.]+ images/s here, measured .*", lines[2])
    assert re.fullmatch(r"about \d+ seconds here", lines[-1])
    assert "is there already" in dry(capsys)[0]


@pytest.mark.parametrize("share", ["1/2", "2/3", "7/7"])
def test_a_share_says_what_its_process_does(pets, capsys, share):
    words = ["--shard", share, "--shard-rows", "8", "--layer", "features.3", "features"]
    said = dict(line.split(": ") for line in dry(capsys, *words) if line.startswith("cache/"))
    assert not (pets / "cache").exists()
    main([*WORDS.split(), *words, "-q"])
    capsys.readouterr()
    for place, what in said.items():
        files = sorted((pets / place).rglob("rows-*.h5"))
        n, d = 0, int(re.search(r" x ([\d,]+) ", what)[1].replace(",", ""))
        for file in files:
            with Cache.open(file) as cache:
                n += len(cache)
        size = size_text(2 * n * d)
        assert what == f"{n} x {d:,} float16, {size} in {len(files)} of 3 shards"
    # As many rows to a shard as the place has, where none are asked for.
    [again, *_] = dry(capsys, "--shard", share, *words[4:])
    n = re.search(r" in (\d) of 3 shards", again)[1]
    assert again.endswith("3 shards" if n == "0" else f", {n} of them there already")
    assert main([*WORDS.split(), *words, "--shard-rows", "7", "--dry-run", "-q"]) == 1
    assert "leave out --shard-rows" in capsys.readouterr().err
    main([*WORDS.split(), *words, "--shard", "1/1", "-q"])
    capsys.readouterr()
    assert (
        "is complete: where its images are the same, nothing is computed"
        in dry(capsys, *words[4:])[0]
    )


def test_what_does_not_fit_says_what_to_do(monkeypatch):
    usage = estimate.shutil.disk_usage
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda p: usage(p)._replace(free=1000))
    plan = Plan(backbone="squeezenet1_1", weights="random", data="pets", input_size=64, workers=0)
    assert any(
        line.startswith("that does not fit: give --pool avg") for line in estimate_plan(plan)
    )


def test_too_few_images_are_not_timed(capsys):
    assert dry(capsys, "--batch-size", "16")[-1].startswith("fewer than two batches of images")
