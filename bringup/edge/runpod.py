"""The only door to RunPod's REST API, version 2: templates, pods, the price list.

Over `requests` and not over RunPod's own package: that one speaks GraphQL, which is being retired, for pods and
templates, and brings a web server and a cloud SDK along. The key goes into one header and nowhere else.
"""

from __future__ import annotations

import contextlib
import email.utils
import itertools
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from bringup.errors import Exit, TargetUnavailable, UsageError
from bringup.redact import redact

if TYPE_CHECKING:
    import requests

API = "https://api.runpod.io"
TIMEOUT = 30.0  # seconds of one request
WAIT = 30.0  # seconds; no Retry-After is obeyed for longer
MAX_BODY = 8 * 2**20  # bytes
LOOKS = (0.5, 1.0, 2.0)  # seconds before each look for a pod whose creation got no answer
SETTLED = (400, 401, 402, 403, 404, 409, 422, 429)  # refusals: nothing was created
_TRANSIENT = (429, 500, 502, 503, 504)
_KEY_HINT = "make a key in RunPod's console (Settings, API keys) and put it into RUNPOD_API_KEY or a file of mode 0600"
_MEANINGS: dict[int, tuple[Exit, str, str]] = {
    400: (
        Exit.TARGET_UNAVAILABLE, "a rule is broken or there is no capacity; the API does not say which",
        "try another --gpu-type, --cloud or time; if it is no capacity question, compare --dry-run with the detail",
    ),
    401: (Exit.USAGE, "the key is not known to RunPod", _KEY_HINT),
    402: (Exit.TARGET_UNAVAILABLE, "the account has not enough credit", "add credit in RunPod's console"),
    403: (Exit.USAGE, "the key may not do this", "give the key the permission in RunPod's console, or use another"),
    404: (Exit.TARGET_UNAVAILABLE, "RunPod has no such thing", "`bringup runpod ls` shows what there is"),
    409: (Exit.TARGET_UNAVAILABLE, "the pod's status does not allow it", "wait a moment and try again"),
    422: (Exit.USAGE, "RunPod does not take such a request", "correct the settings; --dry-run shows what is sent"),
    429: (Exit.TARGET_UNAVAILABLE, "too many requests", "wait a minute and try again"),
}  # fmt: skip


class ApiError(TargetUnavailable):
    """RunPod did not do what was asked; a fault of the key or the request has its own exit code.

    `status`: of its answer; None where no usable answer came. `after`: seconds that it asks to wait.
    """

    after: float | None = None

    def __init__(self, message: str, status: int | None, exit_code: Exit, hint: str) -> None:
        super().__init__(message, hint=hint, id=f"runpod-{status or 'no-answer'}")
        self.status = status
        self.exit_code = exit_code

    @property
    def settled(self) -> bool:
        """Whether it is certain that nothing was done."""
        return self.status in SETTLED


def fault(status: int | None, what: str, detail: str) -> ApiError:
    """The error of an answer: what was wanted, what RunPod says, what to do; None: there was no usable answer."""
    if status is None:
        exit_code, meaning, hint = (
            Exit.TARGET_UNAVAILABLE, "no usable answer", "look at the network and at RunPod's status page, then repeat",
        )  # fmt: skip
    else:
        exit_code, meaning, hint = _MEANINGS.get(
            status, (Exit.TARGET_UNAVAILABLE, "RunPod is in trouble", "look at RunPod's status page, and try again")
        )
        meaning = f"HTTP {status}: {meaning}"
    return ApiError(f"RunPod: cannot {what}: {detail} ({meaning})", status, exit_code, hint)


