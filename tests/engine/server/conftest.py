import asyncio

import pytest
from aiohttp.test_utils import TestClient, TestServer
from engine_process import FLAGS, EngineProcess
from server_fakes import ByteTokenizer, FakeCore

from engine.args import parse_args
from engine.server.app import make_app
from engine.server.state import Backend, ServerState
from tests.engine.tiny import make_tiny_model

TOKEN = "s3cret"
MAX_MODEL_LEN = 128


@pytest.fixture
async def state():
    args = parse_args(["--model", "tiny", "--served-model-name", "chat"])
    return ServerState(args, TOKEN, asyncio.get_running_loop())


@pytest.fixture
def tokenizer():
    return ByteTokenizer()


@pytest.fixture
def core(state, tokenizer):
    core = FakeCore(state.streams.on_tokens, tokenizer)
    yield core
    core.stop()


@pytest.fixture
async def client(state, core, tokenizer):
    state.ready(Backend(core, tokenizer, MAX_MODEL_LEN, tokenizer.vocab_size))
    server = TestServer(make_app(state))
    async with TestClient(server) as client:
        yield client


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def start(model):
    def start(*flags, **options):
        return EngineProcess("--model", str(model), "--served-model-name", "tiny", *FLAGS, *flags, **options)

    return start


@pytest.fixture(scope="module")
def mixed(start):
    with start() as engine:
        yield engine.ready()


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(TOKEN)
    return {"PDCTL_TOKEN_FILE": str(path)}


@pytest.fixture(scope="module")
def pair(start, token_file):
    with (
        start("--splitwise-role", "prefill", env=token_file) as prefill,
        start("--splitwise-role", "decode", env=token_file) as decode,
    ):
        yield prefill.ready(), decode.ready()
