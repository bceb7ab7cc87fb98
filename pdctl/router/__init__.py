"""The data plane: forwards requests to prefill and decode engines."""
