"""`python -m tests.runpod.server`: an API like RunPod's, with pods that are stubs behind its proxy, and with faults.

It holds bodies against the schema in tests/data/runpod, and answers as the public reference says. Times in seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import jsonschema

from tests.runpod import GPUS, KEY, ROOT
from tests.runpod.sshd import Sshd
from tests.stub.deep_lies import LIARS
from tests.stub.server import Handler, Quiet, Sampled

SCHEMA = json.loads((ROOT / "tests/data/runpod/schema.json").read_text("utf-8"))
FAULTS = {
    "status": "answer `code`, with `retry_after` and `detail`, and do nothing",
    "garbage": "do nothing, and answer 200 with a page of HTML",
    "drop": "do nothing, and hang up",
    "done-but-drop": "do it, and hang up without an answer",
    "done-late": "hang up, and do it `seconds` later",
    "slow": "do it, and answer `seconds` later",
}
Answer = tuple[int, Any]


@dataclass(frozen=True)
class Manner:
    """How a pod behaves. Seconds from its creation: when it is STARTING, RUNNING, and really serves; when it dies
    (EXITED) or is lost. `full`: GPU types without capacity. `lie`: of its server; `direct_lie`: only directly.
    `ssh`: see `tests.runpod.sshd.FAULTS`; `unrouted`: the proxy never reaches it. `sshd` and `log`: the port of another
    sshd and what its log says, for a pod that is a container."""

    starting: float = 0.1
    running: float = 0.2
    serving: float = 0.4
    dies: float | None = None
    lost: float | None = None
    cost: float = 0.43
    full: tuple[str, ...] = ()
    lie: str = ""
    direct_lie: str = ""
    ssh: str = ""
    unrouted: bool = False
    sshd: int = 0
    log: tuple[str, ...] = ()


@dataclass
class Pod:
    """A pod, and the stub that it becomes."""

    id: str
    body: dict[str, Any]
    manner: Manner
    born: float = field(default_factory=time.monotonic)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat())
    _server: Quiet | None = None

    def __post_init__(self) -> None:
        self.stub, self.direct = self._stub(self.manner.lie), self._stub(self.manner.direct_lie or self.manner.lie)
        key = self.body["env"].get("PUBLIC_KEY")
        self.sshd = Sshd(key, self.manner.ssh, self._port) if key and "22/tcp" in self.body["ports"] else None

    def _stub(self, lie: str) -> Sampled:
        return Sampled([LIARS[lie].tell] if lie else [], self.body["env"].get("VLLM_API_KEY"))

    def _port(self) -> int | None:
        """Of its server, as one in the pod reaches it."""
        if not self.serves:
            return None
        if self._server is None:
            self._server = Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"stub": self.direct}))
            threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return int(self._server.server_address[1])

    @property
    def age(self) -> float:
        """Seconds."""
        return time.monotonic() - self.born

    @property
    def status(self) -> str:
        """As the API says it."""
        m = self.manner
        if m.dies is not None and self.age > m.dies:
            return "EXITED"
        if self.age > m.running:
            return "RUNNING"
        return "STARTING" if self.age > m.starting else "PROVISIONING"

    @property
    def serves(self) -> bool:
        """Whether there is a server."""
        return self.status == "RUNNING" and self.age > self.manner.serving

    def shown(self) -> dict[str, Any]:
        """As GET gives it."""
        body = {k: v for k, v in self.body.items() if k not in ("startSsh", "startJupyter")}
        direct = runtime = None
        if self.status == "RUNNING":
            runtime = {"uptime": int(self.age - self.manner.running), "gpus": [], "ports": []}
            if port := self.manner.sshd or (self.sshd and self.sshd.port):
                where = {"host": "127.0.0.1", "port": port}
                direct = where | {"username": "root", "command": f"ssh root@127.0.0.1 -p {port}"}
        return body | {
            "id": self.id, "status": self.status, "cost": self.manner.cost, "createdAt": self.created,
            "ssh": {"proxy": None, "direct": direct}, "actions": ["stop", "terminate"], "runtime": runtime,
        }  # fmt: skip

    def log(self) -> str:
        """Its console, as the API streams it."""
        lines = self.manner.log or (f"loading, with {self.stub.key}", *(self.sshd.lines if self.sshd else []))
        said = [json.dumps({"ts": self.created, "source": "container", "line": line}) for line in lines]
        return "".join(f"id: {n}\ndata: {line}\n\n" for n, line in enumerate(said))


class Account:
    """All that the API knows."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.clear()

    def clear(self) -> None:
        """Nothing."""
        self.pods: dict[str, Pod] = {}
        self.templates: dict[str, dict[str, Any]] = {}
        self.rules: list[dict[str, Any]] = []
        self.log: list[str] = []
        self.manner = Manner()
        self.number = getattr(self, "number", 0)

    def rule(self, method: str, path: str) -> dict[str, Any]:
        """The first rule that fits and is not used up."""
        with self.lock:
            for rule in self.rules:
                if rule["method"] in ("*", method) and re.fullmatch(rule["path"], path) and rule["times"]:
                    rule["times"] -= 1
                    return rule
        return {"kind": "", "given": {}}

    def alive(self) -> dict[str, Pod]:
        """Without those that were lost."""
        with self.lock:
            self.pods = {i: p for i, p in self.pods.items() if p.manner.lost is None or p.age < p.manner.lost}
            return dict(self.pods)

    def do(self, method: str, path: str, body: Any) -> Answer:
        """What the API does."""
        with self.lock:
            kind, _, rest = path.removeprefix("/v2/").partition("/")
            if kind == "pods":
                return self._pods(method, rest, body)
            if kind == "templates":
                return self._templates(method, rest, body)
            if path == "/v2/catalog/gpus":
                price = {"secure": 0.43, "community": 0.2}
                rows = [
                    {"id": g, "name": g, "memory": 24, "secure": True, "community": True, "price": price} for g in GPUS
                ]
                return 200, {"gpus": rows}
        return _problem(404, "no such path")

    def _pods(self, method: str, rest: str, body: Any) -> Answer:
        pods = self.alive()
        if not rest:
            return self._create(body) if method == "POST" else (200, {"pods": [p.shown() for p in pods.values()]})
        pod = pods.get(rest.partition("/")[0])
        if pod is None:
            return _problem(404, "pod not found")
        if rest.endswith("/logs"):
            return 200, pod.log()
        if method == "DELETE":
            del self.pods[pod.id]
            return 204, None
        return (204, None) if method == "POST" else (200, pod.shown())

    def _create(self, body: Any) -> Answer:
        if wrong := _invalid("createPod", body):
            return wrong
        if body["gpu"]["id"] in self.manner.full:
            return _problem(400, "there are no instances available that fit this request")
        self.number += 1
        pod = self.pods[f"pod{self.number:05}"] = Pod(f"pod{self.number:05}", body, self.manner)
        return 201, pod.shown()

    def _templates(self, method: str, rest: str, body: Any) -> Answer:
        if method in ("POST", "PATCH") and (wrong := _invalid("template" if rest else "createTemplate", body)):
            return wrong
        if method == "POST":
            self.number += 1
            made = self.templates[f"tpl{self.number}"] = body | {"id": f"tpl{self.number}"}
            return 201, made
        if not rest:
            return 200, {"templates": list(self.templates.values())}
        if rest not in self.templates:
            return _problem(404, "template not found")
        if method == "PATCH":
            self.templates[rest] |= body
        return (204, self.templates.pop(rest)) if method == "DELETE" else (200, self.templates[rest])


