"""Targets, one TOML file each, and the model that reads them."""
