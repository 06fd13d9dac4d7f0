"""Take secrets out of text before it is written or shown.

First by value (what we know to be secret, in the encodings it is likely to appear in), then by pattern (tokens that
look like the Hub's, bearer headers, keys in variables). Too much is taken rather than too little.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

MASK = "[redacted]"
_FLAG = r"--[\w-]*(?:token|secret|password|passphrase|api[-_]key)"
_PATTERNS = (
    re.compile(r"\bhf_[A-Za-z0-9]{10,}"),
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{8,}"),
    # As a variable or argument, a header, and in JSON, where the quotes may be escaped and must stay as they are.
    # What names a secret of RunPod's account is none.
    re.compile(
        r"(?i)(\b[A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD)|\b[A-Z0-9_]*API[-_]KEY)"
        r"(=\\?[\"']?|\\?[\"']\s*:\s*\\?[\"'])(?!\{\{ RUNPOD_SECRET_\w+ \}\})([^\s\"',}\\]+)"
    ),
    re.compile(r"(?i)(\bapi[-_]key)(:\s*|\s+)([^\s\"',}\\]{4,})"),
    re.compile(r"(://[^/\s:@\"']*)(:)([^/\s@\"']+)(?=@)"),  # an address with a password in it
    # A flag and its value as a shell's line, and as neighbours in a list of JSON or Python.
    re.compile(rf"(?i)({_FLAG})(\s+|\\?[\"'],\s*\\?[\"'])(?!-)([^\s\"',}}\\]+)"),
)
# Variables that steer the server; of any other only the name is shown: an image's variables may hold anything.
_STEERS = re.compile(
    r"(BRINGUP|VLLM|HF|TRANSFORMERS|TOKENIZERS|TORCH\w*|TRITON|FLASHINFER|CUDA|NVIDIA|NV|NCCL|GLOO|OMP|MKL|KMP|LD|LC)_\w+"
    r"|PYTHON\w*|PATH|HOME|USER|LANG|TZ|DO_NOT_TRACK"
)
_SECRET_NAME = re.compile(r"KEY|TOKEN(?!I)|SECRET|PASS|CREDENTIAL|AUTH")


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without the given secrets and without what looks like one."""
    for secret in secrets:
        if len(secret) >= 4:  # shorter ones would tear ordinary words apart
            raw = secret.encode()
            forms = {base64.b64encode(raw).decode().rstrip("="), raw.hex(), quote(secret, safe="")}
            for spelled in (secret, repr(secret)[1:-1], shlex.quote(secret).strip("'")):
                forms |= {spelled, *(json.dumps(spelled, ensure_ascii=ascii_)[1:-1] for ascii_ in (True, False))}
            for form in sorted(forms, key=len, reverse=True):
                text = text.replace(form, MASK)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\1\2{MASK}" if pattern.groups else MASK, text)
    return text


def secret_arguments(argv: Sequence[str]) -> list[str]:
    """The values of arguments whose flag says that they are secret; what is a number or a word of JSON is left to the
    patterns, for it stands elsewhere too."""
    found: list[str] = []
    secret = False
    for word in argv:
        flag, equals, value = word.partition("=")
        if word.startswith("-"):
            secret = re.fullmatch(_FLAG, flag, re.IGNORECASE) is not None
            found += [value] if secret and equals else []
        elif secret:  # a flag may take several
            found.append(word)
    return [value for value in found if not re.fullmatch(r"(?i)true|false|null|none|auto|[\d.]*", value)]


def shown_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """A container's variables, by name; the value only of those that steer the server and are no secrets."""
    return {
        name: value
        if not value or (_STEERS.fullmatch(name) and (name.endswith("_FILE") or not _SECRET_NAME.search(name)))
        else MASK
        for name, value in sorted(variables.items())
    }
