"""`pdctl bench transfer`: how fast each KV transport is between two hosts or processes."""
