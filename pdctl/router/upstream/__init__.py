"""The side of the engines: connections, calls, and the answers that come on them."""
