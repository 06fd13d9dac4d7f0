"""Take secrets out of text before it is written or shown.

First by value (what we know to be secret, in the encodings it is likely to appear in), then by pattern (tokens that
look like the Hub's, bearer headers, keys in variables). Too much is taken rather than too little.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from urllib.parse import quote

MASK = "[redacted]"
_PATTERNS = (
    re.compile(r"\bhf_[A-Za-z0-9]{10,}"),
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{8,}"),
    # As a variable or argument, a header, and in JSON, where the quotes may be escaped and must stay as they are.
    re.compile(
        r"(?i)(\b[A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD)|\b[A-Z0-9_]*API[-_]KEY)"
        r"(=\\?[\"']?|\\?[\"']\s*:\s*\\?[\"'])([^\s\"',}\\]+)"
    ),
    re.compile(r"(?i)(\bapi[-_]key)(:\s*|\s+)([^\s\"',}\\]{4,})"),
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without the given secrets and without what looks like one."""
    for secret in secrets:
        if len(secret) >= 4:  # shorter ones would tear ordinary words apart
            raw = secret.encode()
            forms = {secret, base64.b64encode(raw).decode().rstrip("="), raw.hex(), quote(secret, safe="")}
            forms.add(json.dumps(secret)[1:-1])
            for form in sorted(forms, key=len, reverse=True):
                text = text.replace(form, MASK)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\1\2{MASK}" if pattern.groups else MASK, text)
    return text
