"""The router beside sglang-router and vllm-router: same mock engines, same client, same two cores."""
