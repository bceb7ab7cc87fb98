"""Rich views of a running deployment."""
