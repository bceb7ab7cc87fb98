"""The three loads that both systems are put under."""

from dataclasses import dataclass

from pdctl.bench.dataset import SyntheticDataset
from pdctl.bench.records import Workload


@dataclass(frozen=True)
class Load:
    """One row of the comparison: a closed loop and the figures to quote of it."""

    title: str
    concurrency: int
    requests: int
    input_tokens: int
    output_tokens: int
    figures: tuple[str, ...]  # keys of the benchmark's JSON, or "input_throughput"

    def workload(self, seed: int) -> Workload:
        """Return the load with prompts that no earlier seed had, so that no prefix cache serves them."""
        dataset = SyntheticDataset(self.input_tokens, self.output_tokens, seed)
        return Workload(dataset=dataset, concurrency=self.concurrency, requests=self.requests, endpoint="completions")


LOADS = (
    Load("single stream", 1, 4, 130, 128, ("output_throughput", "median_ttft_ms", "median_tpot_ms")),
    Load("8 streams", 8, 24, 130, 128, ("output_throughput", "median_ttft_ms", "median_tpot_ms")),
    Load("long prompts", 4, 12, 800, 1, ("input_throughput", "median_ttft_ms")),
)
