"""What is told to operators: metrics, the access log, traces."""
