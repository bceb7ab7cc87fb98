"""The HTTP server of one engine process."""
