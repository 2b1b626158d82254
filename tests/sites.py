"""Servers on 127.0.0.1: a folder over http, moto's S3 with errors, delays, lost connections, and
Google's API for objects.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from urllib.request import Request, urlopen

import fsspec
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


class GsSite(http.server.ThreadingHTTPServer):
    """Google's JSON API for objects, as far as gcsfs asks for it; see its reference documents."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _GsRequest)
        self.objects: dict[str, bytes] = {}
        self.statuses: list[int] = []
        """Of the next answers about objects, in place of the true ones."""
        self.pending: dict[str, tuple[str, bytes]] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that are gone."""


class _GsRequest(http.server.BaseHTTPRequestHandler):
    server: GsSite
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: bytes | dict[str, Any] = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _described(self, name: str) -> dict[str, Any]:
        data = self.server.objects[name]
        digest = base64.b64encode(hashlib.md5(data).digest()).decode()
        found = {"kind": "storage#object", "name": name, "bucket": "photos", "size": str(len(data))}
        return found | {"md5Hash": digest, "generation": "1", "updated": "2026-01-01T00:00:00.000Z"}

    def do_GET(self) -> None:  # noqa: PLR0911 - one a kind of question
        parts = urlsplit(self.path)
        asked = dict(parse_qsl(parts.query))
        _, _, rest = parts.path.partition("/b/photos")
        name = unquote(rest.removeprefix("/o").removeprefix("/"))
        if not rest or "/b/photos" not in parts.path:
            known = "/b/photos" in parts.path
            return self._answer(200 if known else 404, {"name": "photos"} if known else {})
        if self.server.statuses:
            return self._answer(self.server.statuses.pop(0))
        if not name:
            return self._answer(200, self._listed(asked.get("prefix", ""), asked.get("delimiter")))
        if name not in self.server.objects:
            return self._answer(404, {"error": {"code": 404, "message": "No such object"}})
        if asked.get("alt") != "media":
            return self._answer(200, self._described(name))
        data = self.server.objects[name]
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), int(part[2] or len(data) - 1)
            where = f"bytes {first}-{last}/{len(data)}"
            return self._answer(206, data[first : last + 1], Content_Range=where)
        return self._answer(200, data)

    def _listed(self, prefix: str, delimiter: str | None) -> dict[str, Any]:
        items, folders = [], set()
        for name in sorted(self.server.objects):
            if name.startswith(prefix):
                below = name[len(prefix) :]
                if delimiter and delimiter in below:
                    folders.add(prefix + below.partition(delimiter)[0] + delimiter)
                else:
                    items.append(self._described(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = dict(parse_qsl(urlsplit(self.path).query))
        if self.server.statuses:
            return self._answer(self.server.statuses.pop(0))
        if "upload_id" in asked:
            name, before = self.server.pending[asked["upload_id"]]
            self.server.pending[asked["upload_id"]] = name, before + body
            total = int(self.headers["Content-Range"].rpartition("/")[2])
            if len(before + body) < total:
                return self._answer(308, Range=f"bytes=0-{len(before + body) - 1}")
            self.server.objects[name] = before + body
            return self._answer(200, self._described(name))
        is_whole = asked["uploadType"] == "multipart"
        head, _, rest = body.partition(b"\n--==0==\n") if is_whole else (body, b"", b"")
        record, data = head[head.index(b"{") :], rest.partition(b"\n\n")[2]
        name = json.loads(record)["name"]
        if asked.get("ifGenerationMatch") == "0" and name in self.server.objects:
            return self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        if not is_whole:
            self.server.pending[key := str(len(self.server.pending))] = name, b""
            host = f"http://127.0.0.1:{self.server.server_port}"
            return self._answer(
                200, Location=f"{host}/upload/storage/v1/b/photos/o?upload_id={key}"
            )
        self.server.objects[name] = data.removesuffix(b"\n--==0==--")
        return self._answer(200, self._described(name))


@contextmanager
def gs_site() -> Iterator[GsSite]:
    gcsfs = pytest.importorskip("gcsfs.core", reason="no gcsfs: pip install 'featx[cloud]'")
    server = GsSite()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield server
        gcsfs.GCSFileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()
    thread.join()
