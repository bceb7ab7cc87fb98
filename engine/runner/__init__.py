"""Batches become tokens."""
