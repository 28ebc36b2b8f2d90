"""One delivery to verdicts and a commit."""
