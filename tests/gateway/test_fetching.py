"""Recordings by URL: from those who may be asked, and from nobody else, whatever the URL looks like."""

import asyncio
import base64
import gzip
import re
import shutil
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager, suppress

import httpcore
import pytest

from qwen3_tts_gateway.errors import InvalidInput, TooLarge
from qwen3_tts_gateway.fetching import fetch_recording, is_allowed, is_public, resolve

HOST = "audio.example.com"
URL = f"https://{HOST}/grandpa.wav"
PUBLIC, PRIVATE = "93.184.216.34", "10.0.0.1"
RECORDING = b"RIFF" + bytes(range(256)) * 300
BOMB = gzip.compress(bytes(11 << 20))
END_OF_HEAD = b"\r\n\r\n"

# What a hostile or careless DNS might say.
NAMES = {
    HOST: [PUBLIC],
    "localhost": ["127.0.0.1", "::1"],
    "metadata.google.internal": ["169.254.169.254"],
    "instance-data.ec2.internal": ["169.254.169.254"],
    "inside.example.com": [PRIVATE],
    "mixed.example.com": [PUBLIC, PRIVATE],
    "mixed6.example.com": [PUBLIC, "::1"],
    "metadata6.example.com": ["fd00:ec2::254"],
    "mapped.example.com": ["::ffff:10.0.0.1"],
    "tunnel.example.com": ["2002:a00:1::1"],
    "nat64.example.com": ["64:ff9b::a00:1"],
    "zone.example.com": ["fe80::1%eth0"],
    "nothing.example.com": [],
    "nonsense.example.com": ["example.com"],
}


