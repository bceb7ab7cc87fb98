"""What the user wrote: models, loading, JSON Schema."""