def _problem(status: int, detail: str, errors: tuple[str, ...] = ()) -> Answer:
    return status, {"title": "Error", "status": status, "detail": detail, "errors": list(errors)}


def _invalid(kind: str, body: Any) -> Answer | None:
    found = jsonschema.Draft202012Validator(SCHEMA | {"$ref": f"#/$defs/{kind}"}).iter_errors(body)
    errors = tuple(f"{e.json_path}: {e.message}" for e in found)
    return _problem(422, "Request validation failed.", errors) if errors else None


ACCOUNT = Account()


class Api(Handler):
    """One connection, to the API, to a pod behind the proxy, or to the test's controls."""

    def do_PATCH(self) -> None:  # noqa: N802 - named by its base
        self._do()

    def do_DELETE(self) -> None:  # noqa: N802
        self._do()

    def _do(self) -> None:
        if self.path.startswith("/proxy/"):
            self._proxied()
            return
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(data or b"{}")
        with suppress(OSError):
            if self.path.startswith("/_control/"):
                self._answer(200, json.dumps(_control(self.path.rpartition("/")[2], body)))
            else:
                self._api(self.path.partition("?")[0], body)

    def _proxied(self) -> None:
        pod_id, _, rest = self.path.removeprefix("/proxy/").partition("/")
        pod = ACCOUNT.alive().get(pod_id.removesuffix("-8000"))
        if pod is None or not pod.serves or pod.manner.unrouted:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(404 if pod is None else 502, "no route")
            return
        self.stub, self.path = pod.stub, f"/{rest}"
        super()._do()

    def _api(self, path: str, body: Any) -> None:
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self._answer(*_problem(401, "invalid bearer token"))
            return
        rule = ACCOUNT.rule(self.command, path)
        kind, given = rule["kind"], rule["given"]
        if kind == "done-late":
            threading.Timer(given["seconds"], ACCOUNT.do, (self.command, path, body)).start()
        if kind in ("drop", "done-late"):
            self._hang_up(path)
            return
        if kind == "status":
            status, value = _problem(given["code"], given.get("detail", "so it is"))
        elif kind == "garbage":
            status, value = 200, "<html>nothing to see</html>"
        else:
            status, value = ACCOUNT.do(self.command, path, body)
        if kind == "done-but-drop":
            self._hang_up(path)
            return
        if kind == "slow":
            time.sleep(given["seconds"])
        self._answer(status, value, {"Retry-After": str(given["retry_after"])} if "retry_after" in given else {})

    def _hang_up(self, path: str) -> None:
        ACCOUNT.log.append(f"{self.command} {path} -")
        self.close_connection = True

    def _answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        if self.path.startswith("/v2/"):
            ACCOUNT.log.append(f"{self.command} {self.path.partition('?')[0]} {status}")
        text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
        self.send_response(status)
        for name, text_ in {"Content-Length": str(len(text.encode())), **(headers or {})}.items():
            self.send_header(name, text_)
        self.end_headers()
        self.wfile.write(text.encode())


def _control(action: str, given: dict[str, Any]) -> Any:
    if action == "clear":
        ACCOUNT.clear()
    elif action == "mend":
        ACCOUNT.rules = []
    elif action == "fault":
        assert given["kind"] in FAULTS, given
        ACCOUNT.rules.append(given)
    elif action == "manner":
        ACCOUNT.manner = dataclasses.replace(Manner(), **given)
    elif action == "pods":
        return [p.shown() for p in ACCOUNT.alive().values()]
    elif action == "requests":
        return list(ACCOUNT.log)
    return None


def main() -> None:
    """Serve until standard input ends."""
    server = Quiet(("127.0.0.1", 0), cast("type[Handler]", Api))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    sys.stdout.write(f"http://127.0.0.1:{server.server_address[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