class Dialer(httpcore.AsyncNetworkBackend):
    """Writes down who is dialled, and puts every call through to one local port, or to nobody."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.server_names: list[str | None] = []
        self.port: int | None = None
        self.dead: list[str] = []

    async def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        self.calls.append((host, port))
        if self.port is None or host in self.dead:
            raise httpcore.ConnectError("nobody answers")
        return await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", self.port)


class Resolver:
    """Knows NAMES; numbers in every notation go to the system, as they would."""

    def __init__(self, names: dict[str, list[str]] = NAMES) -> None:
        self.asked: list[str] = []
        self._names = names

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if re.fullmatch(r"[0-9a-fx.]*[0-9][0-9a-fx.]*|.*:.*", host):
            return await resolve(host, port)
        if host not in self._names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self._names[host]


async def refusal(url: str, allowed_hosts=(HOST,), **options) -> str:
    with pytest.raises(InvalidInput) as error:
        await fetch_recording(url, allowed_hosts, **{"resolver": Resolver(), **options})
    assert error.value.param == "ref_audio_url"
    return str(error.value)


FORMS = [
    # other schemes
    f"http://{HOST}/a.wav",
    f"ftp://{HOST}/a.wav",
    f"gopher://{HOST}:70/_GET",
    f"dict://{HOST}:11211/stats",
    f"ws://{HOST}/",
    "file:///etc/passwd",
    f"file://{HOST}/etc/passwd",
    f"//{HOST}/a.wav",
    f"https:/{HOST}/a.wav",
    f"https:{HOST}/a.wav",
    f"{HOST}/a.wav",
    f"jar:https://{HOST}/a.wav",
    "",
    "https://",
    "https:///a.wav",
    # addresses in brackets: no entry of the list means one
    "https://[::]/",
    "https://[::1]/",
    "https://[0:0:0:0:0:0:0:1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::127.0.0.1]/",
    "https://[::ffff:10.0.0.1]/",
    "https://[::ffff:a00:1]/",
    "https://[64:ff9b::10.0.0.1]/",
    "https://[64:ff9b:1::10.0.0.1]/",
    "https://[2002:a00:1::]/",
    "https://[2001:0:a00:1::1]/",
    "https://[fc00::1]/",
    "https://[fec0::1]/",
    "https://[ff02::1]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fe80::1%eth0]/",
    "https://[::ffff:169.254.169.254]/",
    "https://[fd00:ec2::254]/",
    # one host for the reader, another for the parser
    f"https://{HOST}@inside.example.com/",
    f"https://{HOST}:443@inside.example.com/",
    f"https://user:password@{HOST}/",
    f"https://inside.example.com@{HOST}/",
    f"https://inside.example.com\\@{HOST}/",
    f"https://{HOST}\\@inside.example.com/",
    f"https://{HOST}\\.inside.example.com/",
    f"https://inside.example.com#@{HOST}/",
    f"https://inside.example.com?@{HOST}/",
    f"https://inside.example.com/{HOST}",
    f"https://{HOST}.evil.com/",
    f"https://evil-{HOST}/",
    f"https://x.{HOST}/",
    f"https://{HOST}./",
    f"https://.{HOST}/",
    f"https://{HOST}%00.evil.com/",
    f"https://{HOST}%2eevil.com/",
    f"https://{HOST}%23.evil.com/",
    f"https://{HOST}:443:80/",
    "https://audio.examp1e.com/",
    "https://audio.example.co/",
    "https://example.com/",
    # letters and digits that only look the part
    "https://аudio.example.com/",
    "https://audio。example。com/",
    "https://ａｕｄｉｏ.example.com/",
    "https://xn--udio-53d.example.com/",
    "https://0177.0.0.1/",
    "https://0251.0376.0251.0376/",
    "https://①②⑦.⓪.⓪.①/",
    "https://１２７.0.0.1/",
    "https://١٢٧.0.0.1/",
    # ports
    f"https://{HOST}:80/",
    f"https://{HOST}:22/",
    f"https://{HOST}:8443/",
    f"https://{HOST}:65979/",
    f"https://{HOST}:-443/",
    f"https://{HOST}:443x/",
    # what would write a request of its own
    f"https://{HOST}/\r\nHost: inside.example.com",
    f"https://{HOST}/\nX: y",
    f"https://{HOST}\r\n.evil.com/",
    f"https://{HOST}/a b",
    f"https://{HOST}/\t",
    f"https://{HOST}/\x00",
    f" {URL}",
    f"{URL}\n",
    "https://" + "a" * 70_000,
]

INSIDE = [
    # this machine, in every notation
    "https://localhost/",
    "https://LOCALHOST/",
    "https://127.0.0.1/",
    "https://127.1/",
    "https://127.0.1/",
    "https://0/",
    "https://0.0.0.0/",
    "https://2130706433/",
    "https://017700000001/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://00000177.1/",
    "https://127.0.0.1./",
    # private networks
    "https://10.0.0.1/",
    "https://167772161/",
    "https://0xa000001/",
    "https://172.16.0.1/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    "https://inside.example.com/",
    "https://mixed.example.com/",
    "https://mixed6.example.com/",
    "https://mapped.example.com/",
    "https://tunnel.example.com/",
    "https://nat64.example.com/",
    "https://zone.example.com/",
    "https://nothing.example.com/",
    "https://nonsense.example.com/",
    "https://unknown.example.com/",
    # the clouds' metadata
    "https://169.254.169.254/latest/meta-data/",
    "https://2852039166/",
    "https://0xA9FEA9FE/",
    "https://metadata.google.internal/",
    "https://instance-data.ec2.internal/",
    "https://metadata6.example.com/",
]


def test_the_tables_are_long_enough_and_say_nothing_twice():
    assert len(FORMS) + len(INSIDE) == len({*FORMS, *INSIDE}) > 100


@pytest.mark.parametrize("url", FORMS + INSIDE)
async def test_nobody_is_dialled_for_a_url_that_means_no_allowed_host(url):
    dialer, resolver = Dialer(), Resolver()
    message = await refusal(url, dialer=dialer, resolver=resolver)
    assert message.startswith("the recording could not be fetched; ref_audio_url is an https URL")
    assert dialer.calls == []
    assert resolver.asked == []  # nor is a name looked up, which a DNS server could see


@pytest.mark.parametrize("url", INSIDE)
async def test_nor_is_anybody_where_the_allowed_hosts_lead_inside(url):
    """The second wall: what a name resolves to."""
    host = url.removeprefix("https://").partition("/")[0].lower()
    dialer, resolver = Dialer(), Resolver()
    await refusal(url, allowed_hosts=[host], dialer=dialer, resolver=resolver)
    assert dialer.calls == []
    assert resolver.asked == [host]


async def test_every_failure_reads_the_same():
    tries = [refusal(url, dialer=Dialer()) for url in (*FORMS, *INSIDE, URL)]
    assert len({await message for message in tries}) == 1


async def test_without_allowed_hosts_no_url_is_fetched():
    dialer = Dialer()
    message = await refusal(URL, allowed_hosts=(), dialer=dialer)
    assert message == "ref_audio_url: recordings by URL are not allowed here"
    assert dialer.calls == []


async def test_the_log_says_why_but_neither_the_query_nor_a_password(caplog):
    await refusal("https://user:password@inside.example.com/a.wav?signature=s3cret#s3cret")
    await refusal("https://inside.example.com/a.wav?signature=s3cret", allowed_hosts=["*.example.com"])
    await refusal(f"https://{HOST}/\n2026-01-01 ERROR forged?s3cret")
    first, second, third = [record.message for record in caplog.records]
    assert first == "no recording from 'https://inside.example.com/a.wav': _Unfetchable: it has credentials"
    assert "it resolves to 10.0.0.1" in second
    assert "\n" not in third
    assert not any("s3cret" in message or "password" in message for message in (first, second, third))


@pytest.mark.parametrize(
    ("entry", "host", "port", "allowed"),
    [
        ("example.com", "example.com", 443, True),
        ("Example.COM", "example.com", 443, True),
        ("example.com", "a.example.com", 443, False),
        ("example.com", "example.com", 8443, False),
        ("example.com:8443", "example.com", 8443, True),
        ("example.com:8443", "example.com", 443, False),
        ("*.example.com", "a.example.com", 443, True),
        ("*.example.com", "a.b.example.com", 443, True),
        ("*.example.com", "example.com", 443, False),
        ("*.example.com", "badexample.com", 443, False),
        ("*.example.com", ".example.com", 443, False),
        ("*.example.com", "a.example.com.evil.com", 443, False),
        ("*.example.com:8443", "a.example.com", 8443, True),
        ("*.example.com:8443", "a.example.com", 443, False),
        ("*", "example.com", 443, False),
        ("", "example.com", 443, False),
        ("example.com:https", "example.com", 443, False),
        ("https://example.com", "example.com", 443, False),
    ],
)
def test_an_entry_of_the_allow_list_means_one_host_or_those_below_it_at_one_port(entry, host, port, allowed):
    assert is_allowed(host, port, entry) is allowed


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "93.184.216.34", "1.1.1.1", "172.32.0.1", "100.128.0.1", "223.255.255.255"),
        *("2606:4700::1111", "2001:4860:4860::8888", "2a00:1450::1"),
        *("::ffff:8.8.8.8", "64:ff9b::808:808"),
    ],
)
def test_a_host_on_the_internet_is_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.255"),
        *("169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.9", "192.0.0.192", "192.0.2.1"),
        *("192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1"),
        *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::10.0.0.1", "::8.8.8.8", "::ffff:10.0.0.1", "::ffff:127.0.0.1"),
        *("::ffff:169.254.169.254", "::ffff:0:8.8.8.8", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254"),
        *("64:ff9b:1::8.8.8.8", "100::1", "2001::1", "2001:0:a00:1::", "2001:20::1", "2001:db8::1"),
        *("2002:a00:1::", "2002:808:808::1", "3fff::1", "4000::1", "5f00::1", "fc00::1", "fd00:ec2::254"),
        *("fe80::1", "fe80::1%eth0", "2606:4700::1111%eth0", "fec0::1", "ff02::1", "ff0e::1"),
        *("", "localhost", "127.1", "0x7f000001", "2130706433", "8.8.8.8 ", "8.8.8.8/32", "[::1]"),
    ],
)
def test_nothing_else_is(address):
    assert not is_public(address)


# --- Against a real TLS server, to which the dialer puts the calls through.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A certificate and key of HOST, and of another host; each is its own authority."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl on this machine: apt-get install openssl")
    directory = tmp_path_factory.mktemp("certificates")
    for name in (HOST, "other.example.com"):
        subprocess.run(
            (
                *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-newkey", "ec"),
                *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-addext", f"subjectAltName=DNS:{name}"),
                *("-keyout", directory / f"{name}.key", "-out", directory / f"{name}.pem"),
            ),
            check=True,
            capture_output=True,
        )
    return directory


@pytest.fixture
def tls(certificates) -> ssl.SSLContext:
    """Trusts both."""
    context = ssl.create_default_context(cafile=certificates / f"{HOST}.pem")
    context.load_verify_locations(certificates / "other.example.com.pem")
    return context


@pytest.fixture
def serving(certificates):
    """`serving(answer)`: the dialer that leads to a server with HOST's certificate.

    `answer` is called with each connection's reader and writer.
    """

    @asynccontextmanager
    async def serve(answer, name: str = HOST):
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                with suppress(ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
                    await answer(reader, writer)
                    writer.close()
                    await writer.wait_closed()
            finally:
                writer.transport.abort()

        dialer = Dialer()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
        context.sni_callback = lambda connection, asked_for, context: dialer.server_names.append(asked_for)
        async with await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context) as server:
            dialer.port = server.sockets[0].getsockname()[1]
            yield dialer

    return serve


def says(body: bytes, *headers: str, status: str = "200 OK", heads: list[str] | None = None):
    """Answers with this, and writes down what it was asked."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(END_OF_HEAD)
        if heads is not None:
            heads.append(head.decode())
        lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", "")
        writer.write("\r\n".join(lines).encode() + body)

    return answer


