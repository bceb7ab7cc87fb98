"""The builtin engine: an OpenAI-compatible torch engine that can split prefill and decode between processes."""
