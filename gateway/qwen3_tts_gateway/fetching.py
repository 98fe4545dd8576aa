"""Reference recordings by URL, without becoming anybody's way into the network the gateway stands in.

Nobody but the allowed hosts is asked, over TLS alone. The host's name is resolved once; every address must be
public, and those very addresses are dialled, so that a second answer of the DNS changes nothing. The request
goes through httpcore, which knows no redirects, no proxies, no cookies and no decompression.

Whatever goes wrong, the caller reads the same sentence: an error that tells a closed port from a silent one
is a port scanner. The log has the rest.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import ipaddress
import logging
import re
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from socket import SOCK_STREAM
from urllib.parse import unquote_to_bytes

import httpcore
import httpx

from qwen3_tts_gateway.errors import InvalidInput, TooLarge
from qwen3_tts_gateway.threads import in_thread

log = logging.getLogger(__name__)

MAX_BYTES = 10 << 20  # of a recording, as Triton's `reference_audio` takes it
TIMEOUT_S = 10.0
HTTPS_PORT = 443

# One URL parser reads what these let pass; what parsers are known to disagree about does not pass.
PLAIN_URL = re.compile(r"https://[\x21-\x5b\x5d-\x7e]{1,4000}", re.IGNORECASE | re.ASCII)
DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)

HEADERS = (
    ("Accept", "audio/*, application/octet-stream;q=0.9, */*;q=0.1"),
    ("Accept-Encoding", "identity"),
    ("User-Agent", "qwen3-tts-gateway"),
)

# IANA's special-purpose registries, as of 2025: Python's `ipaddress` differs from them by its patch release.
SPECIAL_IPV4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",
            "100.64.0.0/10",  # carriers' NAT
            "127.0.0.0/8",
            "169.254.0.0/16",  # link-local, and the clouds' metadata
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # AMT
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
SPECIAL_IPV6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)
# An IPv4 host under an IPv6 address: as public as the host is.
IPV4_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]


class _Unfetchable(Exception):
    """Why, for the log."""


async def resolve(host: str, port: int) -> list[str]:
    """The addresses that the system's resolver knows, which blocks and hence runs in a thread."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def fetch_recording(
    url: str,
    allowed_hosts: Collection[str],
    *,
    param: str = "ref_audio_url",
    resolver: Resolver = resolve,
    dialer: httpcore.AsyncNetworkBackend | None = None,
    tls: ssl.SSLContext | None = None,
    max_bytes: int = MAX_BYTES,
    timeout_s: float = TIMEOUT_S,
) -> bytes:
    """The bytes at a `data:` URL, or at an `https:` URL of an allowed host.

    Args:
        allowed_hosts: `audio.example.com`; `*.example.com` for whatever is below it; `example.com:8443` for
            that port in place of 443.
        param: what the caller's request calls the URL.
        timeout_s: for all of it.

    Raises:
        InvalidInput: it cannot be fetched, or may not be.
        TooLarge: a `data:` URL has more than `max_bytes`.
    """
    if url[:5].lower() == "data:":
        return await in_thread(_inline, url, max_bytes, param)
    if not allowed_hosts:
        raise InvalidInput(f"{param}: recordings by URL are not allowed here", param=param)
    errand = _Errand(resolver, dialer or httpcore.AnyIOBackend(), tls or _trusted(), max_bytes)
    try:
        return await asyncio.wait_for(errand.run(url, allowed_hosts), timeout_s)
    except Exception as error:  # whatever it is: a failure of another kind would be told from the rest
        log.warning("no recording from %s: %s: %s", _for_the_log(url), type(error).__name__, error)
    raise InvalidInput(
        f"the recording could not be fetched; {param} is an https URL of a host that this gateway allows, "
        f"with no redirects, and with at most {max_bytes >> 20} MiB behind it",
        param=param,
    )


@dataclass(frozen=True)
class _Errand:
    resolver: Resolver
    dialer: httpcore.AsyncNetworkBackend
    tls: ssl.SSLContext
    max_bytes: int

    async def run(self, url: str, allowed_hosts: Iterable[str]) -> bytes:
        target = checked_target(url, allowed_hosts)
        addresses = await self.resolver(target.host, target.port)
        if refused := [address for address in addresses if not is_public(address)]:
            raise _Unfetchable(f"it resolves to {', '.join(refused)}")
        return await self._get(target, _PinnedDialer(self.dialer, addresses))

    async def _get(self, target: Target, dialer: httpcore.AsyncNetworkBackend) -> bytes:
        async with (
            httpcore.AsyncConnectionPool(ssl_context=self.tls, network_backend=dialer) as pool,
            pool.stream("GET", target.url, headers=HEADERS) as response,
        ):
            _check_head(response)
            body = bytearray()
            async for part in response.aiter_stream():
                body += part
                if len(body) > self.max_bytes:
                    raise _Unfetchable(f"it has more than {self.max_bytes} bytes")
            return bytes(body)


