"""A model hub for tests: the Hub's routes, served from a directory, with faults on demand.

`python -m tests.hub.server ROOT` prints its address and serves until its standard input ends or it is killed. It is a
process of its own because hf_transfer holds Python's global lock while it downloads. Standard library only.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import select
import socket
import struct
import sys
import termios
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.hub import store
from tests.hub.faults import BODY, Faults, Log, Rule, Throttle, counted

PIECE = 256 * 1024  # bytes between two looks at the throttle
CONTROL = "/_control/"


class Server(ThreadingHTTPServer):
    """One listening socket; the hub and its CDN share everything but their name."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], host: str, shared: Shared) -> None:
        self.host, self.shared = host, shared
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away between two requests is no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Shared:
    """What both hosts know."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults, self.throttle, self.log = Faults(), Throttle(), Log()
        self.page = 1000  # entries of one tree answer
        self.endpoint = self.cdn = ""


class Refused(Exception):
    """An answer of status >= 400."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        super().__init__(status)
        self.status = status
        self.headers = {"X-Error-Code": code} if code else {}
        self.headers |= {"X-Error-Message": message} if message else {}
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """The log is kept, not printed."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        self.shared = self.server.shared
        parts = urlsplit(self.path)
        self.url, self.query, self.file = unquote(parts.path), parse_qs(parts.query), ""
        if self.url.startswith(CONTROL):
            self._control(self.url.removeprefix(CONTROL))
            return
        self.line: dict[str, Any] = {
            "host": self.server.host, "method": self.command, "path": self.url, "range": self.headers.get("Range"),
            "headers": sorted({name.lower() for name in self.headers}), "status": 0, "sent": 0, "fault": "",
            "at": time.time(),
        }  # fmt: skip
        with counted(self.line, self.shared.log):
            try:
                self._route()
            except Refused as e:
                self._answer(e.status, json.dumps({"error": e.headers.get("X-Error-Message", "")}).encode(), e.headers)
            self.line["seconds"] = round(time.time() - self.line["at"], 3)

    def _route(self) -> None:
        parts = self.url.strip("/").split("/")
        if len(parts) >= 5 and parts[2] == "resolve":
            # a revision with slashes in it comes quoted; the raw path still has it in one part
            raw = urlsplit(self.path).path.strip("/").split("/")
            revision, self.file = unquote(raw[3]), unquote("/".join(raw[4:]))
            self._fault()
            self._resolve("/".join(parts[:2]), revision)
        elif parts[:2] == ["api", "models"] and len(parts) >= 4:
            self._fault()
            self._api("/".join(parts[2:4]))
        else:
            raise Refused(404)

    def _take(self, *kinds: str, span: range = range(0)) -> Rule | None:
        rule = self.shared.faults.take(kinds, self.server.host, self.command, self.url, self.file, span)
        if rule:
            self.line["fault"] = ",".join(filter(None, (self.line["fault"], rule.kind)))
        return rule

    def _fault(self) -> None:
        """What goes wrong before the request is looked at."""
        if rule := self._take("status"):
            given = rule.given
            wait = {"Retry_After": str(given["retry_after"])} if "retry_after" in given else {}
            raise Refused(given["status"], given.get("code", ""), given.get("message", ""), **wait)
        if rule := self._take("hang"):
            self._wait(rule)
        elif self._take("drop"):
            self.close_connection = True
            raise BrokenPipeError
        elif self._take("html"):
            raise Refused(200, Content_Type="text/html")

    def _repo(self, name: str, *, content: bool) -> store.Repo:
        repo = store.load(self.shared.root, name)
        sent = self.headers.get("Authorization", "")
        if self.server.host == "cdn":
            # signed addresses stand for themselves; the Hub's CDN refuses a second kind of authorization
            if sent:
                raise Refused(400, message="Only one auth mechanism allowed")
            if repo:
                return repo
        if repo is None:
            raise Refused(404 if sent else 401, "RepoNotFound" if sent else "", "Repository not found")
        if repo.token and sent != f"Bearer {repo.token}":
            if repo.gated and content:
                raise Refused(403 if sent else 401, "GatedRepo", f"Access to model {name} is restricted")
            if not repo.gated:
                raise Refused(404 if sent else 401, "RepoNotFound" if sent else "", "Repository not found")
        return repo

    def _commit(self, repo: store.Repo, revision: str) -> str:
        commit = repo.commit(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _api(self, name: str) -> None:
        raw = [unquote(p) for p in urlsplit(self.path).path.strip("/").split("/")[4:]]
        repo = self._repo(name, content=False)
        if not raw or (raw[0] == "revision" and len(raw) == 2):
            self._info(name, repo, self._commit(repo, raw[1] if raw else "main"))
        elif raw[0] == "tree" and len(raw) >= 2:
            self._tree(repo, self._commit(repo, raw[1]), "/".join(raw[2:]))
        else:
            raise Refused(404)

    def _info(self, name: str, repo: store.Repo, commit: str) -> None:
        siblings: list[dict[str, Any]] = []
        for e in repo.commits[commit].values():
            siblings.append({"rfilename": e.path})
            if "blobs" in self.query:
                siblings[-1] |= {"blobId": e.oid, "size": e.size}
                if e.lfs:
                    siblings[-1]["lfs"] = {"sha256": e.sha256, "size": e.size, "pointerSize": 134}
        self._json({
            "id": name, "modelId": name, "sha": commit, "private": bool(repo.token and not repo.gated),
            "gated": "manual" if repo.gated else False, "tags": [], "siblings": siblings,
            "cardData": {"license": "apache-2.0"},
        })  # fmt: skip

    def _tree(self, repo: store.Repo, commit: str, below: str) -> None:
        entries: dict[str, dict[str, Any]] = {}
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        for e in repo.commits[commit].values():
            inside = e.path.removeprefix(f"{below}/" if below else "")
            if below and inside == e.path:
                continue
            parents = inside.split("/")[:-1]
            for i in range(len(parents)):
                path = "/".join(filter(None, (below, *parents[: i + 1])))
                if recursive or i == 0:
                    entries[path] = {"type": "directory", "oid": store.git_sha1("tree", path.encode()), "size": 0}
            if recursive or not parents:
                entries[e.path] = {"type": "file", "oid": e.oid, "size": e.size}
                if e.lfs:
                    entries[e.path]["lfs"] = {"oid": e.sha256, "size": e.size, "pointerSize": 134}
        rows = [{**entry, "path": path} for path, entry in sorted(entries.items())]
        start = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if start + self.shared.page < len(rows):
            keep = "&".join(f"{k}={quote(v[0])}" for k, v in self.query.items() if k != "cursor")
            here = self.shared.endpoint + urlsplit(self.path).path
            headers["Link"] = f'<{here}?{keep}&cursor={start + self.shared.page}>; rel="next"'
        self._json(rows[start : start + self.shared.page], headers)

    def _resolve(self, name: str, revision: str) -> None:
        repo = self._repo(name, content=True)
        commit = self._commit(repo, revision)
        entry = repo.commits[commit].get(self.file)
        if entry is None:
            raise Refused(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit)
        if rule := self._take("replaced"):
            sha256 = rule.given["sha256"]
            size = (repo.directory / "blobs" / sha256).stat().st_size
            entry = store.Entry(entry.path, size, sha256[:40], sha256, entry.lfs)
        if rule := self._take("commit"):
            commit = rule.given["commit"]
        headers = {"ETag": f'"{entry.etag}"', "X-Repo-Commit": commit}
        if entry.lfs:
            headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        if rule := self._take("size"):
            headers["X-Linked-Size" if entry.lfs else "Content-Length"] = str(rule.given["size"])
        if self.server.host == "hub" and self._take("cdn"):
            self._answer(302, b"", {**headers, "Location": f"{self.shared.cdn}{self.path}?signature=of-a-test"})
            return
        self._content(repo.blob(entry), entry.size, headers)

    def _content(self, blob: Path, size: int, headers: dict[str, str]) -> None:
        wanted = self._range(size)
        start, end = wanted or (0, size)
        rule = self._take(*BODY, span=range(start, end)) if self.command == "GET" and end - start > 1 else None
        kind, given = (rule.kind, rule.given) if rule else ("", {})
        if kind == "no-range":
            wanted, start, end = None, 0, size
        status, told, length = (206 if wanted else 200), (start, end), end - start
        if kind == "content-range":
            start = max(0, min(start + given.get("shift", 1), size - length))
            told = (start, start + length)
        elif kind == "short":
            length //= 2
        if wanted:
            headers = {**headers, "Content-Range": f"bytes {told[0]}-{told[1] - 1}/{size}"}
        self._head(status, {"Content-Length": str(length), "Content-Type": "application/octet-stream", **headers})
        if self.command == "HEAD":
            return
        with blob.open("rb") as f:
            self._body(f.fileno(), start, length, rule)

    def _range(self, size: int) -> tuple[int, int] | None:
        unit, _, text = self.headers.get("Range", "").partition("=")
        first, dash, last = text.partition("-")
        if unit.strip() != "bytes" or not dash or "," in text:
            return None
        start = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if start >= size or end <= start:
            raise Refused(416, Content_Range=f"bytes */{size}")
        return start, end

    def _body(self, fd: int, start: int, length: int, rule: Rule | None) -> None:
        kind, given = (rule.kind, rule.given) if rule else ("", {})
        stop = min(length, given.get("after", length // 2)) if kind in ("reset", "truncate", "stall") else length
        if kind == "corrupt":
            self._send(fd, start, given["at"] - start, 0)
            self.connection.sendall(bytes([os.pread(fd, 1, given["at"])[0] ^ 0xFF]))
            self._send(fd, given["at"] + 1, start + length - given["at"] - 1, 0)
            return
        self._send(fd, start, stop, given["rate"] if kind == "drip" else 0)
        if kind == "stall" and rule:
            self._wait(rule)
            self._send(fd, start + stop, length - stop, 0)
        elif stop < length:
            self.close_connection = True
            if kind == "reset":
                self._drain()  # a reset throws away what is not sent yet
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                raise BrokenPipeError

    def _send(self, fd: int, start: int, length: int, rate: float) -> None:
        end = start + length
        while start < end:
            limited = rate > 0 or self.shared.throttle.rate > 0
            piece = min(end - start, max(1, int(rate / 10)) if rate > 0 else PIECE if limited else 1 << 30)
            if limited:
                time.sleep(piece / rate if rate > 0 else self.shared.throttle.book(piece, time.monotonic()))
            sent = os.sendfile(self.connection.fileno(), fd, start, piece)
            if not sent:
                raise BrokenPipeError  # the file is shorter than the repository says
            start += sent
            self.line["sent"] += sent

    def _drain(self) -> None:
        """Wait until the client's side has what was sent."""
        waiting, until = True, time.monotonic() + 5
        while waiting and time.monotonic() < until:
            left = fcntl.ioctl(self.connection.fileno(), termios.TIOCOUTQ, bytes(4))
            waiting = struct.unpack("i", left)[0] > 0
            time.sleep(0.01)

    def _wait(self, rule: Rule) -> None:
        """Nothing, until the time is over, the faults are cleared, or the client has gone."""
        cleared, end = self.shared.faults.cleared, time.monotonic() + rule.given.get("seconds", 3600)
        while not cleared.is_set() and time.monotonic() < end:
            if select.select([self.connection], [], [], 0.1)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                raise BrokenPipeError

    def _control(self, action: str) -> None:
        """What the test says to the server; never logged, never faulty."""
        given = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        self.line = {"sent": 0}
        answer: Any = {}
        if action == "fault":
            self.shared.faults.add(Rule(**given))
        elif action == "clear":
            self.shared.faults.clear()
            self.shared.log.clear()
        elif action == "throttle":
            self.shared.throttle.rate = given["rate"]
        elif action == "page":
            self.shared.page = given["size"]
        elif action == "requests":
            answer = self.shared.log.lines()
        self._json(answer)

    def _json(self, content: Any, headers: dict[str, str] | None = None) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._head(status, {"Content-Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.wfile.write(body)
            self.line["sent"] += len(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.line["status"] = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def main() -> None:
    """Serve a directory."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub.server")
    parser.add_argument("root", type=Path)
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--name", default="127.0.0.1", help="how clients call this machine")
    parser.add_argument("--cdn-name", default="localhost", help="how the redirects call it")
    args = parser.parse_args()
    shared = Shared(args.root)
    hub, cdn = (Server((args.bind, port), host, shared) for port, host in ((args.port, "hub"), (0, "cdn")))
    shared.endpoint = f"http://{args.name}:{hub.server_address[1]}"
    shared.cdn = f"http://{args.cdn_name}:{cdn.server_address[1]}"
    for server in (hub, cdn):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{shared.endpoint}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
