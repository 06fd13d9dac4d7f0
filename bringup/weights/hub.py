"""The Hub's HTTP routes, as far as weights need them, and what its refusals mean.

Routes and headers: https://huggingface.co/docs/hub/api and huggingface_hub's own requests (0.36.2, 2.4.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import requests

from bringup import __version__
from bringup.errors import BringupError, TargetUnavailable, UsageError
from bringup.lock import LockedFile, LockedModel

CONNECT, READ = 10.0, 30.0  # seconds; READ is between two bytes
RETRY = (408, 425, 429, 500, 502, 503, 504)


class Hub:
    """One hub: `endpoint` without a slash at its end; `token` goes to that host only.

    Every method raises UsageError for what trying again does not mend (no access, no such thing), and
    TargetUnavailable for what it may; `id` says which.
    """

    def __init__(self, endpoint: str, token: str | None = None) -> None:
        self.endpoint = endpoint
        self._session = requests.Session()
        self._session.trust_env = True  # proxies and CA bundles as everywhere
        self._session.headers["user-agent"] = f"bringup/{__version__}"
        self._session.auth = _NoNetrc()
        if token:
            self._session.headers["authorization"] = f"Bearer {token}"

    def url(self, model: LockedModel, file: LockedFile) -> str:
        """Where one file lies, at the locked commit."""
        return f"{self.endpoint}/{model.repo}/resolve/{model.revision}/{quote(file.path)}"

    def head(self, url: str) -> requests.Response:
        """What the Hub says about a file, without following the redirect to where its bytes are."""
        return self._ask("HEAD", url, headers={"accept-encoding": "identity"}, allow_redirects=False)

    def get(self, url: str, *, stream: bool = False, headers: Mapping[str, str] | None = None) -> requests.Response:
        """GET, following redirects; the token is not sent to another host."""
        return self._ask("GET", url, stream=stream, headers={"accept-encoding": "identity", **(headers or {})})

    def json(self, path: str) -> tuple[Any, Mapping[str, str]]:
        """An API answer (`path` begins with a slash) and its headers."""
        answer = self._ask("GET", self.endpoint + path)
        try:
            return answer.json(), answer.headers
        except ValueError as e:
            raise TargetUnavailable(
                f"{self.endpoint}{path} answers what is no JSON", hint=_MIRROR, id="hub-unavailable"
            ) from e

    def _ask(self, method: str, url: str, **given: Any) -> requests.Response:
        try:
            answer = self._session.request(method, url, timeout=(CONNECT, READ), **given)
        except requests.RequestException as e:
            raise TargetUnavailable(
                f"{url} cannot be reached: {_reason(e)}", hint="check the network, a proxy, HF_ENDPOINT",
                id="hub-unavailable",
            ) from e  # fmt: skip
        if answer.status_code >= 400:
            with answer:
                raise refusal(answer.status_code, answer.headers, url)
        return answer


class _NoNetrc(requests.auth.AuthBase):
    """Keeps requests from replacing our token by an entry of ~/.netrc."""

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        return r


_MIRROR = "is HF_ENDPOINT a model hub?"
_TOKEN = "give a token that may read it: --hf-token-file FILE or HF_TOKEN"


def refusal(status: int, headers: Mapping[str, str], url: str) -> BringupError:
    """What an error status of the Hub means.

    A repository that does not exist and one that is private look alike without a token: the Hub answers 401 for both.
    """
    code = headers.get("X-Error-Code", "")
    said = f"{url}: HTTP {status}" + (f" {code}" if code else "")
    if code == "GatedRepo" or (status == 403 and not code):
        return UsageError(
            f"{said}: access to this model is restricted",
            hint="accept its licence on the Hub's page of the model, then " + _TOKEN, id="hub-gated",
        )  # fmt: skip
    if code == "RevisionNotFound":
        return UsageError(f"{said}: there is no such commit", hint="pin the model again: bringup lock MODEL",
                          id="hub-revision-not-found")  # fmt: skip
    if code == "EntryNotFound":
        return UsageError(f"{said}: the commit has no such file", hint="pin the model again: bringup lock MODEL",
                          id="hub-file-not-found")  # fmt: skip
    if code == "RepoNotFound" or status == 404:
        return UsageError(f"{said}: there is no such repository, or it is private", hint=f"check the name; {_TOKEN}",
                          id="hub-repo-not-found")  # fmt: skip
    if status in (401, 403):
        return UsageError(f"{said}: the Hub wants a token, or refuses this one", hint=_TOKEN, id="hub-unauthorized")
    if status == 429:
        return TargetUnavailable(f"{said}: too many requests", hint="wait, or give a token: it raises the limit",
                                 id="hub-rate-limited")  # fmt: skip
    return TargetUnavailable(said, hint="try again later; status.huggingface.co tells of outages", id="hub-unavailable")


def _reason(error: requests.RequestException) -> str:
    """The innermost cause, which is the one that says something."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    return f"{type(cause).__name__}: {cause}"