async def test_a_recording_is_fetched_from_the_address_that_was_checked(serving, tls):
    heads: list[str] = []
    async with serving(says(RECORDING, heads=heads)) as dialer:
        url = f"{URL}?signature=a%2Fb#there"
        assert await fetch_recording(url, [HOST], resolver=Resolver(), dialer=dialer, tls=tls) == RECORDING
    assert dialer.calls == [(PUBLIC, 443)]
    assert dialer.server_names == [HOST]
    request, *headers = heads[0].strip().splitlines()
    assert request == "GET /grandpa.wav?signature=a%2Fb HTTP/1.1"
    assert sorted(headers) == [
        "Accept-Encoding: identity",
        "Accept: audio/*, application/octet-stream;q=0.9, */*;q=0.1",
        f"Host: {HOST}",
        "User-Agent: qwen3-tts-gateway",
    ]


async def test_a_name_is_looked_up_once_so_that_it_cannot_change_its_mind(serving, tls):
    answers = iter([[PUBLIC], [PRIVATE], [PRIVATE]])

    async def rebind(host: str, port: int) -> list[str]:
        return next(answers)

    async with serving(says(RECORDING)) as dialer:
        assert await fetch_recording(URL, [HOST], resolver=rebind, dialer=dialer, tls=tls) == RECORDING
    assert dialer.calls == [(PUBLIC, 443)]
    assert next(answers) == [PRIVATE]


