"""What a GPU computes in prefill, as far as it takes time: the linear layers of Qwen3-8B, in bfloat16."""

from collections.abc import Callable

import torch

CHUNK_TOKENS = 2048
CHUNKS = 6
KV_BLOCK_BYTES = 36 * 2 * 8 * 16 * 128 * 2  # layers, K and V, KV heads, tokens of a block, head dim, bfloat16
CHUNK_KV_BYTES = CHUNK_TOKENS // 16 * KV_BLOCK_BYTES

_LAYERS = 36
_HIDDEN, _QKV, _INTERMEDIATE = 4096, 6144, 12288
_WEIGHT_SETS = 4  # more than the L2 cache holds, in less memory than those of all layers


class Prefill:
    """A chain of matrix products. Belongs to one thread at a time."""

    def __init__(self, gpu: int) -> None:
        shapes = ((_QKV, _HIDDEN), (_HIDDEN, _HIDDEN), (2 * _INTERMEDIATE, _HIDDEN), (_HIDDEN, _INTERMEDIATE))

        def matrix(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns, dtype=torch.bfloat16, device=torch.device("cuda", gpu))

        self._gpu = gpu
        self._weights = [[matrix(*shape) * 0.02 for shape in shapes] for _ in range(_WEIGHT_SETS)]
        self._input = matrix(CHUNK_TOKENS, _HIDDEN)
        self._outputs = [matrix(CHUNK_TOKENS, rows) for rows, _ in shapes]
        self._stream = torch.cuda.Stream(gpu)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(gpu)

    def run(self, on_chunk: Callable[[torch.cuda.Event], None]) -> float:
        """Compute the chunks; each one's event is handed over before its kernels have ended. Milliseconds."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with torch.cuda.device(self._gpu), torch.cuda.stream(self._stream):
            begin.record()
            for _ in range(CHUNKS):
                self._chunk()
                computed = torch.cuda.Event()  # type: ignore[no-untyped-call]
                computed.record()
                on_chunk(computed)
            end.record()
        end.synchronize()
        milliseconds: float = begin.elapsed_time(end)
        return milliseconds

    def _chunk(self) -> None:
        qkv, attended, gate_up, down = self._outputs
        for layer in range(_LAYERS):
            weights = self._weights[layer % _WEIGHT_SETS]
            torch.mm(self._input, weights[0].t(), out=qkv)
            torch.mm(qkv[:, :_HIDDEN], weights[1].t(), out=attended)
            torch.mm(self._input, weights[2].t(), out=gate_up)
            torch.mm(gate_up[:, :_INTERMEDIATE], weights[3].t(), out=down)
