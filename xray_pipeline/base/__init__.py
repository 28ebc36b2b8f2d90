"""What every room stands on: settings, the store, errors, logs, text."""
