"""Airflow's plugin: pages, links on tasks, notifications. Only this package and dags/ know Airflow."""
