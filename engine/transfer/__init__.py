"""KV transfer from prefill to decode engines: handshake, wire messages, and one file per transport."""
