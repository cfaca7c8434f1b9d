"""The lies, by layer of the target."""
