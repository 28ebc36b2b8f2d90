"""The steps in order, and what puts rooms together: promotion, trial, reproduce, summary."""
