"""Who gets how far with Triton: its restricted APIs want a key, its gRPC port speaks TLS where told to."""

from __future__ import annotations

import http.client
import json
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from gateway_server import running_gateway, settings
from qwen3_tts_client import KeyRefused, ServerUnavailable, SpeechClient
from qwen3_tts_engine.launch.access import KEY_FILE, RESTRICTED, Access, access_from, kept_key
from qwen3_tts_engine.launch.config import LaunchConfig, config_from, parsed
from qwen3_tts_engine.launch.server import Server, running_server
from qwen3_tts_engine.launch.tritonserver import LaunchError
from real_server import Launcher, on_free_ports

KEY = "0123456789abcdef"

Repository = Callable[..., Path]


# --- Where the key is from --------------------------------------------------------------------------------


def test_the_environments_key_is_the_key_and_nothing_is_written(tmp_path: Path) -> None:
    access = access_from({"TRITON_API_KEY": KEY}, tmp_path)
    assert KEY not in repr(access)
    assert (access.api_key, access.key_file) == (KEY, None)
    assert not [*tmp_path.iterdir()]


def test_without_one_it_is_made_once_and_for_its_owners_eyes(tmp_path: Path) -> None:
    access = access_from({}, tmp_path / "server")
    assert access.key_file == tmp_path / "server" / KEY_FILE
    assert len(access.api_key) == 64
    assert stat.S_IMODE(access.key_file.stat().st_mode) == 0o600
    assert access_from({}, tmp_path / "server") == access
    assert [*access.key_file.parent.iterdir()] == [access.key_file]


def test_launches_at_once_have_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / KEY_FILE
    path.write_text("the other launch was faster")
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert kept_key(path) == "the other launch was faster"


def test_where_none_can_be_kept_the_variable_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        LaunchError, match=r"no TRITON_API_KEY in the environment, and .* cannot be made or read"
    ):
        access_from({}, tmp_path / "file" / "server")


@pytest.mark.parametrize("key", ["two words", "naïve", "a:b,c", "=", "a\nb"])
def test_a_key_that_no_header_carries_is_refused_without_showing_it(key: str, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="TRITON_API_KEY holds no Bearer token") as refused:
        access_from({"TRITON_API_KEY": key}, tmp_path)
    assert key not in str(refused.value)


@pytest.mark.parametrize("given", ["CERT", "KEY"])
def test_half_of_a_certificate_is_refused(given: str, tmp_path: Path) -> None:
    (tmp_path / "file.pem").write_text("PEM")
    with pytest.raises(LaunchError, match="belong together"):
        access_from({f"TRITON_{given}_FILE": str(tmp_path / "file.pem")}, tmp_path)


def test_a_certificate_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"TRITON_CERT_FILE=nowhere\.pem: no file that can be read"):
        access_from({"TRITON_CERT_FILE": "nowhere.pem"}, tmp_path)


def test_whatever_an_operator_starts_is_locked_and_listens_on_loopback(tmp_path: Path) -> None:
    config = config_from({}, parsed(["--server-dir", str(tmp_path)]))
    assert config.access.api_key
    assert {host for host, _ in config.addresses.values()} == {"127.0.0.1"}


# --- The restricted APIs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tritonserver without models that wants a key, and logs all there is to log."""
    with running_server(empty(tmp_path_factory.mktemp("locked"), access=Access(KEY), verbose=True)) as server:
        yield server


def empty(directory: Path, **fields: object) -> LaunchConfig:
    (directory / "models").mkdir()
    return on_free_ports(
        model_repository=directory / "models",
        log_path=directory / "tritonserver.log",
        preload_models=False,
        **fields,
    )


def status(server: Server, path: str, key: str | None = None, method: str = "GET") -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with closing(http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)) as connection:
        connection.request(method, path, body=json.dumps({}) if method == "POST" else None, headers=headers)
        return connection.getresponse().status


@pytest.mark.triton
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/any/load"),
        ("POST", "/v2/repository/models/any/unload"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/any/register"),
        ("GET", "/v2/cudasharedmemory/status"),
        ("GET", "/v2/logging"),
        ("POST", "/v2/logging"),
        ("GET", "/v2/trace/setting"),
        ("POST", "/v2/trace/setting"),
    ],
)
def test_over_http_the_restricted_apis_want_the_key(locked: Server, method: str, path: str) -> None:
    assert status(locked, path, method=method) == 403
    assert status(locked, path, "another", method) == 403
    assert status(locked, path, KEY, method) in (200, 400, 500)  # there is no such model, region or GPU


@pytest.mark.triton
def test_over_grpc_they_do_as_well(locked: Server) -> None:
    asks = (
        "get_model_repository_index",
        "get_system_shared_memory_status",
        "get_log_settings",
        "get_trace_settings",
    )
    with triton.InferenceServerClient(f"localhost:{locked.grpc_port}") as client:
        for ask in asks:
            with pytest.raises(InferenceServerException, match="restricted"):
                getattr(client, ask)()
            getattr(client, ask)(headers={"triton-grpc-protocol-authorization": f"Bearer {KEY}"})


