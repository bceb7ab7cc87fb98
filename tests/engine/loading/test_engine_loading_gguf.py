import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from engine.errors import ModelError
from engine.loading.files import open_model
from tests.engine.generation import all_logits, load
from tests.engine.tiny import make_tiny_model
from tests.engine.tiny_gguf import make_gguf

TOKENS = [(5 * i * i + i) % 300 for i in range(60)]
QUANTIZED = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_gguf_file_is_its_folder(tmp_path, family):
    folder = make_tiny_model(tmp_path / "folder", model_type=family)
    make_gguf(folder, tmp_path / "model.gguf")
    in_file, in_folder = open_model(str(tmp_path / "model.gguf")), open_model(str(folder))
    assert in_file.config.norm_eps == pytest.approx(in_folder.config.norm_eps)
    assert replace(in_file.config, norm_eps=in_folder.config.norm_eps) == in_folder.config
    assert torch.equal(all_logits(load(tmp_path / "model.gguf"), TOKENS), all_logits(load(folder), TOKENS))


def test_untied_embeddings(tmp_path):
    folder = make_tiny_model(tmp_path / "folder", tie_word_embeddings=False)
    make_gguf(folder, tmp_path / "model.gguf")
    assert torch.equal(all_logits(load(tmp_path / "model.gguf"), TOKENS), all_logits(load(folder), TOKENS))


@pytest.mark.parametrize("kind", QUANTIZED)
def test_types(tmp_path, kind):
    """Matrices come back as their type holds them, rows in Hugging Face's order."""
    kind = GGMLQuantizationType[kind]
    tensors = make_gguf(make_tiny_model(tmp_path / "folder"), tmp_path / "model.gguf", kind)
    weights = open_model(str(tmp_path / "model.gguf")).load_weights()
    assert set(weights.names) == set(tensors)
    for name, tensor in tensors.items():
        expected = tensor if tensor.dim() == 1 else torch.from_numpy(dequantize(quantize(tensor.numpy(), kind), kind))
        assert torch.equal(weights.tensor(name), expected.view(tensor.shape)), name


def test_k_quants(tmp_path):
    """Nothing in Python writes their longer blocks, so that the bytes are any that make finite numbers."""
    folder = make_tiny_model(tmp_path / "folder", hidden_size=256, intermediate_size=256, head_dim=64)
    path, name, kind = tmp_path / "model.gguf", "model.layers.0.mlp.up_proj.weight", GGMLQuantizationType.Q4_K
    make_gguf(folder, path, GGMLQuantizationType.Q8_0)
    _retype(path, "ffn_up", GGMLQuantizationType.Q8_0, kind)
    weights = open_model(str(path)).load_weights()
    info = weights._infos[name]
    block_bytes = np.random.default_rng(0).integers(0x20, 0x40, (256, 144), dtype=np.uint8)
    with path.open("r+b") as file:
        file.seek(info.offset)
        file.write(block_bytes.tobytes())
    assert torch.equal(weights.tensor(name), torch.from_numpy(dequantize(block_bytes, kind)))


def _retype(path, part, old, new):
    """Say in the header that a tensor of every layer has another type, of fewer bytes."""
    data = bytearray(path.read_bytes())
    name = f"{part}.weight".encode()
    start = 0
    while (start := data.find(name, start)) >= 0:
        start += len(name)
        kind_at = start + 4 + 2 * 8  # behind the number of dimensions and the dimensions
        assert data[kind_at] == old
        data[kind_at] = new
    path.write_bytes(data)


