"""TLS towards clients: what works without it works with it, and files that cannot be used are explained."""

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from router_mocks import ANSWER, CHAT, LIMIT, PROMPT, MockEngine, Running, Turn, engine, hold, quick, running
from router_processes import process, ready

from pdctl.errors import ExitCode, PdctlError
from pdctl.router.access.tls import server_context


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    kind = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl(*kind, "-keyout", str(key), "-out", str(certificate), *names)
    return str(certificate), str(key)


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=LIMIT)


def trusting(certificate: str, alpn: list[str] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificate)
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def https(at: Running, certificate: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"https://127.0.0.1:{at.port}", timeout=LIMIT, verify=trusting(certificate))


@asynccontextmanager
async def secured(
    files: tuple[str, str], on_request: Callable[[Turn], Awaitable[None]] = hold
) -> AsyncIterator[tuple[Running, MockEngine, httpx.AsyncClient]]:
    """A router with a certificate, an engine of it, and a client."""
    async with (
        engine(on_request) as mixed,
        running(certificate=files[0], private_key=files[1]) as at,
        https(at, files[0]) as http,
    ):
        payload = {"role": "mixed", "host_ip": "127.0.0.1", "port": mixed.port}
        assert (await http.post("/register", json=payload)).status_code == 200
        yield at, mixed, http


async def test_answers_and_streams_on_a_kept_alive_connection(files: tuple[str, str]):
    async def stream(turn: Turn) -> None:
        if not turn.json.get("stream"):
            await turn.answer(ANSWER)
            return
        await turn.start_stream()
        for number in range(5):
            await turn.event({"n": number})
        await turn.end_stream()

    async with secured(files, stream) as (at, _, http):
        for _ in range(3):
            assert (await http.post(CHAT, json=PROMPT)).json() == ANSWER
            async with http.stream("POST", CHAT, json=PROMPT | {"stream": True}) as response:
                lines = [line async for line in response.aiter_lines() if line]
            assert lines == [f'data: {{"n": {number}}}' for number in range(5)]
        assert len(at.router.server.clients) == 1


async def test_a_large_body_each_way(files: tuple[str, str]):
    async def echo(turn: Turn) -> None:
        await turn.answer(turn.json)

    async with secured(files, echo) as (_, _, http):
        text = "x" * 3_000_000
        answer = await http.post(CHAT, json=PROMPT | {"text": text})
        assert answer.json()["text"] == text


async def connect(at: Running, certificate: str, alpn: list[str] | None = None):
    async with asyncio.timeout(LIMIT):
        return await asyncio.open_connection("127.0.0.1", at.port, ssl=trusting(certificate, alpn))


async def test_http2_is_not_offered(files: tuple[str, str]):
    async with running(certificate=files[0], private_key=files[1]) as at:
        for alpn, chosen in ((["h2"], None), (["h2", "http/1.1"], "http/1.1"), (None, None)):
            _, writer = await connect(at, files[0], alpn)
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == chosen
            assert writer.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
            writer.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"200"),
        (b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n" % CHAT.encode() + b"x" * 5_000_000, b"413"),
    ],
    ids=["malformed", "the last", "unread"],
)
async def test_an_answer_that_is_the_last_arrives_whole(files: tuple[str, str], sent: bytes, status: bytes):
    """Without TLS the connection is half-closed here, which TLS cannot do."""
    async with running(certificate=files[0], private_key=files[1]) as at:
        reader, writer = await connect(at, files[0])
        writer.write(sent)
        async with asyncio.timeout(LIMIT):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 " + status)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"connection: close" in head.lower()
        json.loads(body)
        writer.close()


async def test_a_broken_stream_is_cut_after_its_error(files: tuple[str, str]):
    async with secured(files) as (_, mixed, http):
        sending = asyncio.create_task(http.send(http.build_request("POST", CHAT, json=PROMPT), stream=True))
        turn = await mixed.turn()
        await turn.start_stream()
        await turn.event({"n": 1})
        response = await sending
        turn.drop()
        received = bytearray()
        with pytest.raises(httpx.RemoteProtocolError):
            await collect(response, received)
        assert received.startswith(b'data: {"n": 1}\n\nevent: error\ndata: {"error":')


async def collect(response: httpx.Response, received: bytearray) -> None:
    async for piece in response.aiter_raw():
        received += piece


async def test_a_client_that_leaves_is_noticed(files: tuple[str, str]):
    async with secured(files) as (at, mixed, _):
        body = json.dumps(PROMPT).encode()
        _, writer = await connect(at, files[0])
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body))
        writer.write(head + body)
        turn = await mixed.turn()
        writer.close()
        await turn.peer_left()


async def test_who_does_not_speak_tls_gets_no_answer_and_harms_nobody(files: tuple[str, str]):
    async with running(certificate=files[0], private_key=files[1], limits=quick(head_timeout=0.1)) as at:
        assert b"HTTP" not in await at.say(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await at.say(b"") == b"", "a client that says nothing is not waited for"
        async with https(at, files[0]) as http:
            assert (await http.get("/health/live")).status_code == 200


async def test_several_workers_and_a_drain(files: tuple[str, str]):
    flags = ("--workers", "2", "--ssl-certfile", files[0], "--ssl-keyfile", files[1], "--drain-secs", "30")
    async with ready(*flags) as router, engine(hold) as mixed, router.http() as http:
        assert (await router.register("mixed", mixed)).status_code == 200
        request = asyncio.create_task(http.post(CHAT, json=PROMPT))
        turn = await mixed.turn()
        router.kill()
        await router.wait_for_log("stopping: 1 requests in flight")
        await turn.answer(ANSWER)
        assert (await request).json() == ANSWER
        assert await router.exit() == 0
        assert "Traceback" not in router.log


def refusal(certificate: object, key: object) -> str:
    with pytest.raises(PdctlError) as caught:
        server_context(str(certificate), str(key))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_cannot_be_used(files: tuple[str, str], tmp_path: Path):
    missing, empty, other = tmp_path / "missing.pem", tmp_path / "empty.pem", tmp_path / "other.pem"
    encrypted = tmp_path / "encrypted.pem"
    empty.write_text("")
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(other))
    openssl("ec", "-in", files[1], "-aes256", "-passout", "pass:secret", "-out", str(encrypted))
    assert refusal(missing, files[1]) == f"--ssl-certfile: cannot read {missing}: No such file or directory"
    assert refusal(files[0], missing) == f"--ssl-keyfile: cannot read {missing}: No such file or directory"
    assert refusal(files[0], tmp_path) == f"--ssl-keyfile: cannot read {tmp_path}: Is a directory"
    assert f"{empty} and {files[1]} are no certificate and its key in PEM" in refusal(empty, files[1])
    assert f"{files[0]} and {empty} are no certificate and its key in PEM" in refusal(files[0], empty)
    assert refusal(files[0], other).endswith("(KEY_VALUES_MISMATCH)")
    assert refusal(files[0], encrypted) == (f"--ssl-keyfile: {encrypted} is encrypted: give a key without a passphrase")


async def test_they_are_refused_by_one_line(files: tuple[str, str]):
    async with process("--ssl-certfile", files[0], "--ssl-keyfile", files[0]) as router:
        assert await router.exit() == ExitCode.FAILURE
        assert router.log.count("\n") == 1
        assert "ERROR --ssl-certfile, --ssl-keyfile: " in router.log
