"""Keys of customers (SSE-C): S3 decrypts with a key that comes with every request, and keeps none.

Its job: read the key from its file, and say where it must not be sent. Must not know requests. The key is never part of
an error, a log line or a representation.
"""

import base64
import ipaddress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lazyfs.errors import SetupError

KEY_SIZE = 32
"""Bytes: AES-256, the only algorithm there is."""


def read_key(path: str) -> bytes:
    """The key in a file: its 32 bytes, or these in base64. `SetupError` if the file has none."""
    try:
        with Path(path).open("rb") as file:
            found = file.read(1000)
    except OSError as error:
        raise SetupError(f"cannot read the key of --sse-customer-key-file {path}: {error.strerror}") from None
    if len(found) != KEY_SIZE:
        try:
            found = base64.b64decode(found.strip(), validate=True)
        except ValueError:
            found = b""
    if len(found) != KEY_SIZE:
        raise SetupError(
            f"--sse-customer-key-file {path} holds no key: write 32 bytes, or their base64 (openssl rand -base64 32)"
        )
    return found


def open_way(endpoint: str) -> str:
    """Why a key must not be sent to this endpoint, in one sentence; empty if it may."""
    parts = urlsplit(endpoint)
    if parts.scheme == "https" or _is_here(parts.hostname or ""):
        return ""
    return f"the key of --sse-customer-key-file is sent over https only, not to {parts.scheme}://{parts.hostname}"


def sse_arguments(key: bytes) -> dict[str, Any]:
    """What a GET or HEAD says of it, as botocore wants it."""
    return {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": key}


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
