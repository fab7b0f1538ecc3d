"""A Hugging Face Hub on this machine, for the real clients: huggingface_hub, and datasets on top of it.

It speaks the part of the Hub's HTTP interface that fetching and pushing use, as the clients' sources ask for it:

- ``HEAD`` and ``GET /{id}/resolve/{rev}/{file}``: X-Repo-Commit, ETag, Range; a large file is redirected to another
  host (``localhost`` beside ``127.0.0.1``) with X-Linked-Etag and X-Linked-Size, as the Hub does to its storage, and
  that host must never see a token;
- ``GET /api/{models,datasets}/{id}[/revision/{rev}]`` and ``/tree/{rev}``, ``POST /paths-info/{rev}``: what there is;
- ``POST /api/repos/create``, ``/api/validate-yaml``, ``/preupload``, Git LFS's batch, ``PUT`` and verify, ``/commit``;
- ``GET /raw/...``: plain files, as raw.githubusercontent.com serves them.

A gated repository answers 401 without a token and 403 before its licence is accepted; a private one 404 as if it were
not there. ``faults`` breaks chosen requests: see ``Fault``. Every request is kept in ``log``.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_parts import LARGE, Fault, Repository, git_sha1

KEPT = threading.Event()  # never set: what a stalled answer waits for


class Hub:
    """A running server. models, datasets: repositories by owner/name. tokens: "read" or "write" by token. raw: plain
    files by path. log: (host, "METHOD path", token) of every request."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Repository]] = {"models": {}, "datasets": {}}
        self.models, self.datasets = self.repositories["models"], self.repositories["datasets"]
        self.tokens: dict[str, str] = {}
        self.raw: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}  # large files by SHA-256
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, str | None]] = []
        self.server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.port = self.server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.storage = f"http://localhost:{self.port}/storage"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop answering: connections are then refused."""
        self.server.shutdown()
        self.server.server_close()

    def asked(self, pattern: str) -> list[str]:
        """The requests so far that match."""
        return [request for _, request, _ in self.log if re.search(pattern, request)]


class Server(ThreadingHTTPServer):
    """Threads that end with the process, and clients that hang up without a word."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that gives up closes its connection."""


