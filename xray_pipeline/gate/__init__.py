"""Evidence and a policy to a decision; pure."""
