"""The side of the clients: connections, and the requests that come on them."""
