from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from featx.errors import SourceError, UsageError
from featx.progress import Reporter
from featx.sources import available_data, default_data_dir, open_data


def test_names() -> None:
    known = available_data()
    assert set(known) == {"cifar10", "cifar100", "stl10", "digits"}
    assert all(0 < len(text) < 90 and "\n" not in text for text in known.values())


def test_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("FEATX_DATA", raising=False)
    assert default_data_dir() == Path("/home/someone/.cache/featx/data")
    monkeypatch.setenv("FEATX_DATA", "~/elsewhere")
    assert default_data_dir() == Path("/home/someone/elsewhere")


@pytest.mark.parametrize("spec", ["cifra10", "CIFAR-10", "Digits", "photos", ""])
def test_a_wrong_name(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"^unknown data set '{spec}'") as caught:
        open_data(spec)
    assert f"there is no folder {spec!r}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert any(name in str(caught.value) for name in available_data())


def test_a_wrong_path_may_have_been_meant_as_a_name(tmp_path: Path) -> None:
    for spec in ("./cifra10", tmp_path / "cifar-10", Path("stl_10")):
        with pytest.raises(SourceError, match="did you mean the built-in data set"):
            open_data(spec)
    with pytest.raises(SourceError, match="no folder '/nowhere/photos': '/' has no 'nowhere'"):
        open_data("/nowhere/photos")


def test_a_name_wins_over_a_folder_and_says_so(
    photo_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo_tree.rename(photo_tree.with_name("digits"))
    monkeypatch.chdir(photo_tree.parent)
    stream = io.StringIO()
    assert set(open_data("digits", reporter=Reporter(stream=stream))) == {"train", "test"}
    assert "for the folder, say ./digits" in stream.getvalue()
    for spec in ("./digits", Path("digits"), "digits/"):
        assert open_data(spec)["all"].class_names == ("ant", "bee", "crane")


def test_a_folder_loads_neither_torch_nor_sklearn(photo_tree: Path) -> None:
    code = (
        "import sys; from featx.sources import open_data; "
        f"open_data({str(photo_tree)!r})['all'].image(0); "
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'h5py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