def test_tokenizer_is_that_of_the_folder(tmp_path, tiny_folder):
    make_gguf(tiny_folder, tmp_path / "model.gguf")
    ours, theirs = (open_model(str(path)).load_tokenizer() for path in (tmp_path / "model.gguf", tiny_folder))
    for text in ("Hello 123  dog.\n\n ok", "<|im_start|>the fox<|im_end|>", "é🙂\r\n"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    chat = [{"role": "user", "content": "the dog"}]
    assert ours.encode_chat(chat) == theirs.encode_chat(chat)
    assert ours.eos_token_ids == theirs.eos_token_ids


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["We", "'ll", " see", " 12345", "  ", " ok", "!\n\n"]),
        ("smollm", ["We", "'ll", " see", " ", "1", "2", "3", "4", "5", "  ", " ok", "!\n\n"]),
        ("llama-bpe", ["We", "'ll", " see", " ", "123", "45", "  ", " ok", "!\n\n"]),
        ("qwen2", ["We", "'ll", " see", " ", "1", "2", "3", "4", "5", "  ", " ok", "!\n\n"]),
    ],
)
def test_pre_tokenizers_split(tmp_path, tiny_folder, pre, pieces):
    if pre in ("gpt-2", "smollm"):
        pieces = [*pieces[:-1], "!", "\n\n"]
    make_gguf(tiny_folder, tmp_path / "model.gguf", tokenizer__ggml__pre=pre)
    backend = open_model(str(tmp_path / "model.gguf")).load_tokenizer()._backend
    text = "".join(pieces)
    assert [text[a:b] for _, (a, b) in backend.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_beginning_of_text(tmp_path, tiny_folder):
    make_gguf(tiny_folder, tmp_path / "with.gguf", tokenizer__ggml__add_bos_token=True)
    tokenizer = open_model(str(tmp_path / "with.gguf")).load_tokenizer()
    assert tokenizer.encode("dog")[0] == 1
    assert tokenizer.encode("dog", add_special_tokens=False) == tokenizer.encode("dog")[1:]


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"general__architecture": "mamba"}, "holds a 'mamba' model; this engine runs llama, "),
        ({"llama__embedding_length": None}, "no metadata 'llama.embedding_length'"),
        ({"llama__embedding_length": "x"}, "metadata 'llama.embedding_length' is str, not int"),
        ({"llama__rope__scaling__type": "yarn"}, "scales its rotary positions by 'yarn'"),
        ({"llama__rope__dimension_count": 8}, "rotates 8 of 16 dimensions"),
        ({"split__count": 3}, "one of several parts"),
        ({"tokenizer__ggml__model": "llama"}, "tokenizer of kind 'llama'"),
        ({"tokenizer__ggml__pre": "viking"}, "splits words by 'viking'; this engine knows gpt-2, "),
        ({"tokenizer__ggml__merges": ["no such"]}, "its tokenizer's merges"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, tiny_folder, metadata, reason):
    make_gguf(tiny_folder, tmp_path / "model.gguf", **metadata)
    with pytest.raises(ModelError, match=f"model.gguf .*{reason}") as caught:
        open_model(str(tmp_path / "model.gguf")).load_tokenizer()
    assert "\n" not in str(caught.value)


def test_linear_rope_scaling(tmp_path, tiny_folder):
    more = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0}
    make_gguf(tiny_folder, tmp_path / "model.gguf", **more)
    assert open_model(str(tmp_path / "model.gguf")).config.rope_factor == 4.0


def test_rope_divisors(tmp_path):
    """Llama 3's stretched frequencies come as a tensor: the same as by the parameters of a folder's configuration."""
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 64, "rope_theta": 10000.0}
    stretched = load(make_tiny_model(tmp_path / "stretched", rope_parameters=rope))
    plain = load(make_tiny_model(tmp_path / "plain"))
    divisors = plain._rotary._frequencies / stretched._rotary._frequencies
    path = tmp_path / "model.gguf"
    make_gguf(tmp_path / "plain", path, extra={"rope_freqs.weight": divisors})
    torch.testing.assert_close(all_logits(load(path), TOKENS), all_logits(stretched, TOKENS), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def gguf_bytes(tiny_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    make_gguf(tiny_folder, path, GGMLQuantizationType.Q8_0)
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.1, 0.5, 0.99, 0.99999])
def test_a_truncated_file_is_one_clear_line(tmp_path, gguf_bytes, share):
    path = tmp_path / "short.gguf"
    kept = int(len(gguf_bytes) * share)
    path.write_bytes(gguf_bytes[:kept])
    with pytest.raises(ModelError, match=r"^short\.gguf is (truncated: .*|no GGUF file|empty)") as caught:
        open_model(str(path))
    assert "\n" not in str(caught.value)
    if share > 0.3:
        assert f"{kept:,} bytes" in str(caught.value)


def test_the_size_that_is_expected_is_named(tmp_path, gguf_bytes):
    path = tmp_path / "short.gguf"
    path.write_bytes(gguf_bytes[:-1])
    with pytest.raises(ModelError, match=rf"{len(gguf_bytes) - 1:,} bytes, {len(gguf_bytes):,} expected"):
        open_model(str(path))


def test_a_damaged_file_never_makes_another_error(tmp_path, gguf_bytes):
    rng = random.Random(1)
    path = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(300):
        data = bytearray(gguf_bytes)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(min(len(data), 12_000))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            open_model(str(path)).load_tokenizer()
        except ModelError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert refused > 30
