"""Every setting, once. Each field is read from the environment as XRAY_<FIELD>; none is read anywhere else.

Rules that decide what enters the dataset (`IntakeRules`) are a value of their own, because their digest is kept beside
each delivery's result: a delivery is judged again when its files or the rules change.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from xray_pipeline.base.errors import ConfigError

SHORTEST_KEY = 22
"""Characters of a patient key that is set: 128 random bits take as many in base64."""


def _words(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [word for word in map(str.strip, value.split(",")) if word]


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
"""A list as people write it (A,B) or as JSON."""


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return pattern


Regex = Annotated[str, AfterValidator(_compiles)]
SplitMode = Literal["patient", "given"]
Promotion = Literal["approve", "auto"]
# A star stands for the rest of a longer word; one letter alone would be found in nearly any text.
Word = Annotated[str, StringConstraints(pattern=r"^[*=]?(\p{L}[^*=]+|[^\x00-\x7F])\*?$", max_length=64)]


class IntakeRules(BaseModel):
    """What a file and a delivery must be to enter the dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_file_bytes: int = Field(200_000_000, gt=0, description="larger files are quarantined unread")
    max_pixels: int = Field(100_000_000, gt=0, description="width x height a header may claim")
    min_side: int = Field(64, gt=0, description="shortest side in pixels")
    max_aspect: float = Field(4.0, gt=1, description="longest side over shortest side")
    png_bits: int = Field(
        0, ge=0, le=16, description="bits of the values in a 16-bit PNG, 8 to 16; 0: what its brightest pixel says"
    )
    max_quarantined_share: float = Field(0.2, ge=0, le=1, description="of a delivery's files, duplicates aside")
    min_files: int = Field(1, ge=1, description="accepted files a delivery must bring")
    max_class_share: float = Field(1.0, gt=0, le=1, description="largest share one class may have of what is accepted")
    drift: Literal["warn", "stop"] = Field("warn", description="stop: a delivery with a drift alarm is rejected")
    drift_false_alarms: float = Field(0.01, gt=0, le=0.2, description="share of like deliveries that raise an alarm")
    drift_min_patients: int = Field(10, ge=2, description="patients a delivery needs for drift to be measured")
    drift_min_dataset: int = Field(100, ge=10, description="patients the dataset needs for drift to be measured")
    max_leak_share: float = Field(0.1, ge=0, le=1, description="files whose image or patient is on another side too")
    patient_pattern: Regex = Field(
        r"^(person\d+_(?:bacteria|virus)|(?:NORMAL2-)?IM-\d+|patient\d+)(?=[-_.])",
        description="regular expression on a file's name; its first group is the patient",
    )
    chest_words: tuple[Word, ...] = Field((), description="JSON list: a site's further words for the chest in DICOM")
    lateral_words: tuple[Word, ...] = Field((), description="JSON list: further words for lateral and oblique views")

    @field_validator("png_bits")
    @classmethod
    def _bits_are_a_depth(cls, bits: int) -> int:
        if 0 < bits < 8:
            raise ValueError("png_bits must be 0 or 8 to 16")
        return bits

    def digest(self) -> str:
        """Return the SHA-256 of these rules in hexadecimal, 64 characters."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class Settings(BaseSettings):
    """Settings of one installation. Nested fields are set as XRAY_RULES__MIN_SIDE=32."""

    def __init__(self, **values: Any) -> None:
        """Read the environment; `values` come first. Raises ConfigError, which names the variable and no secret."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_first(error)) from None
        except SettingsError as error:
            name = str(error).partition('field "')[2].partition('"')[0].upper()
            raise ConfigError(f"XRAY_{name} or one of XRAY_{name}__...: what should be JSON is not") from None

    model_config = SettingsConfigDict(
        env_prefix="XRAY_", env_nested_delimiter="__", frozen=True, extra="ignore", validate_default=True
    )

    home: Path = Field(Path("xray-data"), description="folder of everything below that is not set by itself")
    incoming: str = Field("", description="folder or s3:// prefix whose sub-folders are deliveries; <home>/incoming")
    store: str = Field("", description="folder or s3:// prefix of the dataset, ledger and checkpoints; <home>/store")
    cache: Path = Field(Path(), description="this machine's own folder for pixels and features; <home>/cache")
    s3_endpoint: str = Field("", description="endpoint of an S3 service other than Amazon's")

    tracking_uri: str = Field("", description="MLflow server; sqlite:///<home>/mlflow.db")
    experiment: str = Field("chest-xray", description="MLflow experiment of the candidates")
    model_name: str = Field("chest-xray", description="registered model")
    mlflow_pictures: bool = Field(False, description="true: MLflow gets pictures of radiographs, too, not figures only")

    classes: Words = Field(("NORMAL", "PNEUMONIA"), description="class names; of two, the last is positive")
    split_mode: SplitMode = Field("patient", description="what decides the split, fixed by the first delivery")
    split_validation: float = Field(0.15, gt=0, lt=1, description="share of patients in validation")
    split_held_out: float = Field(0.15, gt=0, lt=1, description="share of patients in held-out")
    patient_key: SecretStr = Field(SecretStr(""), description="key of the patient hash; <home>/patient.key, made once")
    source_pattern: Regex = Field(
        r"^(?:person\d+_(bacteria|virus)|(NORMAL2)-IM-|(IM)-)",
        description="regular expression on a file's name; the group that matches is its family, a slice of the report",
    )
    settle_seconds: float = Field(600, ge=0, description="a delivery without _SUCCESS is complete after this long")
    max_deliveries: int = Field(100, ge=1, description="deliveries one run takes; the rest waits for the next")
    labels: str = Field("", description="how label tables are read: a mapping's name or TOML file; none: labels.csv")
    rules: IntakeRules = IntakeRules()

    schedule: str = Field("0 2 * * *", description="when nights begin: cron in UTC, arrival, both with +, or none")
    recipe: str = Field("head", description="recipe name or TOML file")
    policy: str = Field("default", description="policy name or TOML file")
    promotion: Promotion = Field("approve", description="auto: promote at once what the policy allows")
    gpu_pod_template: str = Field("", description="on Kubernetes: file with the pod of training and evaluation")
    airflow_url: str = Field("", description="Airflow's address, for `xray health`; empty: it is not asked")
    airflow_user: str = Field("", description="who asks Airflow when the last night succeeded; a viewer is enough")
    airflow_password: SecretStr = Field(SecretStr(""), description="of airflow_user")
    mlflow_url: str = Field("", description="MLflow's address for people's browsers; tracking_uri where that is http")
    approvers: Words = Field((), description="Airflow's ids of who may approve; none: all it lets")
    idle_days: int = Field(400, ge=1, description="a clock so far ahead of the ledger's newest entry is wrong")
    approval_hours: float = Field(72, gt=0, description="a request nobody answers for so long ends; it is asked again")
    notify_webhook: SecretStr = Field(SecretStr(""), description="http(s) address that gets notifications as JSON")
    notify_slack: SecretStr = Field(SecretStr(""), description="address of a Slack incoming webhook")
    notify_email: Words = Field((), description="addresses, through Airflow's connection smtp_default")
    notify_digest: bool = Field(False, description="also tell in one line what each night did")
    night_hours: float = Field(6, gt=0, description="a night that takes longer is reported as missed")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    engine: Literal["auto", "torch"] = Field(
        "auto", description="what computes features on a CPU; auto: OpenVINO; torch: slower, for what OpenVINO can't do"
    )
    train_processes: int = Field(0, ge=0, description="processes that train a network; 0: one per GPU, else one")
    tidy_schedule: str = Field("0 12 * * 0", description="cron expression of xray_tidy, in UTC; none: only by hand")
    keep_candidates: int = Field(20, ge=1, description="newest candidates that `xray tidy` keeps whatever their age")
    keep_days: float = Field(60, ge=1, description="days that a candidate is kept whole after it was last worked on")
    workers: int = Field(0, ge=0, description="threads for reading and decoding; 0: one per core")
    stress_images: int = Field(100, ge=10, description="held-out radiographs scored under each perturbation")
    checkpoint_seconds: float = Field(60, ge=0, description="seconds between checkpoints within an epoch")
    checkpoint_steps: int = Field(0, ge=0, description="steps between checkpoints, beside the seconds; 0: seconds only")
    bootstrap: int = Field(1000, ge=100, description="patient-clustered bootstrap resamples")

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(classes) < 2 or len({c.casefold() for c in classes}) != len(classes) or not all(classes):
            raise ValueError(f"classes must be two or more different names, got {classes}")
        return classes

    @field_validator("source_pattern")
    @classmethod
    def _pattern_has_a_group(cls, pattern: str) -> str:
        if not re.compile(pattern).groups:
            raise ValueError("has no group (...): the part of a name that is shown")
        return pattern

    @field_validator("patient_key")
    @classmethod
    def _key_is_long(cls, key: SecretStr) -> SecretStr:
        if 0 < len(key.get_secret_value()) < SHORTEST_KEY:
            raise ValueError(f"needs {SHORTEST_KEY} characters or more, for example from `openssl rand -hex 32`")
        return key

    @field_validator("tracking_uri")
    @classmethod
    def _address_is_one(cls, address: str) -> str:
        try:
            urlsplit(address).port  # noqa: B018 - it is read for what it raises
        except ValueError:
            raise ValueError("is no address; in a password write %40 for @, %2F for / and %3A for :") from None
        return address

    @field_validator("s3_endpoint", "airflow_url", "mlflow_url")
    @classmethod
    def _address_has_no_login(cls, address: str) -> str:
        if "@" in urlsplit(address).netloc:
            raise ValueError("must hold no user and no password; for these see the README")
        return address

    @model_validator(mode="before")
    @classmethod
    def _fill_from_home(cls, values: dict[str, object]) -> dict[str, object]:
        home = Path(str(values.get("home") or "xray-data")).expanduser().absolute()
        defaults = {
            "incoming": str(home / "incoming"),
            "store": str(home / "store"),
            "cache": str(home / "cache"),
            "tracking_uri": f"sqlite:///{home / 'mlflow.db'}",
        }
        return {**defaults, **{k: v for k, v in values.items() if v != ""}, "home": home}

    @model_validator(mode="after")
    def _split_leaves_training(self) -> Settings:
        if self.split_validation + self.split_held_out >= 1:
            raise ValueError("split_validation + split_held_out must leave a share for training")
        return self

    @cached_property
    def mlflow_page(self) -> str:
        """MLflow's address for a browser, without a slash at its end; "" where there is no server."""
        address = urlsplit((self.mlflow_url or self.tracking_uri).rstrip("/"))
        known = address.scheme in ("http", "https")
        return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl() if known else ""

    @cached_property
    def positive(self) -> str:
        """The class whose probability the operating threshold cuts, of two classes."""
        return self.classes[-1]


def _first(error: ValidationError) -> str:
    """Say the first thing that is wrong, and what was given unless that is, or may hold, a secret."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return f"XRAY_ settings: {first['msg']}"
    name, given = "XRAY_" + "__".join(str(part).upper() for part in first["loc"]), repr(first["input"])
    field = Settings.model_fields.get(str(first["loc"][0]))
    secret = "@" in given or (field is not None and field.annotation is SecretStr)
    return f"{name}: {first['msg']}" + ("" if secret else f", got {given}")
