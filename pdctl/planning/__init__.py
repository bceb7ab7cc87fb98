"""Topology, profiles and inventory become a plan (pure)."""
