"""Servers on 127.0.0.1: a folder over http, and moto's S3 with errors, delays, lost connections."""

from __future__ import annotations

import functools
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

Fault = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class S3Site:
    """What tests see of the server."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, str]] = []

    def answer(self, app: Any, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append((method, path))
        is_object = method in ("GET", "PUT") and path.count("/") > 1
        if is_object and self.faults:
            found = self.faults.pop(0)(environ, start)
            if found is not None:
                return found
        return app(environ, start)

    def count(self, method: str, ending: str) -> int:
        return sum(m == method and path.endswith(ending) for m, path in self.asked)


def fails(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start("500 Internal Server Error", [("Content-Length", "0")])
    return [b""]


def is_slow(environ: dict[str, Any], start: Any) -> None:
    time.sleep(0.5)


def drops(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    start("200 OK", [("Content-Length", "1000000")])(b"the beginning")
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


@contextmanager
def s3_site() -> Iterator[S3Site]:
    s3fs = pytest.importorskip("s3fs", reason="no s3fs: pip install 'featx[cloud]'")
    moto = pytest.importorskip("moto.server", reason="no S3 server: pip install 'moto[server]'")
    from werkzeug.serving import make_server

    site, app = S3Site(), moto.DomainDispatcherApplication(moto.create_backend_app)
    server = make_server(
        "127.0.0.1", 0, lambda environ, start: site.answer(app, environ, start), threaded=True
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        # What moto keeps is of the process: another file of tests may have written it.
        reset = Request(f"http://127.0.0.1:{server.server_port}/moto-api/reset", method="POST")
        urlopen(reset).close()
        s3fs.S3FileSystem().makedirs("photos")
        yield site
        s3fs.S3FileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()
    thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Say nothing: what featx says is looked at."""


@contextmanager
def web_site(folder: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()
