"""KV transfer between two processes, beside the fastest that the machine can do and beside other libraries."""
