"""A stand-in for the Hugging Face Hub on 127.0.0.1: the parts of its API that fetch a data set."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    repository: str
    files: dict[str, bytes]
    sent: list[str]

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        api, resolve = f"/api/datasets/{self.repository}", f"/datasets/{self.repository}/resolve/"
        if path.startswith(f"{api}/tree/"):
            kind = {"type": "file", "oid": COMMIT}
            listed = [{**kind, "path": name, "size": len(b)} for name, b in self.files.items()]
            self.send(listed)
        elif path.startswith(api):
            names = [{"rfilename": name} for name in self.files]
            self.send({"id": self.repository, "sha": COMMIT, "siblings": names})
        elif path.startswith(resolve):
            name = path.removeprefix(f"{resolve}{COMMIT}/")
            if self.command == "GET":
                self.sent.append(name)
            self.send(self.files[name])
        else:
            self.send({"error": "Repository not found"}, 404)

    do_HEAD = do_GET

    def send(self, content: object, status: int = 200) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve_hub(repository: str, files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve the files of one data set; gives the address, and the files that were sent."""
    known = {"repository": repository, "files": files, "sent": []}
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), known)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", known["sent"]
        finally:
            server.shutdown()
            thread.join()
