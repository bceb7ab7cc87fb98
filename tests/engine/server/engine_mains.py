"""Programs for `python -c`: the engine, with something that happens when a sequence has come to its 64th token, or
with other limits."""

_AT_64 = """
import os, signal, sys, threading
from engine.runner.runner import TorchRunner
from engine.server.process import Ending

def act():
    {action}

def execute(self, batch, original=TorchRunner.execute):
    if batch.chunks[0].start >= 64:
        act()
    return original(self, batch)

signalled = threading.Event()

def on_signal(self, number, original=Ending._on_signal):
    original(self, number)
    signalled.set()

TorchRunner.execute = execute
Ending._on_signal = on_signal
sys.argv[0] = "engine"
from engine.__main__ import main
sys.exit(main())
"""

DYING = _AT_64.format(action="os.kill(os.getpid(), signal.SIGKILL)")
BROKEN = _AT_64.format(action='raise RuntimeError("the runner is broken")')
WAITING_FOR_A_SIGNAL = _AT_64.format(action="signalled.wait()")

# The first such step reads the named pipe HELD_AT: it waits until the test has opened it, and closed it.
HELD = _AT_64.format(action='not os.environ.get("HELD_AT") or open(os.environ.pop("HELD_AT")).read()')

IMPATIENT = """
import sys
from functools import partial
from engine.transfer import receiver, sender
from engine.transfer.base import TransferLimits

receiver.TransferLimits = sender.TransferLimits = partial(TransferLimits, ping_s=0.1, silence_s=1.0)
sys.argv[0] = "engine"
from engine.__main__ import main
sys.exit(main())
"""
