from __future__ import annotations

import multiprocessing
import pickle
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sets
from local_site import Site
from test_source_contract import SourceContract

from featx.errors import SourceError
from featx.sources import Source, open_data
from featx.sources.official.formats import FORMATS
from featx.sources.official.reader import MappedSource
from featx.sources.torchvision_sets import SETS

NAMES = sorted(SETS)


def loader_of(name: str) -> Any:
    import torchvision.datasets

    return getattr(torchvision.datasets, SETS[name].loader)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def archive(name: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> bytes:
    data = tiny_sets.install(name, site.url, monkeypatch)
    site.files[f"/{loader_of(name).filename}"] = data
    return data


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_urls_and_checksums_are_those_of_torchvision() -> None:
    # Sizes as the servers give them; torchvision knows no size.
    assert {name: known.n_bytes for name, known in SETS.items()} == {
        "cifar10": 170_498_071,
        "cifar100": 169_001_437,
        "stl10": 2_640_397_119,
    }
    for name in NAMES:
        assert loader_of(name).filename.endswith(".tar.gz")
        assert len(loader_of(name).tgz_md5) == 32


def test_downloads_once(name: str, site: Site, archive: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    splits = open_data(name, data_dir=folder)
    assert list(splits) == ["train", "test"]
    np.testing.assert_array_equal(splits["test"].read(4), tiny_sets.pixels_of(name, "test")[4])
    file = loader_of(name).filename
    assert (folder / file).read_bytes() == archive
    assert names_in(folder) == {file, loader_of(name).base_folder}
    n_requests = len(site.requests)
    assert n_requests > 0
    again = open_data(name, data_dir=folder)
    assert len(site.requests) == n_requests
    assert again["train"].content_id() == splits["train"].content_id()


def test_data_dir_comes_from_the_environment(
    archive: bytes, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATX_DATA", str(tmp_path / "there"))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / loader_of(name).filename).write_bytes(archive)
    assert len(open_data(name, download=False)["test"]) == tiny_sets.N_TEST


def assert_names_all(error: SourceError, name: str, folder: Path) -> None:
    loader = loader_of(name)
    for part in (loader.filename, f"{SETS[name].n_bytes:,} bytes", loader.url, str(folder)):
        assert part in str(error)
    assert "\n" not in str(error)


@pytest.mark.usefixtures("archive")
def test_no_download_wanted(name: str, site: Site, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="but downloading is switched off: get it from") as caught:
        open_data(name, data_dir=tmp_path, download=False)
    assert_names_all(caught.value, name, tmp_path)
    assert site.requests == []


def test_offline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        tiny_sets.install(name, f"http://127.0.0.1:{taken.getsockname()[1]}", monkeypatch)
        with pytest.raises(SourceError, match=r"download failed: .*refused: get it") as caught:
            open_data(name, data_dir=tmp_path)
    assert_names_all(caught.value, name, tmp_path)
    assert names_in(tmp_path) == set()


@pytest.mark.usefixtures("archive")
def test_not_on_the_server(name: str, site: Site, tmp_path: Path) -> None:
    site.files.clear()
    with pytest.raises(SourceError, match="the download failed: Not Found: get it") as caught:
        open_data(name, data_dir=tmp_path)
    assert_names_all(caught.value, name, tmp_path)


def test_wrong_bytes_from_the_server(name: str, site: Site, archive: bytes, tmp_path: Path) -> None:
    site.files[f"/{loader_of(name).filename}"] = archive[:-1] + b"?"
    with pytest.raises(SourceError, match="the download has a wrong checksum") as caught:
        open_data(name, data_dir=tmp_path)
    assert_names_all(caught.value, name, tmp_path)
    assert names_in(tmp_path) == set()


def test_a_download_cut_short_leaves_nothing(
    name: str, site: Site, archive: bytes, tmp_path: Path
) -> None:
    site.cut_short.add(f"/{loader_of(name).filename}")
    came = f"{len(archive) // 2:,}"
    with pytest.raises(SourceError, match=f"wrong checksum .{came} of .* bytes came"):
        open_data(name, data_dir=tmp_path)
    assert names_in(tmp_path) == set()
    site.cut_short.clear()
    assert len(open_data(name, data_dir=tmp_path)["train"]) == tiny_sets.N_TRAIN


def test_a_wrong_file_put_there_by_hand(
    name: str, site: Site, archive: bytes, tmp_path: Path
) -> None:
    file = tmp_path / loader_of(name).filename
    file.write_bytes(archive[:100])
    with pytest.raises(SourceError, match=r"the file there has a wrong checksum \(100 bytes\)"):
        open_data(name, data_dir=tmp_path, download=False)
    site.files.clear()
    with pytest.raises(SourceError, match=r"wrong checksum .100 bytes. and the download failed"):
        open_data(name, data_dir=tmp_path)
    assert file.read_bytes() == archive[:100]
    site.files[f"/{file.name}"] = archive
    open_data(name, data_dir=tmp_path)
    assert file.read_bytes() == archive


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_damaged_files_are_unpacked_again(
    name: str, archive: bytes, tmp_path: Path, damage: str
) -> None:
    del archive
    wanted = open_data(name, data_dir=tmp_path)["train"].content_id()
    base = tmp_path / loader_of(name).base_folder
    for path in sorted(base.iterdir()):
        if path.name == "class_names.txt" or damage == "remove":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        source = open_data(name, data_dir=tmp_path, download=False)["train"]
        assert source.content_id() == wanted
        assert source.class_names == tuple(tiny_sets.class_names(name))


@dataclass
class _Trap:
    sprung: Path

    def __reduce__(self) -> Any:
        return Path.touch, (self.sprung,)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"], indirect=True)
def test_no_pickle_is_opened_before_its_checksum(name: str, archive: bytes, tmp_path: Path) -> None:
    open_data(name, data_dir=tmp_path)
    (tmp_path / loader_of(name).filename).unlink()
    base, sprung = tmp_path / loader_of(name).base_folder, tmp_path / "sprung"
    pickle.loads(pickle.dumps(_Trap(sprung)))
    assert sprung.exists()
    sprung.unlink()
    for path in base.iterdir():
        before = path.read_bytes()
        path.write_bytes(pickle.dumps(_Trap(sprung)))
        with pytest.raises(SourceError, match="downloading is switched off"):
            open_data(name, data_dir=tmp_path, download=False)
        assert not sprung.exists()
        path.write_bytes(before)
    del archive


def test_a_pickle_is_not_run_even_with_the_right_checksum(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, sprung = tiny_sets.cifar_batch, tmp_path / "sprung"

    def batch(*args: Any) -> bytes:
        data = pickle.loads(whole(*args), encoding="latin1")
        return tiny_sets.old_pickle(data | {"more": _Trap(sprung)})

    monkeypatch.setattr(tiny_sets, "cifar_batch", batch)
    site.files["/cifar-10-python.tar.gz"] = tiny_sets.install("cifar10", site.url, monkeypatch)
    with pytest.raises(SourceError, match=r"data_batch_1 is a pickle that wants to run '.*getattr"):
        open_data("cifar10", data_dir=tmp_path / "data")
    assert not sprung.exists()


def test_no_source_loads_a_pickle() -> None:
    import featx

    [root] = featx.__path__
    for path in Path(root, "sources").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "import pickle\n" not in text, path
        assert "allow_pickle=True" not in text, path


@pytest.mark.usefixtures("archive")
def test_a_folder_that_cannot_be_written_is_enough(name: str, tmp_path: Path) -> None:
    open_data(name, data_dir=tmp_path)
    base = tmp_path / loader_of(name).base_folder
    before = names_in(tmp_path)
    for folder in (base, tmp_path):
        folder.chmod(0o500)
    try:
        source = pickle.loads(pickle.dumps(open_data(name, data_dir=tmp_path)["train"]))
        assert isinstance(source, MappedSource)
        assert names_in(tmp_path) == before
    finally:
        for folder in (tmp_path, base):
            folder.chmod(0o700)


@pytest.mark.usefixtures("archive")
def test_a_data_dir_that_is_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SourceError, match=r"cannot write to .*/file"):
        open_data(name, data_dir=tmp_path / "file")


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("damage", ["remove", "empty", "cut"])
def test_a_mapped_file_that_changed_says_so_in_the_worker(
    name: str, tmp_path: Path, damage: str
) -> None:
    stored = pickle.dumps(open_data(name, data_dir=tmp_path)["test"])
    file = {"cifar10": "test_batch", "cifar100": "test", "stl10": "test_X.bin"}[name]
    path = tmp_path / loader_of(name).base_folder / file
    whole = path.read_bytes()
    path.unlink()
    if damage != "remove":
        path.write_bytes(b"" if damage == "empty" else whole[:-3000])
    with pytest.raises(SourceError, match=f"the pixels in {file} cannot be read: open the data"):
        pickle.loads(stored)


def test_the_digests_are_those_of_torchvision() -> None:
    for name in NAMES:
        loader = loader_of(name)
        [known] = [known for known in FORMATS if known.folder == loader.base_folder]
        listed = dict(loader.train_list + loader.test_list)
        if hasattr(loader, "meta"):
            listed[loader.meta["filename"]] = loader.meta["md5"]
        assert (known.name, known.digests) == (name, listed)
        assert set(known.files) >= set(listed) - {"unlabeled_X.bin"}


def test_stl10_has_images_without_labels(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = tiny_sets.pixels_of("stl10", "unlabeled")
    files = tiny_sets.files_of("stl10")
    files["unlabeled_X.bin"] = pixels.transpose(0, 3, 2, 1).tobytes()
    monkeypatch.setattr(tiny_sets, "files_of", lambda name: files)
    site.files["/stl10_binary.tar.gz"] = tiny_sets.install("stl10", site.url, monkeypatch)
    splits = open_data("stl10", data_dir=tmp_path)
    assert list(splits) == ["train", "test", "unlabeled"]
    source = splits["unlabeled"]
    assert source.class_names == splits["train"].class_names
    assert source.labels.tolist() == [-1] * len(pixels)
    assert source.paths[3] == "unlabeled/00003"
    for row, image in enumerate(pixels):
        np.testing.assert_array_equal(source.read(row), image)


class TinySetContract(SourceContract):
    name = ""

    @pytest.fixture
    def splits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Source]:
        archive = tiny_sets.install(self.name, "http://127.0.0.1:1", monkeypatch)
        (tmp_path / loader_of(self.name).filename).write_bytes(archive)
        return open_data(self.name, data_dir=tmp_path, download=False)

    def test_is_what_the_files_hold(self, splits: dict[str, Source]) -> None:
        for split, source in splits.items():
            assert source.class_names == tuple(tiny_sets.class_names(self.name))
            np.testing.assert_array_equal(source.labels, tiny_sets.labels_of(split))
            for row, pixels in enumerate(tiny_sets.pixels_of(self.name, split)):
                np.testing.assert_array_equal(source.read(row), pixels)

    def test_worker_processes_map_the_pixels(self, source: Source) -> None:
        assert len(pickle.dumps(source)) < 10_000 < np.asarray(source.read(0)).nbytes * len(source)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            np.testing.assert_array_equal(pool.apply(source.read, (3,)), source.read(3))

    def test_content_id_depends_on_every_pixel(self, source: Source) -> None:
        assert isinstance(source, MappedSource)
        before = source.content_id()
        block = source.blocks[-1]
        with Path(block.file).open("r+b") as stream:
            stream.seek(block.offset + 4 * block.stride + 77)
            [value] = stream.read(1)
            stream.seek(-1, 1)
            stream.write(bytes([value ^ 1]))
        assert source.content_id() != before


class TestCifar10(TinySetContract):
    name = "cifar10"


class TestCifar100(TinySetContract):
    name = "cifar100"


class TestStl10(TinySetContract):
    name = "stl10"


@pytest.mark.network
def test_the_real_server_has_files_of_these_sizes(name: str) -> None:
    from urllib.request import Request, urlopen

    with urlopen(Request(loader_of(name).url, method="HEAD"), timeout=60) as answer:
        assert int(answer.headers["Content-Length"]) == SETS[name].n_bytes
