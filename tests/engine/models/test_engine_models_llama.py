"""The families' logits are those of transformers, in float32, on the same weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.attention.sdpa import SdpaAttention
from engine.errors import ModelError
from engine.kv.pool import KVPool
from engine.scheduler.batch import Batch, Chunk
from tests.engine.generation import all_logits, blocks_in_random_order, load, sequence
from tests.engine.tiny import make_tiny_model

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
VARIANTS = {
    "llama": {},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True},
    "many-kv-heads": {"num_key_value_heads": 4},
    "wide-heads": {"head_dim": 32},
    "rope-theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "rope-linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "rope-llama3": {"rope_parameters": LLAMA3_ROPE},
    "rope-older-key": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 32},
}
TOKENS = [(7 * i * i + 3 * i) % 300 for i in range(200)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant, tmp_path):
    folder = make_tiny_model(tmp_path, **VARIANTS[variant])
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = reference(torch.tensor([TOKENS])).logits[0]
    assert expected.std() > 0.5
    torch.testing.assert_close(all_logits(load(folder), TOKENS), expected, atol=2e-4, rtol=1e-4)


def test_bfloat16_rounds_but_says_the_same(tiny_folder):
    exact, rounded = (all_logits(load(tiny_folder, dtype), TOKENS) for dtype in ("float32", "bfloat16"))
    assert not torch.equal(exact, rounded)
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.995


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_cpu_with_bfloat16_says_the_same(tmp_path, monkeypatch, family):
    """All computed in bfloat16, as on a CPU that has instructions for it; this one may emulate them."""
    folder = make_tiny_model(tmp_path, model_type=family)
    exact = all_logits(load(folder), TOKENS)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    model = load(folder, "bfloat16")
    assert model.precision.compute == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(exact, all_logits(model, TOKENS)).min() > 0.98


def test_only_the_rows_asked_for_come_back(tiny_folder):
    model = load(tiny_folder)
    attention = SdpaAttention(KVPool(model.kv_layout(16), 20), torch.float32, model.config.num_heads)
    seq = sequence(TOKENS[:50], blocks_in_random_order(20))
    attention.plan(Batch([Chunk(seq, 0, 50, 1)]))
    rows = torch.tensor([49, 3])
    some = model.hidden_states(torch.tensor(seq.tokens), torch.arange(50), rows, attention)
    torch.testing.assert_close(model.logits(some), all_logits(model, TOKENS[:50])[rows], atol=1e-4, rtol=1e-4)


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    folder = make_tiny_model(tmp_path)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 128', '"intermediate_size": 96'))
    with pytest.raises(ModelError, match=r"has shape \[\d+, \d+\]; the configuration says \[\d+, \d+\]"):
        load(folder)
