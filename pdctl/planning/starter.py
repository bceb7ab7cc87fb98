"""A first topology file for a machine, with comments that say what can be changed."""

import yaml

from pdctl.planning.inventory import Inventory
from pdctl.profiles import Profile
from pdctl.topology.models import DEFAULT_MODEL

PORTS = range(8000, 8010)  # the router's, in the order in which they are tried

_TEMPLATE = """\
# yaml-language-server: $schema=./topology.schema.json
# `pdctl schema > topology.schema.json` writes that file: your editor then completes and checks this one.
#
# For {hostname}: {cpus} CPUs, {memory} GiB of memory, GPUs: {gpus}.
# Start it with `pdctl up {file}`; `pdctl plan {file}` shows first what that will run.

name: {name:<23} # tells deployments apart; several can run at once
model: {model}  # an alias, a folder, a GGUF file or a hub id
engine: {engine:<21} # a profile's name, or the path of one

router:
  port: {port:<21} # what clients talk to; 0: any free one
  prefill_policy: process_tokens # or cache_aware, session_affinity, ...: see docs/topology.md
  decode_policy: request_num  # likewise

hosts:
  here: local                 # this machine

prefill:                      # computes prompts
  - host: here
    replicas: {prefill_replicas}
    {prefill_gpus}
    # args: {{max-model-len: 2048}}  # flags for the engine, without their dashes

decode:                       # generates answers
  - host: here
    replicas: {decode_replicas}
    {decode_gpus}
    # args: {{max-num-seqs: 64}}

# Instead of prefill and decode, for engines that do both:
# mixed: 2
"""


def write_starter(file: str, name: str, profile: Profile, inventory: Inventory) -> str:
    """Return the text of a topology of prefill and decode engines that share what the machine has."""
    gpus = [gpu.index for gpu in inventory.gpus if gpu.is_free] if profile.gpus != "none" else []
    half = len(gpus) // 2
    return _TEMPLATE.format(
        file=file,
        name=yaml.safe_dump(name).splitlines()[0],  # in quotes where it would read as a number
        hostname=inventory.hostname,
        cpus=inventory.cpus,
        memory=round(inventory.memory_bytes / 2**30),
        gpus=", ".join(f"{gpu.index} ({gpu.name})" for gpu in inventory.gpus) or inventory.gpu_problem or "none",
        model=DEFAULT_MODEL,
        engine=profile.name,
        port=next((port for port in PORTS if port not in inventory.taken_ports), 0),
        prefill_replicas=max(1, half),
        prefill_gpus=_gpus_line(gpus[:half]),
        decode_replicas=max(1, len(gpus) - half) if half else 1,
        decode_gpus=_gpus_line(gpus[half:] if half else []),
    )


def _gpus_line(gpus: list[int]) -> str:
    return f"gpus: {gpus}" if gpus else "# gpus: [0]               # one for each replica, times tp"
