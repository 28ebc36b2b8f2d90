"""The ledger, MLflow's registry, and the decisions that move its aliases."""
