"""Who may do what: API keys, the deployment's token, TLS."""
