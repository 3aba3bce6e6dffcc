"""Pictures from the web: http and https, public addresses only, a size cap, every redirect checked anew.

The address that was checked is the one that is connected to, so a name that resolves differently the second time gains
nothing. Proxies of the environment are not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from faceclip.errors import ImageTooLargeError, UnreadableImageError

MAX_BYTES = 32 * 2**20
MAX_REDIRECTS = 5
TIMEOUT = 20.0  # seconds for a whole picture
_PORTS = {"http": 80, "https": 443}
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_url(source: Any) -> bool:
    """Whether a picture is given by an address on the web."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet: not to this machine, a private network or a multicast."""
    mapped = getattr(address, "ipv4_mapped", None)
    address = address if mapped is None else mapped
    return address.is_global and not address.is_multicast


def fetch_picture(
    url: str, *, name: str, max_bytes: int = MAX_BYTES, allowed: Callable[[Address], bool] = is_public
) -> bytes:
    """The bytes of a picture.

    Args:
        url: http or https.
        name: what messages call it.
        max_bytes: more is refused, while it arrives.
        allowed: which addresses may be connected to.

    Raises:
        UnreadableImageError: another scheme, an address that is not allowed, no answer, or an answer other than 200.
        ImageTooLargeError: more than `max_bytes`.
    """
    deadline = time.monotonic() + TIMEOUT
    for _ in range(MAX_REDIRECTS + 1):
        parts = _checked(url, name)
        try:
            connection = _connect(parts, name, allowed, deadline)
            try:
                path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("GET", path, headers={"User-Agent": "faceclip-makeup", "Accept": "image/*"})
                answer = connection.getresponse()
                if answer.status in (301, 302, 303, 307, 308):
                    url = urljoin(url, answer.getheader("Location") or "")
                    continue
                if answer.status != 200:
                    raise UnreadableImageError(f"{name}: {parts.hostname} answers {answer.status} {answer.reason}")
                return _read(answer, name, max_bytes, deadline)
            finally:
                connection.close()
        except (UnreadableImageError, ImageTooLargeError):
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UnreadableImageError(f"{name}: {parts.hostname} gives no picture: {error}") from error
    raise UnreadableImageError(f"{name}: more than {MAX_REDIRECTS} redirects; give the picture's own address")


def _checked(url: str, name: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UnreadableImageError(f"{name}: {url!r} is no address: {error}") from error
    if parts.scheme not in _PORTS or not parts.hostname or port == 0:
        raise UnreadableImageError(f"{name}: {url!r} is no http or https address of a picture")
    if parts.username is not None or parts.password is not None:
        raise UnreadableImageError(f"{name}: the address holds a name or password; give a public one")
    return parts


def _connect(
    parts: SplitResult, name: str, allowed: Callable[[Address], bool], deadline: float
) -> http.client.HTTPConnection:
    """A connection to an address of the host that was checked."""
    host, port = str(parts.hostname), parts.port or _PORTS[parts.scheme]
    found = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    refused = [text for text in found if not allowed(ipaddress.ip_address(str(text).partition("%")[0]))]
    if refused or not found:
        raise UnreadableImageError(f"{name}: {host} is not a public address; give a file instead")
    plain = socket.create_connection((str(found[0]), port), timeout=_left(deadline))
    connection = http.client.HTTPConnection(host, port, timeout=_left(deadline))
    if parts.scheme == "https":
        try:
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
        except OSError:
            plain.close()
            raise
    else:
        connection.sock = plain
    return connection


def _read(answer: http.client.HTTPResponse, name: str, max_bytes: int, deadline: float) -> bytes:
    parts, size = [], 0
    while block := answer.read1(2**16):
        size += len(block)
        if size > max_bytes:
            raise ImageTooLargeError(f"{name}: the answer has more than {max_bytes:,} bytes; give a smaller picture")
        parts.append(block)
        _left(deadline)
    return b"".join(parts)


def _left(deadline: float) -> float:
    """Seconds left. Raises TimeoutError where there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"it takes longer than {TIMEOUT:g} seconds")
    return left
