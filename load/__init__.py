"""Load in an open model, capacity, and the reports of both."""
