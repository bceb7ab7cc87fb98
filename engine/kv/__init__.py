"""The KV pool."""
