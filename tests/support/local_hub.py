"""A Hugging Face hub on 127.0.0.1, small enough to break on purpose: listings, files with ETag and Range, refusals."""

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class LocalHub:
    """Serves one model repository, `acme/bloom`, at the branch main.

    Attributes:
        files: name -> content, as listed.
        served: name -> other content to send than what is listed (a damaged file).
        cut: name -> bytes after which the connection breaks, the first time only.
        lost: names that are listed, but answer 404.
        refusals: other repository -> (status, X-Error-Code) for every request about it.
        log: (method, path, Range header) of every request, in order.
    """

    files: Mapping[str, bytes]
    served: Mapping[str, bytes] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    refusals: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    log: list[tuple[str, str, str | None]] = field(default_factory=list)

    def __enter__(self) -> "LocalHub":
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def requested(self, name: str) -> list[str | None]:
        """The Range headers of the requests for the content of a file."""
        return [where for method, path, where in self.log if method == "GET" and path.endswith(f"/{name}")]


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = urlsplit(self.path).path
        self.hub.log.append((self.command, path, self.headers.get("Range")))
        if refusal := next((answer for name, answer in self.hub.refusals.items() if f"/{name}/" in path), None):
            self._refuse(*refusal)
        elif path in (f"/api/models/acme/bloom/revision/{name}" for name in ("main", COMMIT)):
            self._json(
                {"id": "acme/bloom", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.hub.files]}
            )
        elif path.startswith("/api/models/acme/bloom/revision/"):
            self._refuse(404, "RevisionNotFound")
        elif path == f"/api/models/acme/bloom/tree/{COMMIT}":
            self._json([_listed(name, content) for name, content in self.hub.files.items()])
        elif path.startswith(f"/acme/bloom/resolve/{COMMIT}/"):
            self._file(path.removeprefix(f"/acme/bloom/resolve/{COMMIT}/"), with_body)
        else:
            self._refuse(404, "RepoNotFound")

    def _json(self, data: object) -> None:
        body = json.dumps(data).encode()
        self._head(200, len(body), {"Content-Type": "application/json"})
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self._head(status, 0, {"X-Error-Code": code, "X-Error-Message": code})

    def _file(self, name: str, with_body: bool) -> None:
        if name not in self.hub.files or name in self.hub.lost:
            self._refuse(404, "EntryNotFound")
            return
        body = self.hub.served.get(name, self.hub.files[name])
        if not with_body:
            body = self.hub.files[name]  # a HEAD request returns the announced size
        headers = {
            "ETag": f'"{_digest(name, self.hub.files[name])}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self._head(206 if start else 200, len(body) - start, headers)
        if with_body:
            self._send(name, body[start:])

    def _send(self, name: str, body: bytes) -> None:
        cut = self.hub.cut.pop(name, None)
        self.wfile.write(body[:cut])
        self.close_connection = self.close_connection or cut is not None

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def _digest(name: str, content: bytes) -> str:
    """Digest of a file as on the hub: SHA-256 for large files (git-lfs), git's SHA-1 of a blob for the others."""
    if name.endswith((".safetensors", ".h5", ".bin")):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _listed(name: str, content: bytes) -> dict[str, object]:
    digest = _digest(name, content)
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": digest[:40]}
    if len(digest) == 64:
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
    return entry
