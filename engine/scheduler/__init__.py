"""Requests, batches, KV blocks and the prefix cache: pure Python, no torch."""
