"""Keys and passwords are cut out of every text that is printed or stored."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from urllib.parse import quote

_SECRET_NAME = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:_|$)")
_SHORTEST = 8
"""Characters; shorter values of environment variables ("true", "0") are no secrets."""
_USER_IN_URL = re.compile(r"(?<=://)[^\s/@]{1,512}(?=@)")
_AUTHORIZATION = re.compile(r"\b(Bearer|Basic) {1,4}(?=[a-zA-Z_.~+/=-]{0,64}\d)[\w.~+/=-]{16,}")


def without_secrets(text: str, *secrets: str) -> str:
    """Cut secrets out of a text, also where they are escaped for JSON or an address, or encoded as base64.

    Secrets are the given ones, the values of environment variables that are named like secrets (`OPENAI_API_KEY`, `HF_TOKEN`,
    `WANDB_API_KEY`), the user name and password in an address, and tokens after "Bearer" and "Basic".

    Args:
        text: text of any origin.
        secrets: further secrets, of any length; empty ones are ignored.

    Example:
        >>> without_secrets("no access with sk-1234 to https://me:mine@host/v1", "sk-1234")
        'no access with (key) to https://(key)@host/v1'
    """
    for form in sorted(_forms(secrets), key=len, reverse=True):
        text = text.replace(form, "(key)")
    text = _USER_IN_URL.sub("(key)", text)
    return _AUTHORIZATION.sub(r"\1 (key)", text)


def _forms(secrets: tuple[str, ...]) -> set[str]:
    environment = (
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name.upper()) and len(value.strip()) >= _SHORTEST
    )
    return {form for secret in (*secrets, *environment) for form in _spellings(secret) if form}


def _spellings(secret: str) -> Iterator[str]:
    # from the environment a secret may come with a line break, or with bytes that are not UTF-8
    stripped = secret.strip()
    yield from (secret if stripped else "", stripped, json.dumps(stripped)[1:-1], ascii(stripped)[1:-1])
    encoded = stripped.encode("utf-8", "surrogateescape")
    yield from (quote(encoded, safe=""), base64.b64encode(encoded).decode().rstrip("="))
