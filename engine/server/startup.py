"""From a model's name to a runner that has run once."""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pdctl
from engine.args import EngineArgs
from engine.errors import EngineError
from engine.loading.files import ModelFiles, open_model
from pdctl.notify import Notifier

if TYPE_CHECKING:
    from engine.kv.pool import KVPool
    from engine.loading.tokenizer import Tokenizer
    from engine.models.llama import Llama
    from engine.runner.runner import TorchRunner

BLOCK_SIZE = 16  # tokens in a KV block
_PROGRESS_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory, and what was made for it."""

    runner: "TorchRunner"
    pool: "KVPool"
    tokenizer: "Tokenizer"
    max_model_len: int
    vocab_size: int
    compat: str  # equal on engines that can exchange KV


def find_model(args: EngineArgs) -> ModelFiles:
    """Find the model's files and check them against the arguments, without torch. Raises EngineError."""
    files = open_model(args.model)
    longest = files.config.max_positions
    if args.max_model_len is not None and args.max_model_len > longest:
        raise EngineError(f"--max-model-len {args.max_model_len}: {args.model} has {longest} positions")
    return files


def load(args: EngineArgs, files: ModelFiles, notifier: Notifier) -> Loaded:
    """Load the model, make its KV pool and compute a step. Takes seconds. Raises EngineError, MemoryError."""
    from engine.kv.pool import KVPool, available_memory, num_blocks_for
    from engine.loading.model import load_model
    from engine.runner.runner import TorchRunner

    tokenizer = files.load_tokenizer()
    model = load_model(files, args.dtype, _ThrottledProgress(notifier))
    max_model_len = args.max_model_len or files.config.max_positions
    layout = model.kv_layout(BLOCK_SIZE)
    num_blocks = args.num_blocks or num_blocks_for(
        layout, available_bytes=available_memory(), max_num_seqs=args.max_num_seqs, max_model_len=max_model_len
    )
    pool = KVPool(layout, num_blocks, shared=args.role == "decode")
    runner = TorchRunner(model, pool, threads=args.threads)
    _warm_up(runner)
    return Loaded(runner, pool, tokenizer, max_model_len, files.config.vocab_size, _compat(files, model, pool))


def _warm_up(runner: "TorchRunner") -> None:
    """Compute a short prompt and a token after it, in a block that nobody owns yet."""
    from engine.scheduler.batch import Batch, Chunk
    from engine.scheduler.request import Request, SamplingParams, Sequence

    tokens = [0] * runner.block_size
    sequence = Sequence(Request("warm-up", tokens, SamplingParams(max_tokens=1)), 0, tokens, [0])
    runner.execute(Batch([Chunk(sequence, 0, len(tokens) - 1, 0)]))
    runner.execute(Batch([Chunk(sequence, len(tokens) - 1, 1, 1)]))


def _compat(files: ModelFiles, model: "Llama", pool: "KVPool") -> str:
    from engine.transfer.handshake import compat_hash

    return compat_hash(
        {**asdict(files.config), "weights": model.fingerprint},
        dtype=str(model.precision.storage),
        block_size=BLOCK_SIZE,
        layout=pool.layout.describe(),
        version=pdctl.__version__,
    )


class _ThrottledProgress:
    """Reports how much is loaded, ten times a second at most."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next or done == total:
            self._next = now + _PROGRESS_INTERVAL_S
            self._notifier.progress("loading weights", done, total)
