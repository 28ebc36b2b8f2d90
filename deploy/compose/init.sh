#!/bin/sh
# Everything the services need to find when they start; running it again changes nothing but passwords that .env changed.
set -eu
cd /opt/xray/compose
python accounts.py databases
python objects.py buckets incoming xray mlflow
python objects.py probe
airflow db migrate
# A task beyond what the workers run at once must wait for its slot: Airflow fails one that is queued for half an hour.
airflow pools set gpu "$GPU_SLOTS" "one slot for each GPU worker"
airflow pools set default_pool "$WORKER_SLOTS" "one slot for each task that the light workers run at once"
python accounts.py airflow
PGPASSWORD=$MLFLOW_DB_PASSWORD MLFLOW_AUTH_CONFIG_PATH=/opt/xray/compose/mlflow-auth.ini python accounts.py mlflow
echo "init: done"
