"""What the sentences of the features mean, one module a domain noun. Steps read the target and repair nothing."""
