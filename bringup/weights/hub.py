"""The Hub's HTTP routes, as far as weights need them, and what its refusals mean.

Routes and headers: https://huggingface.co/docs/hub/api and huggingface_hub's own requests (0.36.2, 2.4.0).
"""

from __future__ import annotations

import email.utils
import os
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import requests

from bringup.errors import BringupError, TargetUnavailable, UsageError
from bringup.lock import LockedFile, LockedModel

CONNECT, READ = 10.0, 30.0  # seconds; READ is between two bytes
REDIRECTS = 5  # within the hub: a repository that was renamed, or the cache of small files
AGENT = "bringup"


class Hub:
    """One hub: `endpoint` without a slash at its end; `token` goes to that host only; `read`: patience between bytes.

    After an error, `retry_after` holds the seconds that the hub asked to wait for, if it did.

    Every method raises UsageError for what trying again does not mend (no access, no such thing), and
    TargetUnavailable for what it may; `id` says which.
    """

    def __init__(self, endpoint: str, token: str | None = None, read: float = READ) -> None:
        self.endpoint = endpoint
        self.retry_after: float | None = None
        self._read = read
        self._session = requests.Session()
        self._session.trust_env = True  # proxies and CA bundles as everywhere
        self._session.headers["user-agent"] = AGENT
        # The variable that hf_transfer and most programs read; requests has its own, which still wins.
        self._session.verify = os.environ.get("SSL_CERT_FILE") or True
        self._session.auth = _NoNetrc()
        if token:
            self._session.headers["authorization"] = f"Bearer {token}"

    def url(self, model: LockedModel, file: LockedFile) -> str:
        """Where one file lies, at the locked commit."""
        return f"{self.endpoint}/{model.repo}/resolve/{model.revision}/{quote(file.path)}"

    def head(self, url: str) -> requests.Response:
        """What the Hub says about a file; redirects are followed within the hub, not to where the bytes are."""
        for _ in range(REDIRECTS):
            answer = self._ask("HEAD", url, headers={"accept-encoding": "identity"}, allow_redirects=False)
            target = answer.headers.get("location", "")
            if not answer.is_redirect or urlsplit(target).netloc:
                break
            url = urljoin(url, target)
        return answer

    def get(self, url: str, *, stream: bool = False, headers: Mapping[str, str] | None = None) -> requests.Response:
        """GET, following redirects; the token is not sent to another host."""
        return self._ask("GET", url, stream=stream, headers={"accept-encoding": "identity", **(headers or {})})

    def _ask(self, method: str, url: str, **given: Any) -> requests.Response:
        try:
            answer = self._session.request(method, url, timeout=(min(CONNECT, self._read), self._read), **given)
        except (requests.RequestException, OSError, ValueError) as e:
            raise TargetUnavailable(
                f"{url} cannot be reached: {reason(e)}", hint="check the network, a proxy, HF_ENDPOINT",
                id="hub-unavailable",
            ) from e  # fmt: skip
        if answer.status_code >= 400:
            self.retry_after = wanted_pause(answer.headers)
            with answer:
                if answer.status_code in (401, 403, 404) and urlsplit(answer.url).netloc != urlsplit(url).netloc:
                    raise TargetUnavailable(
                        f"{url}: HTTP {answer.status_code} of {urlsplit(answer.url).hostname}, where the bytes are",
                        hint="try again: the hub signs such an address anew each time", id="hub-unavailable",
                    )  # fmt: skip
                raise refusal(answer.status_code, answer.headers, url)
        return answer


class _NoNetrc(requests.auth.AuthBase):
    """Keeps requests from replacing our token by an entry of ~/.netrc."""

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        return r


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
    if status == 416:
        return TargetUnavailable(f"{said}: it has no such bytes", hint="try again", id="hub-range-refused")
    return TargetUnavailable(said, hint="try again later; status.huggingface.co tells of outages", id="hub-unavailable")


def wanted_pause(headers: Mapping[str, str]) -> float | None:
    """Seconds that `Retry-After` asks for: it holds seconds or a date (RFC 9110, 10.2.3)."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def unsigned(text: str) -> str:
    """A text without the query of any address in it: that is where a CDN's signature stands."""
    return re.sub(r"(https?://[^\s?\"'<>]+)\?[^\s\"'<>)]*", r"\1", text)


def reason(error: BaseException) -> str:
    """The innermost cause, which is the one that says something."""
    cause = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    return unsigned(f"{type(cause).__name__}: {cause}")
