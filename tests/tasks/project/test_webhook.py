"""The webhook: what it gets, what it is warned of, and that its address appears nowhere."""

from __future__ import annotations

import http.server
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from mor.errors import ConfigError
from tasks.project import webhook


class Hook(http.server.BaseHTTPRequestHandler):
    """A webhook that answers with the codes it is given, then with 200, and keeps what it got."""

    codes: list[int]
    got: list[dict[str, str]]
    location: str = ""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        code = self.codes.pop(0) if self.codes else 200
        if code == 200:
            self.got.append(body)
        self.send_response(code)
        if code in (301, 302, 303, 307, 308):
            self.send_header("Location", self.location)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[tuple[str, type[Hook]]]:
    handler = type("OneHook", (Hook,), {"codes": [], "got": []})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", handler
        server.shutdown()


def test_the_webhook_gets_the_event_as_json(hook: tuple[str, type[Hook]], monkeypatch: pytest.MonkeyPatch) -> None:
    url, handler = hook
    monkeypatch.setenv("MOR_WEBHOOK", url)
    webhook.notify({"night": "2026-01-01", "state": "Promoted"})
    assert handler.got == [{"night": "2026-01-01", "state": "Promoted"}]


def test_a_webhook_that_fails_once_gets_the_event_once_all_the_same(
    hook: tuple[str, type[Hook]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = hook
    monkeypatch.setenv("MOR_WEBHOOK", url)
    handler.codes = [503]
    webhook.notify({"state": "Failed"})
    assert handler.got == [{"state": "Failed"}]


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/secret", "https://127.0.0.1:{port}/secret"])
def test_a_webhook_that_is_not_there_is_warned_of_and_stops_nothing(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setenv("MOR_WEBHOOK", url.format(port=free_port))
    webhook.notify({"state": "Failed"})
    assert "Failed" in (said := capsys.readouterr().err)
    assert "secret" not in said


def test_without_a_webhook_nothing_is_sent_and_nothing_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOR_WEBHOOK", raising=False)
    webhook.notify({"state": "Failed"})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "url",
    ["no url, secret", "http://[secret", "http://hooks.example/secret", "ftp://hooks.example/secret", "https:///secret",
     "http://127.0.0.1.example/secret", "http://localhost@hooks.example/secret", "file:///secret"],
)  # fmt: skip
def test_only_https_or_this_machine_is_told_and_the_address_is_not_repeated(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOR_WEBHOOK", url)
    with pytest.raises(ConfigError, match="MOR_WEBHOOK: expected an https://") as refused:
        webhook.webhook_address()
    webhook.notify({"state": "Failed"})
    assert "secret" not in f"{refused.value}{capsys.readouterr()}"


def test_the_address_of_a_webhook_that_refuses_is_in_no_message_and_no_log(
    hook: tuple[str, type[Hook]],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.NOTSET)
    url, handler = hook
    monkeypatch.setenv("MOR_WEBHOOK", f"{url}secret")
    handler.codes = [404]
    webhook.notify({"state": "Failed"})
    assert handler.codes == []
    assert handler.got == []  # it would not have been different the next time
    said = capsys.readouterr().err
    assert "did not take" in said
    assert "it answered with 404" in said
    assert "secret" not in said + caplog.text


def test_a_webhook_cannot_send_the_event_elsewhere(
    hook: tuple[str, type[Hook]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = hook
    handler.codes, handler.location = [307], url
    monkeypatch.setenv("MOR_WEBHOOK", url)
    webhook.notify({"state": "Failed"})
    assert handler.got == []
    assert "it answered with 307" in capsys.readouterr().err


def test_a_webhook_that_trickles_its_answer_is_given_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()

    def trickle(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not done.wait(0.2):  # never long enough for httpx's timeout between two pieces
                connection.sendall(b"X-More: 1\r\n")

    monkeypatch.setattr(webhook, "PATIENCE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sender = threading.Thread(target=trickle, args=(listening,), daemon=True)
        sender.start()
        monkeypatch.setenv("MOR_WEBHOOK", f"http://127.0.0.1:{listening.getsockname()[1]}/")
        began = time.monotonic()
        webhook.notify({"state": "Failed"})
        assert time.monotonic() - began < 3
        done.set()
        sender.join(5)
    assert "no answer in 1 s" in capsys.readouterr().err


def test_an_endless_answer_is_not_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sent = []

    def pour(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        connection.recv(65536)
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while len(sent) < 1000:
                connection.sendall(b"x" * 65536)
                sent.append(65536)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        sender = threading.Thread(target=pour, args=(listening,), daemon=True)
        sender.start()
        monkeypatch.setenv("MOR_WEBHOOK", f"http://127.0.0.1:{listening.getsockname()[1]}/")
        webhook.notify({"state": "Failed"})
        sender.join(10)
    assert len(sent) < 1000  # what the sockets' buffers hold, and not 64 MB
    assert capsys.readouterr().err == ""
