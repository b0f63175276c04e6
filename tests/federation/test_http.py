"""Real HTTPS on this machine: same bits as in-process, and refusals that are clear."""

import datetime
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

from mor.federation.client import ClientError, ClientService, RemoteClient
from mor.federation.http import HttpsTransport, create_app
from mor.federation.ledger import Ledger
from tests.alignment.test_mixed_reward import TableReward

TABLE = {"a": 0.25, "b": None, "c": -(2.0**-14)}  # exact in float16
SERVICE = ClientService(TableReward(TABLE), 0)


def self_signed(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoded = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(encoded)
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    certificate, key = self_signed(tmp_path_factory.mktemp("tls"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(
        create_app(SERVICE.handle, "secret"), port=port, ssl_certfile=str(certificate), ssl_keyfile=str(key),
        log_level="critical", ws="none",
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"https://127.0.0.1:{port}", certificate
    server.should_exit = True
    thread.join()


def test_http_and_in_process_scoring_agree_to_the_bit_and_the_byte(service: tuple[str, Path]) -> None:
    url, authority = service
    ledgers = Ledger(), Ledger()
    over_http = RemoteClient("x", HttpsTransport(url, "secret", authority), ledgers[0])
    in_process = RemoteClient("x", SERVICE.handle, ledgers[1])
    asked = (["What?"] * 3, [Image.new("RGB", (4, 4))] * 3, ["a", "b", "c"])
    assert over_http.score(*asked) == in_process.score(*asked) == list(TABLE.values())
    assert ledgers[0].bytes == ledgers[1].bytes


def test_a_wrong_token_is_refused(service: tuple[str, Path]) -> None:
    url, authority = service
    with pytest.raises(ClientError, match="refused with status 401"):
        HttpsTransport(url, "guess", authority)(b"")


def test_an_unknown_certificate_is_not_trusted(service: tuple[str, Path]) -> None:
    with pytest.raises(ClientError, match="CERTIFICATE_VERIFY_FAILED"):
        HttpsTransport(service[0], "secret", attempts=1)(b"")


def test_a_client_that_is_down_is_an_error_that_says_so() -> None:
    with pytest.raises(ClientError, match="no answer after 2 attempts"):
        HttpsTransport("https://127.0.0.1:1", "secret", attempts=2)(b"")


def test_plain_http_is_refused() -> None:
    with pytest.raises(ValueError, match="https:// only"):
        HttpsTransport("http://127.0.0.1", "secret")


def test_nothing_but_messages_is_served(service: tuple[str, Path]) -> None:
    import ssl

    with httpx.Client(verify=ssl.create_default_context(cafile=str(service[1])), trust_env=False) as client:
        for path in ("/", "/docs", "/openapi.json"):
            assert client.get(service[0] + path).status_code == 404
