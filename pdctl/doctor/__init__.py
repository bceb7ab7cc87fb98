"""Looking before leaping: what on the hosts would keep a topology from running, and what mends it."""
