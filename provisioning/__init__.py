"""The one path that builds every target: small actions, each with a check and an apply."""