class Handler(BaseHTTPRequestHandler):
    """One request. Bound to a Hub by a subclass."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on standard error: the log is the Hub's."""

    def do_GET(self) -> None:
        self.fault: Fault | None = None
        parts = urlsplit(self.path)
        self.query, path = parse_qs(parts.query), unquote(parts.path)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.body = self._read_body()
        request = f"{self.command} {path}"
        self.hub.log.append((self.headers["Host"].partition(":")[0], request, self.token))
        self.fault = next((fault for fault in self.hub.faults if fault.hits(request)), None)
        if self.fault and self.fault.what == "stall":
            KEPT.wait(60)
            self.close_connection = True
        elif self.fault and self.fault.what == "page":
            self.send(b"<html>please log in</html>", headers={"Content-Type": "text/html"})
        elif self.fault and isinstance(self.fault.what, int):
            self.send(
                b"<html>out of order</html>", self.fault.what, {"Content-Type": "text/html", **self.fault.headers}
            )
        elif self.token and self.token not in self.hub.tokens and "/storage/" not in path:
            self.refuse(401, "", "Invalid credentials in Authorization header")
        else:
            self._route(path)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - as http.server names them

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _route(self, path: str) -> None:
        for pattern, handle in ROUTES:
            if found := re.fullmatch(pattern, path):
                return handle(self, **found.groupdict())
        return self.refuse(404, "EntryNotFound", f"no such page: {path}")

    # --- answers ---------------------------------------------------------------------------------------------------

    def send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send an answer, or what a fault leaves of it."""
        if self.fault and self.fault.what == "short":
            content = content[:-1]
        sent = content
        if self.fault and self.fault.what == "cut":
            sent, self.close_connection = content[: len(content) // 2], True
        elif self.fault and self.fault.what == "flip" and content:
            middle = len(content) // 2
            sent = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)

    def send_json(self, value: Any) -> None:
        self.send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def refuse(self, status: int, code: str, message: str, **more: str) -> None:
        """An error as the Hub words it: a code for programs, a message for people."""
        body = json.dumps({"error": message, **more}).encode()
        self.send(body, status, {"X-Error-Code": code, "X-Error-Message": message})

    def found(self, kind: str | None, name: str, contents: bool = False) -> Repository | None:
        """The repository, where this token may see it, or with ``contents`` read its files; else refused."""
        one = self.hub.repositories[(kind or "models").strip("/")].get(name)
        if one is None or (one.private and self.token is None):
            # As the Hub: without a token nobody learns whether there is such a repository.
            self.refuse(401 if self.token is None else 404, "RepoNotFound", "Repository not found")
        elif contents and one.gated and self.token not in one.licensed:
            self.refuse(403 if self.token else 401, "GatedRepo", f"Access to model {name} is restricted.")
        else:
            return one
        return None

    def may_write(self, name: str) -> bool:
        """Whether this token may write; else refused."""
        if self.hub.tokens.get(self.token or "") == "write":
            return True
        self.refuse(403, "", f"You don't have the required permissions to write to {name}.")
        return False

    # --- reading ---------------------------------------------------------------------------------------------------

    def info(self, kind: str, name: str) -> None:
        if one := self.found(kind, name):
            siblings = [{"rfilename": path, "size": one.entry(path)["size"]} for path in sorted(one.files)]
            about = {"id": name, "sha": one.sha, "private": one.private, "gated": "manual" if one.gated else False}
            self.send_json({**about, "siblings": siblings, "cardData": one.card, "tags": [], "downloads": 0})

    def tree(self, kind: str, name: str, under: str) -> None:
        if one := self.found(kind, name):
            self.send_json(one.tree(under.strip("/"), self.query.get("recursive", [""])[0].lower() in ("1", "true")))

    def paths_info(self, kind: str, name: str) -> None:
        if one := self.found(kind, name):
            paths = parse_qs(self.body.decode()).get("paths", [])
            folders = {entry["path"]: entry for entry in one.tree("", True) if entry["type"] == "directory"}
            known = [one.entry(path) if path in one.files else folders.get(path) for path in paths]
            self.send_json([entry for entry in known if entry])

    def resolve(self, kind: str | None, name: str, file: str) -> None:
        one = self.found(kind, name, contents=True)
        if one is None:
            return
        headers = {"X-Repo-Commit": one.sha}
        if file not in one.files:
            message = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self.send(b"Entry not found", 404, headers | message)
        elif lfs := one.entry(file).get("lfs"):
            self.hub.stored[lfs["oid"]] = one.files[file]
            linked = {"X-Linked-Etag": f'"{lfs["oid"]}"', "X-Linked-Size": str(lfs["size"])}
            self.send(b"", 302, headers | linked | {"Location": f"{self.hub.storage}/{lfs['oid']}"})
        else:
            self.send_file(one.files[file], headers | {"ETag": f'"{git_sha1(one.files[file])}"'})

    def stored(self, digest: str) -> None:
        self.send_file(self.hub.stored[digest], {"ETag": f'"{digest}"'})

    def plain(self, file: str) -> None:
        if file in self.hub.raw:
            self.send_file(self.hub.raw[file], {})
        else:
            self.refuse(404, "", "404: Not Found")

    def send_file(self, content: bytes, headers: dict[str, str]) -> None:
        """A file, or the part of it that the request asks for."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return self.send(content, headers={"Accept-Ranges": "bytes", **headers})
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        return self.send(
            content[first : last + 1], 206, {"Content-Range": f"bytes {first}-{last}/{len(content)}", **headers}
        )

    # --- writing ---------------------------------------------------------------------------------------------------

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self.may_write(name):
            return None
        if name in self.hub.models:
            return self.refuse(409, "", "You already created this model repo", url=f"{self.hub.address}/{name}")
        self.hub.models[name] = Repository(private=asked.get("visibility") == "private" or asked.get("private", False))
        return self.send_json({"url": f"{self.hub.address}/{name}", "name": name})

    def validate(self) -> None:
        head = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        self.send_json({"errors": [], "warnings": [] if head else [{"message": "empty or missing yaml metadata"}]})

    def preupload(self, name: str) -> None:
        if (one := self.found("models", name)) is None or not self.may_write(name):
            return
        files = []
        for wanted in json.loads(self.body)["files"]:
            path = wanted["path"]
            mode = {"uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
            entry = one.entry(path) if path in one.files else {}
            files.append({"path": path, "oid": entry.get("lfs", entry).get("oid"), **mode})
        self.send_json({"files": files})

    def batch(self, name: str) -> None:
        if not self.may_write(name):
            return
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.storage}/{wanted['oid']}", "header": {}}
            objects.append({**wanted, **({} if wanted["oid"] in self.hub.stored else {"actions": {"upload": upload}})})
        self.send_json({"transfer": "basic", "objects": objects})

    def store(self, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            return self.refuse(400, "", "the content has another SHA-256")
        self.hub.stored[digest] = self.body
        return self.send(b"")

    def commit(self, name: str) -> None:
        if (one := self.found("models", name)) is None or not self.may_write(name):
            return
        files = dict(one.files)
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                one.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.hub.stored[value["oid"]]
        one.files = files
        self.send_json(
            {"success": True, "commitOid": one.sha, "commitUrl": f"{self.hub.address}/{name}/commit/{one.sha}"}
        )


NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
KIND = r"(?P<kind>models|datasets)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (
        r"/storage/(?P<digest>\w+)",
        lambda one, digest: one.store(digest) if one.command == "PUT" else one.stored(digest),
    ),
    (r"/raw/(?P<file>.+)", Handler.plain),
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.validate),
    (rf"/api/{KIND}/{NAME}(/revision/[^/]+)?", Handler.info),
    (rf"/api/{KIND}/{NAME}/tree/[^/]+(?P<under>(/.*)?)", Handler.tree),
    (rf"/api/{KIND}/{NAME}/paths-info/[^/]+", Handler.paths_info),
    (rf"/api/models/{NAME}/preupload/[^/]+", Handler.preupload),
    (rf"/api/models/{NAME}/commit/[^/]+", Handler.commit),
    (rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (rf"/(?P<kind>datasets/)?{NAME}/resolve/[^/]+/(?P<file>.+)", Handler.resolve),
    (r"/", lambda one: one.send(b"a Hub")),
]
