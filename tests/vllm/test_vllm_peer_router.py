"""Real vLLM on the CPU behind vllm-router, by the same example. Run by `make test-vllm`."""

import json
from pathlib import Path

import httpx
import pytest

from tests.vllm.vllm_deployment import LIMIT_S, QUESTION, load_of, vllm

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def test_the_same_through_vllm_router(tmp_path: Path):
    with vllm(tmp_path, router="vllm-router") as cli:
        endpoint = cli.status()["endpoint"]
        messages = [{"role": "user", "content": QUESTION}]
        body = {"model": "smollm2", "messages": messages, "max_tokens": 16, "temperature": 0}
        answer = httpx.post(f"{endpoint}/v1/chat/completions", json=body, timeout=LIMIT_S)
        assert "Rome" in json.dumps(answer.json())
        assert load_of(cli, "decode-0")["transferred_tokens"] > 0
