"""Sabotage: small lies told to a healthy target, to see that its scenarios notice each of them and nothing else."""
