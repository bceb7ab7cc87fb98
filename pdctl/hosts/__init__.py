"""Reaching a host: how bytes get to its agent."""
