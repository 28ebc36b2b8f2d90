"""The registered model on its way to production: tried, promoted, rolled back, verified."""
