"""What a server is told at its start."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from lace.lattice.config import check_threads

WAITING_PER_RUNNING = 4
"""Requests that may wait, for each one that may run; one more is refused with 429."""
MAX_BODY_BYTES = 1 << 20
"""Larger request bodies are refused with 413."""
HEAD_SECONDS = 10.0
"""A connection whose next request has not told its headers by then is closed."""
TAKE_SECONDS = 60.0
"""A client that takes nothing of a waiting answer for so long counts as gone."""
BODY_SECONDS = 30.0
"""A body that is not complete by then is refused with 408, so that slow senders hold nothing."""
MAX_CONNECTIONS = 900
"""One more is told 503, and closed; a system that allows 1,024 open files would leave it without an answer."""
FAILURES_IN_A_ROW = 3
"""Steps that fail one after the other before `/health` says so: they are of more than one request's making."""
GRACE_SECONDS = 30
"""Running requests have this long to finish after the server was told to stop; then they are refused the rest."""


@dataclass(frozen=True)
class ServerSettings:
    """Settings of `lace serve`.

    Raises:
        ValueError: one line that names what is wrong.
    """

    model: str
    """Shipped name, hub id or directory; also the name under which clients ask for it."""
    host: str = "127.0.0.1"
    port: int = 8000
    threads: int = 8
    """N of a request that does not say."""
    max_concurrent: int = 32
    """Lattices that decode at the same time."""
    cache_tokens: int = 65_536
    """Bound of the caches, see `Scheduler`."""
    api_keys: frozenset[str] = frozenset()
    """One of them must come with every request; none: nobody is asked."""
    without_key: bool = False
    """Serve a public address although nobody is asked for a key."""

    def __post_init__(self) -> None:
        if not self.host:
            raise ValueError("host must be an address or a name, not empty")
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port must be between 0 (any free one) and 65535, not {self.port}")
        check_threads(self.threads)
        if self.max_concurrent < 1:
            raise ValueError(f"max-concurrent must be at least 1, not {self.max_concurrent}")
        if self.cache_tokens < 1:
            raise ValueError(f"cache-tokens must be at least 1, not {self.cache_tokens}")
        if not self.api_keys and not self.without_key and not is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached from other machines: give --api-key-file, or --without-key if anybody may"
            )


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach the address; names other than `localhost` count as public."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_api_keys(path: Path) -> frozenset[str]:
    """The keys in a file, one a line; empty lines and lines that begin with # do not count.

    Raises:
        ValueError: if there is none, or one that cannot travel in a header.
        OSError: if the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from None
    lines = [line.strip() for line in text.splitlines()]
    keys = frozenset(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ValueError(f"{path} holds no API key; write one a line")
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ValueError(f"{path} holds an API key with characters other than printable ASCII without spaces")
    return keys
