"""A tiny random Llama with its tokenizer, in a Hugging Face folder: loads in milliseconds, says nonsense."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
EOS_TOKEN_ID = 2
VOCAB_SIZE = 300
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CORPUS = ["The quick brown fox jumps over the lazy dog, and then the other one there.", "in on at the and 12 345"]


def make_tiny_model(folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write a random 2-layer Llama in bfloat16 with a byte-level BPE tokenizer of 300 tokens; return the folder.

    ``overrides`` replace keys of config.json; transformers loads the result too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {**_CONFIG, **overrides}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG))
    return folder


_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": EOS_TOKEN_ID,
    "torch_dtype": "bfloat16",
}

_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|im_end|>",
    "chat_template": CHAT_TEMPLATE,
    "model_max_length": 2048,
    "clean_up_tokenization_spaces": False,
}


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS * 2, trainer)
    return tokenizer


def _weights(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 0.3) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(torch.bfloat16)

    hidden, intermediate, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    weights = {"model.embed_tokens.weight": random(config["vocab_size"], hidden, scale=1.0)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", heads * dim), ("k", kv_heads * dim), ("v", kv_heads * dim)):
            weights[f"{prefix}self_attn.{name}_proj.weight"] = random(rows, hidden)
            if config["model_type"] == "qwen2" or config["attention_bias"]:
                weights[f"{prefix}self_attn.{name}_proj.bias"] = random(rows)
        if config["attention_bias"]:
            weights[f"{prefix}self_attn.o_proj.bias"] = random(hidden)
        weights[f"{prefix}self_attn.o_proj.weight"] = random(hidden, heads * dim)
        weights[f"{prefix}mlp.gate_proj.weight"] = random(intermediate, hidden)
        weights[f"{prefix}mlp.up_proj.weight"] = random(intermediate, hidden)
        weights[f"{prefix}mlp.down_proj.weight"] = random(hidden, intermediate)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}{name}.weight"] = 1 + random(hidden, scale=0.1)
        if config["model_type"] == "qwen3":
            for name in ("q_norm", "k_norm"):
                weights[f"{prefix}self_attn.{name}.weight"] = 1 + random(dim, scale=0.1)
    weights["model.norm.weight"] = 1 + random(hidden, scale=0.1)
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = random(config["vocab_size"], hidden)
    return weights
