from __future__ import annotations

import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from local_site import Site
from PIL import Image

PER_CLASS = 20


@pytest.fixture(scope="session")
def cifar_slice(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 20 images of each class and split of the CIFAR-10 JPEGs: train/, test/."""
    root = tmp_path_factory.mktemp("cifar") / "cifar10-slice"
    taken: Counter[PurePosixPath] = Counter()
    with tarfile.open(shared / "data" / "cifar10-jpeg.tar.xz", "r|xz") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if member.isfile() and taken[path.parent] < PER_CLASS:
                taken[path.parent] += 1
                stream = archive.extractfile(member)
                assert stream is not None
                (root / path.parent).mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(stream.read())
    assert set(taken.values()) == {PER_CLASS}
    return root


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append(self.path)
            data = site.files.get(self.path)
            if data is None:
                self.send_error(404, "Not Found")
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if self.path in site.cut_short else data)

        def log_message(self, *args: object) -> None:
            del args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site = Site(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield site
        server.shutdown()
        thread.join()


@pytest.fixture
def photo_tree(tmp_path: Path) -> Path:
    """Three classes of five small images without splits."""
    rng = np.random.default_rng(3)
    root = tmp_path / "photos"
    for name in ("ant", "bee", "crane"):
        (root / name).mkdir(parents=True)
        for i, kind in enumerate(("png", "JPG", "bmp", "gif", "webp")):
            pixels = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.{kind}")
    return root
