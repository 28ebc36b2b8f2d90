"""`make backup` and `make restore`: both databases and every object of the S3 service, in one folder.

A backup is taken between nights: while something runs, databases and objects are of different moments. So it is refused
while a run is under way, and thrown away when one started or a person changed something meanwhile. Objects travel
through S3, databases as pg_dump's own archives, so neither depends on the layout of a volume. The secrets are not in
the backup; their fingerprints are, because a dataset is worth nothing with another patient key.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

from stack import ROOT, Compose, Failed

DATABASES = ("airflow", "mlflow")
KEPT = ("XRAY_PATIENT_KEY", "AIRFLOW_FERNET_KEY")
BUSY = """
SELECT count(*) FROM dag_run WHERE state IN ('queued', 'running') AND NOT EXISTS (
    SELECT 1 FROM task_instance AS task
    WHERE task.dag_id = dag_run.dag_id AND task.run_id = dag_run.run_id AND task.state IN ('deferred', 'awaiting_input')
)
"""
"""Runs under way; one that waits for a person's answer changes nothing."""
MOMENT = {
    "airflow": "SELECT count(*), max(id), max(end_date) FROM dag_run",
    "mlflow": "SELECT (SELECT count(*) FROM runs), (SELECT max(last_updated_time) FROM model_versions), "
    "(SELECT string_agg(alias || version, ',' ORDER BY alias) FROM registered_model_aliases)",
}
"""What another night, a promotion or a change by hand would change, by database."""
TABLES = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"


def backup(stack: Compose, folder: Path) -> None:
    """Write a backup of a running stack to a new folder. Raises Failed while something runs, and when a part fails."""
    if busy := int(stack.sql("airflow", BUSY)):
        raise Failed(f"{busy} runs are under way; a backup is taken between nights")
    before = moment(stack)
    folder.mkdir(parents=True, mode=0o700)
    try:
        _write(stack, folder)
        if int(stack.sql("airflow", BUSY)) or moment(stack) != before:
            raise Failed("a run or a change by hand came in between; take the backup again")
    except BaseException:
        shutil.rmtree(folder)
        raise


def moment(stack: Compose) -> dict[str, str]:
    """Return what tells this moment of the databases from another."""
    return {database: stack.sql(database, query) for database, query in MOMENT.items()}


def _write(stack: Compose, folder: Path) -> None:
    for database in DATABASES:
        with (folder / f"{database}.dump").open("wb") as file:
            dump = ("pg_dump", "-U", "postgres", "--format=custom", database)
            stack.run("exec", "-T", "postgres", *dump, stdout=file, seconds=3600)
    with (folder / "objects.tar").open("wb") as file:
        stack.run("run", "--rm", "--no-deps", "-T", "tools", "objects", "save", stdout=file, seconds=86400)
    manifest = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "files": {path.name: digest(path) for path in sorted(folder.iterdir())},
        "secrets": fingerprints(stack),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def restore(stack: Compose, folder: Path) -> None:
    """Put a backup into empty volumes and start the stack. Raises Failed when it isn't whole."""
    manifest = checked(stack, folder)
    stack.run("build", "init", seconds=3600)  # of this version of the code, whatever an earlier image was built from
    stack.up("postgres", "seaweedfs")
    script = "python accounts.py databases && python objects.py buckets incoming xray mlflow"
    stack.run("run", "--rm", "--no-deps", "-T", "--workdir", "/opt/xray/compose", "init", "sh", "-c", script)
    for database in DATABASES:
        if int(stack.sql(database, TABLES)):
            raise Failed(f"database {database} is not empty; restore into new volumes (docker compose down --volumes)")
    with (folder / "objects.tar").open("rb") as file:
        stack.run("run", "--rm", "--no-deps", "-T", "tools", "objects", "load", stdin=file, seconds=86400)
    for database in DATABASES:
        load = ("pg_restore", "-U", "postgres", "--no-owner", f"--role={database}", "--exit-on-error", "-d", database)
        with (folder / f"{database}.dump").open("rb") as file:
            stack.run("exec", "-T", "postgres", *load, stdin=file, seconds=3600)
    stack.up()
    print(f"restored the backup of {manifest['at']}; now run: docker compose exec worker xray verify")


def checked(stack: Compose, folder: Path) -> dict[str, object]:
    """Return a backup's manifest. Raises Failed when a file is not as it was, or the secrets are others."""
    path = folder / "manifest.json"
    if not path.exists():
        raise Failed(f"{folder} holds no whole backup: manifest.json is missing")
    manifest = json.loads(path.read_text())
    for name, wanted in manifest["files"].items():
        if not (folder / name).exists() or digest(folder / name) != wanted:
            raise Failed(f"{folder / name} is not the file that was backed up")
    now = fingerprints(stack)
    changed = [name for name in KEPT if manifest["secrets"][name] != now[name]]
    if changed:
        raise Failed(f"{' and '.join(changed)} in {stack.env_file} are not those of the backup; put the kept file back")
    return dict(manifest)


def fingerprints(stack: Compose) -> dict[str, str]:
    """Return a digest of each secret that a backup can't do without; the secrets are long and random."""
    return {name: hashlib.sha256(f"{name}:{stack.settings[name]}".encode()).hexdigest() for name in KEPT}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["backup", "restore"])
    parser.add_argument("folder", type=Path, nargs="?", help="default for backup: backups/<time>")
    given = parser.parse_args()
    if given.action == "restore" and given.folder is None:
        parser.error("restore: name the backup's folder")
    folder = given.folder or ROOT / "backups" / time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
    try:
        if given.action == "backup":
            backup(Compose(), folder)
            print(f"backup: {folder}")
        else:
            restore(Compose(), folder)
    except (Failed, OSError) as error:
        sys.exit(f"{given.action}: {error}")


if __name__ == "__main__":
    main()