async def test_an_address_that_is_dead_is_followed_by_the_next(serving, tls):
    async with serving(says(RECORDING)) as dialer:
        dialer.dead.append("2606:4700::1111")
        resolver = Resolver({HOST: ["2606:4700::1111", PUBLIC]})
        assert await fetch_recording(URL, [HOST], resolver=resolver, dialer=dialer, tls=tls) == RECORDING
    assert dialer.calls == [("2606:4700::1111", 443), (PUBLIC, 443)]


async def test_another_port_is_dialled_where_the_allow_list_names_it(serving, tls):
    heads: list[str] = []
    options = {"resolver": Resolver(), "tls": tls}
    async with serving(says(RECORDING, heads=heads)) as dialer:
        url = f"https://{HOST}:8443/a.wav"
        assert await fetch_recording(url, [f"{HOST}:8443"], dialer=dialer, **options) == RECORDING
    assert dialer.calls == [(PUBLIC, 8443)]
    assert f"Host: {HOST}:8443\r\n" in heads[0]


async def test_proxies_of_the_environment_are_not_asked(serving, tls, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serving(says(RECORDING)) as dialer:
        assert await fetch_recording(URL, [HOST], resolver=Resolver(), dialer=dialer, tls=tls) == RECORDING


@pytest.mark.parametrize(
    "location", ["https://inside.example.com/", "http://169.254.169.254/", URL, "/b.wav"]
)
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_not_followed(serving, tls, caplog, status, location):
    async with serving(says(RECORDING, f"Location: {location}", status=status)) as dialer:
        await refusal(URL, allowed_hosts=["*.example.com"], dialer=dialer, tls=tls)
    assert dialer.calls == [(PUBLIC, 443)]
    assert f"the answer is {status[:3]}" in caplog.text


@pytest.mark.parametrize("status", ["204 None", "206 Partial", "401 Who", "404 Not Found", "500 Oops"])
async def test_whatever_is_not_200_is_no_recording(serving, tls, status):
    async with serving(says(RECORDING, status=status)) as dialer:
        await refusal(URL, dialer=dialer, tls=tls)


async def test_a_certificate_of_another_host_is_refused(serving, tls, caplog):
    async with serving(says(RECORDING), name="other.example.com") as dialer:
        await refusal(URL, dialer=dialer, tls=tls)
    assert "certificate is not valid for 'audio.example.com'" in caplog.text


async def test_a_certificate_that_nobody_vouches_for_is_refused(serving, caplog):
    async with serving(says(RECORDING)) as dialer:
        await refusal(URL, dialer=dialer)
    assert "certificate verify failed" in caplog.text


async def test_reading_stops_at_the_limit_however_much_is_sent(serving, tls, caplog):
    stopped = asyncio.Event()

    async def answer_for_ever(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
        finally:
            stopped.set()

    async with serving(answer_for_ever) as dialer:
        await refusal(URL, dialer=dialer, tls=tls, max_bytes=100_000)
        await stopped.wait()
    assert "it has more than 100000 bytes" in caplog.text


async def test_a_recording_may_be_as_long_as_the_limit_and_not_a_byte_more(serving, tls):
    options = {"resolver": Resolver(), "tls": tls}
    async with serving(says(RECORDING)) as dialer:
        body = await fetch_recording(URL, [HOST], dialer=dialer, max_bytes=len(RECORDING), **options)
        assert body == RECORDING
        await refusal(URL, dialer=dialer, max_bytes=len(RECORDING) - 1, **options)


@pytest.mark.parametrize("prelude", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\nRIFF"])
async def test_a_server_that_falls_silent_is_left(serving, tls, caplog, prelude):
    async def answer(reader, writer):
        writer.write(prelude)
        await reader.read()  # until the other side has had enough

    async with serving(answer) as dialer:
        await refusal(URL, dialer=dialer, tls=tls, timeout_s=0.2)
    assert "Timeout" in caplog.text


async def test_a_dns_that_falls_silent_is_left():
    async def never(host: str, port: int) -> list[str]:
        return await asyncio.Event().wait()

    await refusal(URL, resolver=never, timeout_s=0.01)


async def test_a_body_cut_short_is_no_recording(serving, tls):
    async def answer(reader, writer):
        await reader.readuntil(END_OF_HEAD)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nRIFF")

    async with serving(answer) as dialer:
        await refusal(URL, dialer=dialer, tls=tls)


async def test_a_server_that_speaks_no_http_is_no_different(serving, tls):
    async def answer(reader, writer):
        writer.write(b"220 smtp.example.com ESMTP\r\n")

    async with serving(answer) as dialer:
        assert await refusal(URL, dialer=dialer, tls=tls) == await refusal(URL, dialer=Dialer())


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "identity, gzip"])
async def test_a_compressed_body_is_refused_before_it_unfolds(serving, tls, caplog, encoding):
    async with serving(says(BOMB, f"Content-Encoding: {encoding}")) as dialer:
        await refusal(URL, dialer=dialer, tls=tls)
    assert "it is compressed" in caplog.text


async def test_a_body_that_is_a_gzip_file_stays_one(serving, tls):
    packed = gzip.compress(RECORDING)
    async with serving(says(packed, "Content-Type: application/gzip")) as dialer:
        assert await fetch_recording(URL, [HOST], resolver=Resolver(), dialer=dialer, tls=tls) == packed


async def test_the_systems_resolver_is_asked_in_a_thread_and_gives_addresses():
    assert set(await resolve("127.0.0.1", 443)) == {"127.0.0.1"}
    assert set(await resolve("::1", 443)) == {"::1"}


# --- data: URLs


def inline(body: bytes, kind: str = "audio/wav") -> str:
    return f"data:{kind};base64,{base64.b64encode(body).decode()}"


@pytest.mark.parametrize("kind", ["audio/wav", "", "audio/ogg;codecs=opus", "application/octet-stream"])
async def test_a_data_url_needs_nobody_elses_leave(kind):
    assert await fetch_recording(inline(RECORDING, kind), ()) == RECORDING
    assert await fetch_recording(inline(RECORDING, kind).replace("data:", "DATA:"), ()) == RECORDING
    assert await fetch_recording(inline(RECORDING, kind).replace("+", "%2B"), ()) == RECORDING


@pytest.mark.parametrize("extra", [0, 1, 2])
async def test_a_data_url_may_hold_as_much_as_the_limit_and_not_a_byte_more(extra):
    body = bytes(300 + extra)
    assert await fetch_recording(inline(body), (), max_bytes=len(body)) == body
    for limit in (1, len(body) - 1):
        with pytest.raises(TooLarge) as error:
            await fetch_recording(inline(body), (), max_bytes=limit)
        assert error.value.param == "ref_audio_url"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("data:", "a data: URL without ;base64"),
        ("data:audio/wav,RIFF", "a data: URL without ;base64"),
        ("data:audio/wav;base64", "a data: URL without ;base64"),
        ("data:audio/wav;base64,####", "not base64"),
        ("data:audio/wav;base64,UklGR", "not base64"),
        ("data:audio/wav;base64,UklGRä==", "not base64"),
    ],
)
async def test_a_data_url_that_holds_nothing_says_why(url, complaint):
    assert complaint in await refusal(url)


async def test_the_field_is_called_as_the_caller_called_it():
    with pytest.raises(InvalidInput, match=r"^voice: recordings by URL") as error:
        await fetch_recording(URL, (), param="voice")
    assert error.value.param == "voice"
