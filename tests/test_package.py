from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import featx

ROOT = Path(__file__).resolve().parents[1]


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    "code",
    [
        "import featx",
        "from featx.cli import main; main(['--help'])",
        "from featx.cli import main; main(['extract', '--help'])",
        "from featx.cli import main; main(['fit', '--help'])",
        "from featx.cli import main; main(['extract', '--backbone'])",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code):
    heavy = "{'torch', 'torchvision', 'sklearn', 'numpy', 'pandas', 'h5py', 'PIL', 'timm'}"
    result = run_python(f"{code}\nimport sys; print('LOADED', {heavy} & set(sys.modules))")
    assert result.stdout.splitlines()[-1] == "LOADED set()"


def test_every_public_name_is_there_and_listed():
    public = {
        "Cache",
        "Classifier",
        "FeatureExtractor",
        "FeatxError",
        "__version__",
        "available_backbones",
        "concat_caches",
        "draw_subset",
        "fit",
        "load",
        "load_model",
        "open_backbone",
        "open_data",
        "results",
        "write_cache",
    }
    assert set(featx.__all__) == public == set(dir(featx))
    assert all(getattr(featx, name) for name in public)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = featx.nothing


def test_rooms_are_attributes_without_an_import_of_their_own():
    code = "import featx; print(featx.evaluate.Settings, featx.sources.open_data, featx.heads)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "featx.evaluate.settings.Settings" in done.stdout


def test_the_version_is_the_one_of_the_package():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert featx.__version__ == metadata["project"]["version"]


def test_every_public_thing_has_a_docstring():
    import importlib
    import inspect
    import pkgutil

    bare = []
    for module_info in pkgutil.walk_packages(featx.__path__, "featx."):
        if module_info.name == "featx.__main__":
            continue
        module = importlib.import_module(module_info.name)
        assert module.__doc__, module_info.name
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if (inspect.isclass(value) or inspect.isfunction(value)) and not value.__doc__:
                bare.append(f"{module_info.name}.{name}")
    assert bare == []
