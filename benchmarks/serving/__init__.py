"""PD serving on two CPU cores: pdctl's builtin engine beside vLLM with its NIXL connector and router."""
