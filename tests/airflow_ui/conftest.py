"""An Airflow of the tests' own; first, as airflow reads its environment when it is imported."""

from airflow_home import airflow_db

__all__ = ["airflow_db"]
