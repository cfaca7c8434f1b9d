"""What a run proves: verdicts of scenarios and promises, the evidence beside them, signed, kept and compared."""
