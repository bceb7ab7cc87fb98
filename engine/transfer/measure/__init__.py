"""The two processes behind `pdctl bench transfer`: the rate of each KV transport, over block sizes and block counts."""
