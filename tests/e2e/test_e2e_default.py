"""What the README promises first: one command without a file, then curl."""

import contextlib
import errno
import socket

import httpx
import pytest

from tests.e2e.e2e_harness import Cli

PORT = 8000
CURL_BODY = '{"messages":[{"role":"user","content":"What is the capital of France?"}],"temperature":0}'


def skip_where_taken(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        pytest.skip(f"port {port}, the default that this test is about, is in use on this machine")


def test_up_without_a_file(cli: Cli) -> None:
    skip_where_taken(PORT)
    up = cli("up", "-d", timeout=240)
    assert up.returncode == 0, up.stdout + up.stderr
    with contextlib.ExitStack() as stack:
        stack.callback(cli, "down")
        cli.note_memory()
        headers = {"content-type": "application/json"}
        url = f"http://localhost:{PORT}/v1/chat/completions"
        reply = httpx.post(url, content=CURL_BODY, headers=headers, timeout=60)
        assert reply.status_code == 200
        assert "Paris" in reply.json()["choices"][0]["message"]["content"]
        status = cli.status()
        assert status["state"] == "ready"
        assert [process["name"] for process in status["processes"]] == ["router", "prefill-0", "decode-0"]
        down = cli("down")
        assert down.returncode == 0, down.stdout + down.stderr
        cli.check_gone()
