"""pdctl: prefill/decode disaggregated LLM serving from one topology file."""

__version__ = "0.1.0"
