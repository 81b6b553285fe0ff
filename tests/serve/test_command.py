"""``gradatim serve`` as a process: it answers until it is interrupted; ports, addresses and extras that are missing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from gradatim.cli.main import main
from gradatim.serve.page import PAGE

URL = "/v1/completions"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    (folder / "text.txt").write_text("the more i read the more i learn\n" * 20, encoding="utf-8")
    command = ["train", "bigram", "--run", str(folder / "run"), "--data.train", str(folder / "text.txt"),
               "--data.valid", "", "--data.cache", str(folder / "cache"), "--model.discount_fallback", "true",
               "--data.tokenizer.kind", "char", "--json"]  # fmt: skip
    assert main(command) == 0
    return folder / "run"


def fetch(url, body=None, key=None):
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=20) as answer:
        return answer.read()


def test_the_command_serves_until_it_is_interrupted(run: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("k\n")
    command = [sys.executable, "-m", "gradatim", "serve", str(run), "--port", "0", "--api-key-file",
               str(tmp_path / "keys"), "--json"]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        told = json.loads(process.stdout.readline())
        assert told["model"] == "run"
        assert told["url"] == f"http://127.0.0.1:{told['port']}"
        assert json.loads(fetch(told["url"] + "/health"))["status"] == "ok"
        assert fetch(told["url"] + "/").decode() == PAGE
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetch(told["url"] + "/v1/models")
        assert refused.value.code == 401
        refused.value.close()
        body = {"model": "run", "prompt": "the", "max_tokens": 8, "seed": 1, "stream": True}
        assert fetch(told["url"] + URL, body, "k").endswith(b"data: [DONE]\n\n")
        # A stream is being written when Ctrl-C comes.
        with socket.create_connection(("127.0.0.1", told["port"])) as client:
            raw = json.dumps({"prompt": "the", "max_tokens": 4096, "n": 16, "stream": True, "top_k": 1}).encode()
            head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
            assert client.recv(100).startswith(b"HTTP/1.1 200")
            process.send_signal(signal.SIGINT)
            while client.recv(65536):
                pass
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, "", "stopped\n")
    finally:
        process.kill()
        process.communicate()


def test_a_port_in_use_is_one_clear_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(run), "--port", str(port)]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert f"got: 127.0.0.1:{port}" in err
    assert "the port is in use" in err
    assert main(["serve", str(run), "--host", "192.0.2.1"]) == 5
    assert main(["serve", str(run.parent / "none")]) == 4


def test_without_the_extra_it_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(run)]) == 5
    assert "pip install 'gradatim[serve]'" in capsys.readouterr().err