class RunPod:
    """The API with one key.

    `patience`: seconds that a call which may be repeated is tried again on 429, 5xx and no answer.

    Raises (every method): ApiError, with the exit code that its status has.
    """

    def __init__(
        self, key: str, api: str = API, patience: float = 60.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        parts = urlsplit(api)
        if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise UsageError("the key is sent over https only", hint=f"give an address like {API}")
        self._api, self._key, self._patience, self._sleep = api.rstrip("/"), key, patience, sleep

    def pods(self) -> list[dict[str, Any]]:
        """All pods of the account that belong to no cluster."""
        return self._list("/v2/pods", "pods", "list the pods")

    def pod(self, pod_id: str) -> dict[str, Any]:
        """One pod; 404 when it is gone."""
        return self._object("GET", f"/v2/pods/{quote(pod_id, safe='')}", f"look at the pod {pod_id}")

    def create_pod(self, body: dict[str, Any]) -> dict[str, Any]:
        """Create a pod, once. Without a clear answer it is looked for by its name, which must be unique, and the create
        is not sent again, because the first one may only be slow; it is after a 429, when there is no such pod.

        Raises:
            ApiError: `settled` says whether a pod may exist all the same.
        """
        what = f"create the pod {body['name']}"
        deadline = time.monotonic() + self._patience
        while True:
            try:
                made = self._object("POST", "/v2/pods", what, body)
                if isinstance(made.get("id"), str) and made["id"]:
                    return made
                raise fault(None, what, "a pod without an id")
            except ApiError as e:
                wait = 1.0 if e.after is None else min(e.after, WAIT)
                if e.settled and (e.status != 429 or time.monotonic() + wait >= deadline):
                    raise
                if found := self._looked_for(body["name"], (wait,) if e.settled else self.patient(LOOKS)):
                    return found
                if not e.settled:
                    raise

    def patient(self, pauses: tuple[float, ...]) -> tuple[float, ...]:
        """Those of several pauses, in seconds, that there is patience for; one at least."""
        ends = itertools.accumulate(pauses)
        return pauses[:1] + tuple(p for p, end in zip(pauses, ends, strict=True) if end <= self._patience)[1:]

    def _looked_for(self, name: str, pauses: tuple[float, ...]) -> dict[str, Any] | None:
        for pause in pauses:
            self._sleep(pause)
            with contextlib.suppress(ApiError):
                if found := self.named(name):
                    return found[0]
        return None

    def named(self, name: str) -> list[dict[str, Any]]:
        """The pods of that name, but for those that are deleted already."""
        return [p for p in self.pods() if p.get("name") == name and p.get("status") != "TERMINATED"]

    def stop_pod(self, pod_id: str) -> None:
        """Stop a pod; its volume goes on costing."""
        path = f"/v2/pods/{quote(pod_id, safe='')}/action"
        self._call("POST", path, f"stop the pod {pod_id}", {"action": "stop"})

    def delete_pod(self, pod_id: str) -> None:
        """Delete a pod for good; one that is gone already is no error."""
        try:
            self._call("DELETE", f"/v2/pods/{quote(pod_id, safe='')}", f"delete the pod {pod_id}")
        except ApiError as e:
            if e.status != 404:
                raise

    def logs(self, pod_id: str, tail: int, seconds: float) -> list[tuple[str, str]]:
        """The last lines of a pod's console with the time of each as RunPod writes it, as far as they come within so
        many seconds; the stream never ends."""
        import requests

        path = f"/v2/pods/{quote(pod_id, safe='')}/logs?source=container&tail={tail}"
        lines: list[tuple[str, str]] = []
        started = time.monotonic()
        with contextlib.suppress(requests.RequestException), self._send("GET", path, None, seconds, stream=True) as r:
            for raw in r.iter_lines() if r.status_code == 200 else ():
                text = raw.decode("utf-8", "replace")
                if text.startswith("data:"):
                    with contextlib.suppress(ValueError, KeyError, TypeError):
                        said = json.loads(text[5:])
                        lines.append((str(said.get("ts") or "-"), str(said["line"])))
                if len(lines) >= tail or time.monotonic() - started > seconds:
                    break
        return lines

    def gpus(self) -> dict[str, dict[str, Any]]:
        """The GPU types by id: memory in GB, price in USD an hour for one on each cloud."""
        return {str(g.get("id")): g for g in self._list("/v2/catalog/gpus", "gpus", "read the price list")}

    def templates(self) -> list[dict[str, Any]]:
        """The account's templates."""
        return self._list("/v2/templates", "templates", "list the templates")

    def template(self, template_id: str) -> dict[str, Any]:
        """One template."""
        path = f"/v2/templates/{quote(template_id, safe='')}"
        return self._object("GET", path, f"read the template {template_id}")

    def create_template(self, body: dict[str, Any]) -> dict[str, Any]:
        """Create a template, once."""
        return self._object("POST", "/v2/templates", f"create the template {body['name']}", body)

    def update_template(self, template_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Give a template these values; what is not named stays."""
        path = f"/v2/templates/{quote(template_id, safe='')}"
        return self._object("PATCH", path, f"update the template {template_id}", body)

    def delete_template(self, template_id: str) -> None:
        """Delete a template."""
        self._call("DELETE", f"/v2/templates/{quote(template_id, safe='')}", f"delete the template {template_id}")

    def _list(self, path: str, key: str, what: str) -> list[dict[str, Any]]:
        found = self._object("GET", path, what).get(key)
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise fault(None, what, f"an answer without a list of {key}")
        return found

    def _object(self, method: str, path: str, what: str, body: Any = None) -> dict[str, Any]:
        data = self._call(method, path, what, body)
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise fault(None, what, f"not JSON: {self._clean(data[:80].decode('utf-8', 'replace'))!r}")
        return value

    def _call(self, method: str, path: str, what: str, body: Any = None) -> bytes:
        """The body of a good answer; all but POST are tried again while there is patience."""
        deadline = time.monotonic() + (self._patience if method != "POST" else 0.0)
        pause = 0.5
        while True:
            status, data, after = self._once(method, path, body)
            if status is not None and 200 <= status < 300:
                return data
            error = fault(status, what, self._clean(_detail(data)))
            wait = min(after if after is not None else pause, WAIT)
            error.after = after
            if (status is not None and status not in _TRANSIENT) or time.monotonic() + wait >= deadline:
                raise error
            self._sleep(wait)
            pause *= 2

    def _once(self, method: str, path: str, body: Any) -> tuple[int | None, bytes, float | None]:
        """Status, body, and the seconds of Retry-After; without a status the body says why there was no answer."""
        import requests

        started = time.monotonic()
        try:
            with self._send(method, path, body, TIMEOUT, stream=True) as response:
                data = bytearray()
                for chunk in response.iter_content(None):
                    data += chunk
                    if len(data) > MAX_BODY or time.monotonic() - started > TIMEOUT:
                        return None, b"the answer is too long or too slow", None
                return response.status_code, bytes(data), _seconds(response.headers.get("Retry-After"))
        except (requests.RequestException, OSError) as e:
            return None, type(e).__name__.encode(), None  # its text may hold the whole request

    def _send(self, method: str, path: str, body: Any, timeout: float, *, stream: bool) -> requests.Response:
        import requests

        return requests.request(
            method, self._api + path, json=body, timeout=timeout, stream=stream, allow_redirects=False,
            auth=self._authorize,
        )  # fmt: skip

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """As an auth object, so that a .netrc cannot replace it."""
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _clean(self, text: str) -> str:
        return redact(text, [self._key])


def _detail(data: bytes) -> str:
    """What RFC 9457's fields say, on one line; else the start of the body."""
    text = data[:300].decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        problem = json.loads(data)
        if isinstance(problem, dict):
            errors = problem.get("errors")
            parts = [problem.get("detail") or problem.get("title"), *(errors if isinstance(errors, list) else [])]
            text = "; ".join(str(part) for part in parts if part)
    return " ".join(text.split())[:300] or "no reason given"


def _seconds(header: str | None) -> float | None:
    """Retry-After, which is a number of seconds or a date."""
    if not header:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(header))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    return None
