"""The `xray` command."""
