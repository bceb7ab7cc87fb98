"""A program in the place of `python -m engine.transfer.measure`, told by MEASURING_CHILD how it behaves."""

import json
import os
import signal
import sys

role = sys.argv[1]
behaviour = os.environ["MEASURING_CHILD"]


def say(message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def log(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if role == "target" and behaviour == "target fails":
    log("no torch here")
    sys.exit(3)
orders = json.loads(sys.stdin.readline() or "null")
if orders is None:
    sys.exit(1)
if role == "target":
    if behaviour != "target is silent":
        say({"port": 4711, "key": "a2V5"})
    log(f"listens on {orders['host']}")
else:
    log(f"connects to {orders['port']} with {orders['key']}")
    say({"event": "links", "links": {"ipc": {"name": "memcpy", "gigabytes_s": 8.0}, "tcp": {"name": "loopback"}}})
    if behaviour == "nothing is usable":
        say({"event": "unusable", "transport": "ipc", "reason": "another host"})
        sys.exit(0)
    say({"event": "cell", "transport": "ipc", "block_bytes": 1024, "in_flight": 8, "bytes": 10**9, "seconds": 0.5})
    if behaviour == "ipc fails":
        say({"event": "failed", "transport": "ipc", "reason": "wrong bytes"})
    if behaviour == "both wait":
        with open(os.environ["MEASURING_CHILD_PIPE"], "w") as pipe:
            pipe.write(f"{os.getpid()}\n")
    if behaviour == "source is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "target is killed":
        log("the target has gone")
        sys.exit(1)
    if behaviour == "source closes its output":
        os.close(1)
if role == "target" and behaviour == "target is killed":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour in ("both wait", "source closes its output", "target is silent", "source is silent"):
    sys.stdin.read()
