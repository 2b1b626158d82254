"""The docs build, name commands and options that there are, and the package is whole."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import click
import pytest

from featx.cli.main import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = "https://github.com/featx/featx/"


def commands(text):
    """Commands of featx in blocks of code, without comments and continued over lines."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        found = re.match(r"(?: {4}|\$ )?featx (.*)", line)
        if found and "FILE…" not in line:
            words = re.split(r"\s{2,}#|\s{2,}featx |\s{3,}", found[1])[0]
            yield shlex.split(words.replace("'s ", " "))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_and_options_of_the_docs_exist(page):
    for words in commands(page.read_text(encoding="utf-8")):
        command = cli.get_command(click.Context(cli), words[0])
        if command is None:  # prose, or what a command prints
            continue
        if isinstance(command, click.Group) and len(words) > 1:
            command = command.get_command(click.Context(command), words[1]) or command
        known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        known |= {"-h", "--help", "--debug"}
        odd = [w for w in words if re.match(r"--?[a-zA-Z]", w) and w.partition("=")[0] not in known]
        assert odd == [], (page.name, words)


def test_the_readme_is_short_and_its_links_work_elsewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        raw = "https://raw.githubusercontent.com/featx/featx/"
        place = link.removeprefix(OURS + "blob/").removeprefix(raw).removeprefix("main/")
        assert link.startswith(("https://", "http://"))
        assert not link.startswith((OURS, raw)) or (ROOT / place).is_file(), link


def test_the_site_builds_strictly_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        words, check=False, cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]+src=\"?https?://", text), page
        assert not re.findall(r"<link[^>]+rel=\"?(?:stylesheet|preconnect)[^>]+https?://", text)
    api = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    assert "featx.FeatureExtractor" in api


def test_the_wheel_is_whole_and_runs_where_it_is_installed(tmp_path):
    pytest.importorskip("build")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "featx/report/templates/page.html"} <= names
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        packed = {name for name in archive.namelist() if name.startswith("featx/")}
    kept = (path for path in (ROOT / "featx").rglob("*") if path.is_file())
    assert packed == {
        str(path.relative_to(ROOT)) for path in kept if "__pycache__" not in path.parts
    }
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    for ask in (["reproduce", "--list"], ["list", "backbones", "vgg"], ["list", "networks"]):
        command = [sys.executable, "-m", "featx", *ask]
        told = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert len(told.stdout.splitlines()) > 3
    code = "import featx; print(featx.__file__)"
    command = [sys.executable, "-c", code]
    place = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert str(tmp_path / "installed") in place.stdout