@dataclass(frozen=True)
class Target:
    """What is asked of whom; `host` is the name that the certificate must bear."""

    host: str
    port: int
    url: httpcore.URL


def checked_target(url: str, allowed_hosts: Iterable[str]) -> Target:
    if not PLAIN_URL.fullmatch(url):
        raise _Unfetchable("it is no plain https URL")
    parsed = httpx.URL(url)
    host, port = parsed.raw_host.decode(), parsed.port or HTTPS_PORT  # raw: in ASCII, as the DNS has it
    if parsed.userinfo:
        raise _Unfetchable("it has credentials")
    if not any(is_allowed(host, port, entry) for entry in allowed_hosts):
        raise _Unfetchable(f"{host}:{port} is not among the allowed hosts")
    target = httpcore.URL(scheme=b"https", host=parsed.raw_host, port=port, target=parsed.raw_path)
    return Target(host, port, target)


def is_allowed(host: str, port: int, entry: str) -> bool:
    """Whether an entry of the allow-list means this host at this port."""
    name, colon, entry_port = entry.lower().partition(":")
    if str(port) != (entry_port if colon else str(HTTPS_PORT)):
        return False
    if name.startswith("*."):
        return host.endswith(name[1:]) and host != name[1:]
    return host == name


def is_public(address: str) -> bool:
    """Whether an address is a host's on the public internet: not of this machine, its networks, or its cloud.

    IPv6 that stands for an IPv4 host is judged by that; 6to4 and Teredo, which tunnel to one, never pass.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv4Address):
        return not any(parsed in network for network in SPECIAL_IPV4)
    if parsed.scope_id is not None:
        return False
    if parsed in IPV4_MAPPED or parsed in NAT64:
        return is_public(str(ipaddress.IPv4Address(int(parsed) & 0xFFFF_FFFF)))
    return parsed in GLOBAL_IPV6 and not any(parsed in network for network in SPECIAL_IPV6)


class _PinnedDialer(httpcore.AsyncNetworkBackend):
    """Dials the checked addresses, in turn, whatever name it is asked for; TLS still asks for the name."""

    def __init__(self, dialer: httpcore.AsyncNetworkBackend, addresses: Sequence[str]) -> None:
        self._dialer = dialer
        self._addresses = addresses

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError("it resolves to nothing")
        for address in self._addresses:
            try:
                return await self._dialer.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def _check_head(response: httpcore.Response) -> None:
    if response.status != 200:
        raise _Unfetchable(f"the answer is {response.status}")
    encodings = [value for name, value in response.headers if name.lower() == b"content-encoding"]
    if any(value.strip().lower() != b"identity" for value in encodings):
        raise _Unfetchable("it is compressed, which was not asked for")


def _inline(url: str, max_bytes: int, param: str) -> bytes:
    """What a base64 `data:` URL holds."""
    if not (head := DATA_URL.match(url)):
        raise InvalidInput(f"{param} is a data: URL without ;base64", param=param)
    payload = unquote_to_bytes(url[head.end() :])
    if len(payload) // 4 * 3 - 2 > max_bytes:  # before it is decoded; two may be padding
        raise _too_large(max_bytes, param)
    try:
        recording = base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise InvalidInput(f"{param} is not base64: {error}", param=param) from None
    if len(recording) > max_bytes:
        raise _too_large(max_bytes, param)
    return recording


def _too_large(max_bytes: int, param: str) -> TooLarge:
    return TooLarge(f"{param} has more than {max_bytes >> 20} MiB", param=param)


@functools.cache
def _trusted() -> ssl.SSLContext:
    """certifi's authorities, or SSL_CERT_FILE's."""
    return httpx.create_ssl_context()


def _for_the_log(url: str) -> str:
    """Without its query, which may be a signature, without credentials, and on one line."""
    return ascii(re.sub(r"//[^/?#]*@", "//", re.split(r"[?#]", url, maxsplit=1)[0])[:300])
