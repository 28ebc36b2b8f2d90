"""What the `xray` command answers beside the steps of the night."""
