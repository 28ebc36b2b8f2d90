"""`make backup` and `make restore`: both databases and every object of the S3 service, in one folder.

A backup is taken between nights: while a task runs, databases and objects are of different moments. Objects travel
through S3, databases as pg_dump's own archives, so neither depends on the layout of a volume. The secrets are not in
the backup; their fingerprints are, because a dataset is worth nothing with another patient key.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

from stack import ROOT, Compose, Failed

DATABASES = ("airflow", "mlflow")
KEPT = ("XRAY_PATIENT_KEY", "AIRFLOW_FERNET_KEY")
BUSY = "SELECT count(*) FROM task_instance WHERE state IN ('scheduled', 'queued', 'running', 'restarting')"
TABLES = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"


def backup(stack: Compose, folder: Path) -> None:
    """Write a backup of a running stack to a new folder. Raises Failed while a task runs, and when a part fails."""
    busy = int(stack.sql("airflow", BUSY))
    if busy:
        raise Failed(f"{busy} tasks are under way; a backup is taken between nights")
    folder.mkdir(parents=True, mode=0o700)
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
