"""Applying a plan, watching it, and tearing it down."""
