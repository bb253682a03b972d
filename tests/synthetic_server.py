"""A web server of this machine that gives files, and answers as Hugging Face does."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """`files`: path to content; `says`: path to (status, headers), before any file.

    `requested`: (method, path) of each request, in order; `logins`: its Authorization.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.files: dict[str, bytes] = {}
        self.says: dict[str, tuple[int, dict[str, str]]] = {}
        self.requested: list[tuple[str, str]] = []
        self.logins: list[str | None] = []

    def put(self, path: str, content: bytes | Path) -> str:
        """Its address."""
        self.files[path] = content.read_bytes() if isinstance(content, Path) else content
        return self.address + path

    def put_hub(self, repo: str, file: str, content: bytes | Path, revision: str = "main") -> str:
        """A file of a repository, at a branch and its commit; its address."""
        for where in (revision, COMMIT):
            self.put(f"/{repo}/resolve/{where}/{file}", content)
        return f"hf://{repo}/{file}"


@contextmanager
def serving() -> Iterator[Server]:
    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            path = self.path.split("?")[0]
            server.requested.append((self.command, path))
            server.logins.append(self.headers.get("Authorization"))
            status, headers = server.says.get(path, (200, {}))
            content = server.files.get(path)
            if status == 200 and content is None:
                status, headers = 404, {"X-Error-Code": "EntryNotFound"}
            body = content if status == 200 else b""
            tag = f'"{hashlib.sha256(body).hexdigest()}"'
            if status == 200 and self.headers.get("If-None-Match") == tag:
                status, body = 304, b""
            self.send_response(status)
            own = {"ETag": tag, "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}
            for name, value in {**own, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server = Server(f"http://127.0.0.1:{httpd.server_address[1]}")
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
