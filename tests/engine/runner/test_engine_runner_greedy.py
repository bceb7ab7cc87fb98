"""Greedy output is that of transformers in float32 on the same weights, token by token, however it is computed."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine.loading.files import open_model
from engine.loading.model import load_model
from engine.scheduler.batch import Batch, Chunk
from tests.engine.generation import blocks_in_random_order, decode, load, make_runner, prefill, sequence
from tests.engine.tiny import VOCAB_SIZE

LENGTHS = [1, 2, 15, 16, 17, 31, 64, 100, 257, 700]
STEPS = 24


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(tiny_folder)


@pytest.fixture(scope="module")
def prompts():
    rng = random.Random(5)
    return [[rng.randrange(VOCAB_SIZE) for _ in range(n)] for n in LENGTHS]


@pytest.fixture(scope="module")
def expected(tiny_folder, prompts):
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    return [_transformers_greedy(reference, prompt, STEPS + 1) for prompt in prompts]


def _transformers_greedy(reference, prompt, count):
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(int(reference(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens


def test_alone(model, prompts, expected):
    for prompt, tokens in zip(prompts, expected, strict=True):
        runner = make_runner(model, 100)
        seq = sequence(prompt, blocks_in_random_order(100, seed=len(prompt)))
        prefill(runner, seq)
        decode(runner, [seq], STEPS)
        assert seq.tokens == tokens


@pytest.mark.parametrize("chunk", [16, 48, 50])
def test_batched_and_in_chunks(model, prompts, expected, chunk):
    runner, blocks = make_runner(model), blocks_in_random_order(400)
    sequences = [sequence(prompt, blocks) for prompt in prompts]
    for seq in sequences:
        prefill(runner, seq, chunk)
    decode(runner, sequences, STEPS)
    assert [seq.tokens for seq in sequences] == expected


def test_prompts_and_decodes_in_one_batch(model, prompts, expected):
    """Sequences join one after the other, each with its prompt in chunks beside the others' decodes."""
    runner, blocks = make_runner(model), blocks_in_random_order(400)
    sequences = [sequence(prompt, blocks) for prompt in prompts]
    computed = [0] * len(sequences)
    joined = 0
    while any(len(s.tokens) < len(t) for s, t in zip(sequences, expected, strict=True)):
        joined = min(joined + 1, len(sequences))
        _mixed_step(runner, sequences[:joined], computed, expected)
    assert [seq.tokens for seq in sequences] == expected


def _mixed_step(runner, sequences, computed, expected):
    chunks, owners = [], []
    for i, seq in enumerate(sequences):
        if len(seq.tokens) == len(expected[i]):
            continue
        length = min(100, len(seq.tokens) - computed[i])
        chunks.append(Chunk(seq, computed[i], length, int(computed[i] + length == len(seq.tokens))))
        owners.append(i)
    for i, chunk, tokens in zip(owners, chunks, runner.execute(Batch(chunks)), strict=True):
        assert len(tokens) == chunk.samples
        computed[i] += chunk.length
        sequences[i].tokens.extend(tokens)


def test_from_a_copied_block(model, prompts, expected):
    """A block's copy, made by the batch that needs it, serves as well as the block."""
    runner = make_runner(model)
    first = sequence(prompts[6], iter(range(50)))
    prefill(runner, first)
    second = sequence(prompts[6], iter(range(100, 150)))
    copies = list(zip(first.block_table[:4], second.block_table[:4], strict=True))
    tokens = runner.execute(Batch([Chunk(second, 63, 1, 1)], copies))[0]
    assert tokens == [expected[6][64]]


def test_recomputed_from_the_middle(model, prompts, expected):
    """As after a preemption: prompt and generated tokens are computed again, elsewhere."""
    runner = make_runner(model)
    seq = sequence(prompts[4], blocks_in_random_order(400, seed=1))
    prefill(runner, seq)
    decode(runner, [seq], 10)
    seq.block_table = list(range(300, 310))
    prefill(runner, seq, 16)
    decode(runner, [seq], STEPS - 11)
    assert seq.tokens == expected[4]


@pytest.fixture(scope="module")
def smollm2():
    return open_model("smollm2-135m-instruct")


def test_the_demo_model(smollm2):
    """SmolLM2 from its GGUF file: transformers, shown our answers, would have said each of their tokens."""
    model, tokenizer = load_model(smollm2, "float32"), smollm2.load_tokenizer()
    questions = ["What is the capital of France?", "Count to ten.", "Écris une phrase: " + "bla " * 150]
    blocks, runner = blocks_in_random_order(120), make_runner(model, 120)
    prompts = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in questions]
    sequences = [sequence(prompt, blocks, length=len(prompt) + 16) for prompt in prompts]
    for seq in sequences:
        prefill(runner, seq, 128)
    decode(runner, sequences, 12)
    assert "Paris" in tokenizer.decode(sequences[0].tokens[len(prompts[0]) :])
    reference = _reference_of(smollm2)
    for seq, prompt in zip(sequences, prompts, strict=True):
        with torch.inference_mode():
            said = reference(torch.tensor([seq.tokens])).logits[0].argmax(-1).tolist()
        assert seq.tokens[len(prompt) :] == said[len(prompt) - 1 : -1]


def _reference_of(files):
    config, weights = files.config, files.load_weights()
    reference_config = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_positions,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=True,
    )
    with torch.device("meta"):  # no time is spent on random weights
        reference = LlamaForCausalLM(reference_config)
    reference.load_state_dict({name: weights.tensor(name) for name in weights.names}, strict=False, assign=True)
    reference.tie_weights()
    reference.model.rotary_emb = LlamaRotaryEmbedding(reference_config)
    return reference.eval()
