"""A router of several processes: who starts them, and what they share and tell each other."""