@pytest.mark.triton
def test_our_client_has_the_key_and_everybody_may_ask_for_health(locked: Server) -> None:
    url = f"localhost:{locked.grpc_port}"
    with SpeechClient(url, api_key=KEY) as tts:
        assert tts.models.list() == []
    with SpeechClient(url, api_key="another") as tts, pytest.raises(KeyRefused):
        tts.models.list()
    assert status(locked, "/v2/health/ready") == 200


@pytest.mark.triton
def test_the_log_does_not_hold_the_key(locked: Server) -> None:
    status(locked, "/v2/repository/index", KEY, "POST")
    log = locked.log_path.read_text()
    assert "Started GRPCInferenceService" in log
    assert KEY not in log


@pytest.mark.triton
def test_make_serve_tritons_server_is_locked_and_its_models_know_no_key(
    toy_repository: Repository, tmp_path: Path
) -> None:
    with Launcher(toy_repository("echo"), tmp_path, TRITON_API_KEY=KEY) as launcher:
        url = f"localhost:{launcher.config.grpc_port}"
        with SpeechClient(url) as tts, pytest.raises(KeyRefused):
            tts.models.list()
        with SpeechClient(url, api_key=KEY) as tts:
            assert [model.name for model in tts.models.list()] == ["echo"]
        for model in launcher.footprint.stubs():
            assert "TRITON_API_KEY" not in model.environ()
        listening = psutil.Process(launcher.footprint.group).net_connections("tcp")
        addresses = {one.laddr.ip for one in listening if one.status == psutil.CONN_LISTEN}
        assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}


def test_every_api_that_only_operators_need_is_restricted() -> None:
    assert set(RESTRICTED) == {"model-repository", "shared-memory", "logging", "trace"}


# --- TLS --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Authority:
    """Signs certificates for localhost; PEM files all."""

    folder: Path
    name: str

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self.name}.pem"

    def make(self) -> Authority:
        self._openssl(
            "-x509", "-subj", f"/CN={self.name}", "-keyout", f"{self.name}.key", "-out", f"{self.name}.pem"
        )
        return self

    def sign(self) -> Access:
        """A server's certificate and key."""
        names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
        by = ("-CA", f"{self.name}.pem", "-CAkey", f"{self.name}.key")
        files = ("-keyout", "server.key", "-out", "server.pem")
        self._openssl("-x509", *by, "-subj", "/CN=localhost", "-addext", names, *files)
        return Access(KEY, self.folder / "server.pem", self.folder / "server.key")

    def _openssl(self, *arguments: str) -> None:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
        command = ["openssl", "req", "-nodes", "-days", "2", *curve, *arguments]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl on this machine: apt-get install openssl")
    return Authority(tmp_path_factory.mktemp("authority"), "ours").make()


@pytest.fixture(scope="module")
def stranger(authority: Authority) -> Path:
    """The certificate of an authority that has signed nothing here."""
    return Authority(authority.folder, "strangers").make().certificate


@pytest.fixture(scope="module")
def encrypted(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(empty(tmp_path_factory.mktemp("tls"), access=authority.sign())) as server:
        yield server


@pytest.mark.triton
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_over_tls_the_client_trusts_the_authority_it_is_given(
    encrypted: Server, authority: Authority, host: str
) -> None:
    url = f"{host}:{encrypted.grpc_port}"
    with SpeechClient(url, root_certificates=authority.certificate, api_key=KEY) as tts:
        assert tts.server_info().name == "triton"
        assert tts.models.list() == []


@pytest.mark.triton
def test_another_authority_is_refused_and_told(encrypted: Server, stranger: Path) -> None:
    url = f"localhost:{encrypted.grpc_port}"
    with (
        SpeechClient(url, root_certificates=stranger) as tts,
        pytest.raises(ServerUnavailable, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        tts.server_info()


@pytest.mark.triton
def test_nobody_gets_an_answer_in_the_clear(encrypted: Server) -> None:
    with SpeechClient(f"localhost:{encrypted.grpc_port}") as tts, pytest.raises(ServerUnavailable):
        tts.server_info()


@pytest.mark.triton
def test_the_gateway_speaks_tls_with_triton_and_refuses_a_stranger(
    encrypted: Server, authority: Authority, stranger: Path
) -> None:
    def health(trusted: Path) -> str:
        configured = settings(
            triton_grpc_port=encrypted.grpc_port, triton_ca_file=trusted, triton_api_key=KEY
        )
        with running_gateway(configured) as gateway:
            return str(httpx.get(f"{gateway.url}/health/models").json()["triton"])

    assert health(authority.certificate) == "ready"
    assert "does not answer" in health(stranger)


def test_a_gateway_that_knows_no_authority_is_refused_before_triton_starts(
    authority: Authority, tmp_path: Path
) -> None:
    from qwen3_tts_engine.launch.system import serve

    config = empty(tmp_path, access=authority.sign())
    with pytest.raises(LaunchError, match="TRITON_CA_FILE is not"):
        serve(config)
