"""What a request to engines of one kind looks like: one file per protocol."""
