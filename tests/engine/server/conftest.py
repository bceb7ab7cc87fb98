import asyncio

import pytest
from aiohttp.test_utils import TestClient, TestServer
from server_fakes import ByteTokenizer, FakeCore

from engine.args import parse_args
from engine.server.app import make_app
from engine.server.state import Backend, ServerState

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
