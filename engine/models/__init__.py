"""Model families on shared layers."""
