#!/bin/sh
# Everything the services need to find when they start; running it again changes nothing but passwords that .env changed.
set -eu
cd /opt/xray/compose
python accounts.py databases
python objects.py buckets incoming xray mlflow
airflow db migrate
airflow pools set gpu "$GPU_SLOTS" "one slot for each GPU worker"
python accounts.py airflow
PGPASSWORD=$MLFLOW_DB_PASSWORD MLFLOW_AUTH_CONFIG_PATH=/opt/xray/compose/mlflow-auth.ini python accounts.py mlflow
echo "init: done"
