"""One file for each family of checks: from facts to findings, nothing else."""
