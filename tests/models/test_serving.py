from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from mlflow_server import MlflowServer, running
from ports import free_port
from samples import dicom, picture, png
from small_models import image, logged, small_classifier

from xray_pipeline.base.errors import ConfigError, EvaluationError, ModelRefused
from xray_pipeline.base.settings import Settings
from xray_pipeline.images.radiograph import Limits, decode, fitted, square
from xray_pipeline.models import backbones
from xray_pipeline.models.audit import audit, inventory
from xray_pipeline.models.backbones import Network
from xray_pipeline.models.bundle import log_model
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.models.mlflow_client import mlflow
from xray_pipeline.models.saved import FACTS, WEIGHTS, model_digest
from xray_pipeline.registry.loading import load
from xray_pipeline.registry.mlflow_registry import Registry


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)


# The classifier


def test_a_saved_classifier_answers_as_before(tmp_path: Path, pixels: np.ndarray) -> None:
    classifier = small_classifier(threshold=0.3, temperature=1.7)
    digest = classifier.save(tmp_path)
    loaded = Classifier.load(tmp_path, digest)
    assert (loaded.classes, loaded.side, loaded.threshold, loaded.temperature) == (classifier.classes, 64, 0.3, 1.7)
    assert loaded.digest == digest
    np.testing.assert_allclose(loaded.probabilities(pixels), classifier.probabilities(pixels), atol=1e-6)


def test_a_model_answers_16_bit_pngs_of_fewer_bits_by_the_depth_its_site_says(tmp_path: Path) -> None:
    dark = np.rint(picture().astype(float) * (900 / 255)).astype(np.uint16)
    for said, bits in ((0, 10), (12, 12)):
        classifier = small_classifier(limits=Limits(png_bits=said))
        classifier.save(tmp_path / str(said))
        loaded = Classifier.load(tmp_path / str(said))
        assert loaded.limits.png_bits == said
        shown = np.rint(dark * (65535 / (2**bits - 1))).astype(np.uint16)
        assert np.array_equal(loaded.pixels(png(dark)), square(shown, loaded.side))


def test_the_digest_is_of_content(tmp_path: Path) -> None:
    digests = [small_classifier().save(tmp_path / "a"), small_classifier().save(tmp_path / "b")]
    assert digests[0] == digests[1] == Classifier.load(tmp_path / "a").save(tmp_path / "c")
    changed = [small_classifier(1), small_classifier(threshold=0.4), small_classifier(temperature=2.0)]
    assert len({digests[0], *(c.save(tmp_path / str(n)) for n, c in enumerate(changed))}) == 4


def test_probabilities_are_a_softmax_at_the_temperature(pixels: np.ndarray) -> None:
    classifier = small_classifier(temperature=2.5)
    found = classifier.probabilities(pixels, batch_size=2)
    with torch.inference_mode():
        logits = classifier.network.eval()(torch.from_numpy(pixels)).double().numpy() / 2.5
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)


def test_read_only_pixels_are_taken_without_a_warning(pixels: np.ndarray, recwarn: pytest.WarningsRecorder) -> None:
    pixels.flags.writeable = False
    small_classifier().probabilities(pixels)
    assert not recwarn.list


def test_no_pixels_give_no_rows() -> None:
    assert small_classifier().probabilities(np.empty((0, 64, 64), np.uint8)).shape == (0, 2)


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 32, 32), np.uint8), np.zeros((1, 64, 64)), np.zeros((64, 64), np.uint8)]
)
def test_pixels_of_another_kind_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(EvaluationError, match="not uint8"):
        small_classifier().probabilities(wrong)


def test_of_two_classes_the_threshold_decides() -> None:
    labels = small_classifier(threshold=0.3).label(np.array([[0.71, 0.29], [0.7, 0.3], [0.1, 0.9]]))
    assert labels == ["NORMAL", "PNEUMONIA", "PNEUMONIA"]


def test_of_more_classes_the_largest_decides() -> None:
    classifier = small_classifier(classes=("A", "B", "C"), threshold=0.9)
    assert classifier.label(np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]])) == ["B", "A"]


def test_files_that_are_no_radiographs_do_not_stop_the_others() -> None:
    answers = small_classifier().classify([b"<html>", image(0), b"", image(1, "PNG"), image(0)])
    assert [bool(answer.error) for answer in answers] == [True, False, True, False, False]
    assert answers[0].probabilities == ()
    assert answers[0].label == ""
    assert "not-an-image" in answers[0].error
    assert sum(answers[1].probabilities) == pytest.approx(1)
    assert answers[4].probabilities == pytest.approx(answers[1].probabilities, abs=1e-6)


def test_how_a_radiograph_becomes_a_square_travels_with_the_model(tmp_path: Path) -> None:
    wide = png(np.random.default_rng(0).integers(0, 256, (64, 128), np.uint8))
    for fit in ("squash", "shorter-side"):
        small_classifier(fit=fit).save(tmp_path / fit)
        loaded = Classifier.load(tmp_path / fit)
        assert loaded.fit == fit
        assert np.array_equal(loaded.pixels(wide), fitted(decode(wide), 64, loaded.fit))
    facts = json.loads((tmp_path / "shorter-side" / FACTS).read_text())
    (tmp_path / "shorter-side" / FACTS).write_text(json.dumps({**facts, "fit": "stretch"}))
    with pytest.raises(ModelRefused, match="fit 'stretch'"):
        Classifier.load(tmp_path / "shorter-side")


def test_how_many_views_answer_travels_with_the_model(tmp_path: Path, pixels: np.ndarray) -> None:
    one, three = small_classifier(), small_classifier(views=3)
    assert one.save(tmp_path / "one") != three.save(tmp_path / "three")
    assert "views" not in json.loads((tmp_path / "one" / FACTS).read_text())
    loaded = Classifier.load(tmp_path / "three")
    assert loaded.views == 3
    np.testing.assert_allclose(loaded.probabilities(pixels), three.probabilities(pixels), atol=1e-6)
    assert np.abs(loaded.probabilities(pixels) - one.probabilities(pixels)).max() > 1e-6
    with pytest.raises(ConfigError, match="views 0 above 0"):
        small_classifier(views=0)


def test_the_words_of_a_site_travel_with_its_model(tmp_path: Path) -> None:
    limits = Limits(min_side=32, chest_words=("BRINGA*",), lateral_words=("AXIAL",))
    small_classifier(limits=limits).save(tmp_path)
    loaded = Classifier.load(tmp_path)
    assert loaded.limits == limits
    files = [dicom(BodyPartExamined="BRINGA"), dicom(ViewPosition="AXIAL")]
    assert [bool(answer.error) for answer in loaded.classify(files)] == [False, True]
    assert [bool(answer.error) for answer in small_classifier().classify(files)] == [True, False]


def test_loading_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    small_classifier().save(tmp_path)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    Classifier.load(tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"classes": ("A", "A")},
        {"classes": ("A", "label")},
        {"threshold": 1.1},
        {"threshold": float("nan")},
        {"temperature": 0.0},
        {"temperature": float("inf")},
    ],
)
def test_facts_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        small_classifier(**fields)


# What is not loaded


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    small_classifier().save(tmp_path / "model")
    return tmp_path / "model"


def test_another_digest_is_refused(saved: Path) -> None:
    with pytest.raises(ModelRefused, match="recorded is ffffffffffff"):
        Classifier.load(saved, "f" * 64)


@pytest.mark.parametrize("name", [FACTS, WEIGHTS])
def test_a_missing_file_is_refused(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ModelRefused, match=f"holds no {name}"):
        Classifier.load(saved)


def test_weights_of_another_model_are_refused(saved: Path, tmp_path: Path) -> None:
    small_classifier(1).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / WEIGHTS, saved / WEIGHTS)
    with pytest.raises(ModelRefused, match="is not the file that"):
        Classifier.load(saved)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "has format 2; this version reads 1"),
        ("backbone", "resnet9000", "backbone 'resnet9000' is not known"),
        ("classes", ["A", "B", "C"], "size mismatch|Error"),
        ("temperature", -1, "temperature"),
        ("threshold", "high", "do not make a classifier"),
    ],
)
def test_other_facts_are_refused(saved: Path, key: str, value: Any, message: str) -> None:
    facts = json.loads((saved / FACTS).read_text())
    (saved / FACTS).write_text(json.dumps({**facts, key: value}))
    with pytest.raises(ModelRefused, match=message):
        Classifier.load(saved)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"[1]", b"{}"])
def test_facts_that_are_not_facts_are_refused(saved: Path, content: bytes) -> None:
    (saved / FACTS).write_bytes(content)
    with pytest.raises(ModelRefused, match="not the description of a model"):
        Classifier.load(saved)


# The logged model


@pytest.fixture(scope="module")
def server_settings(mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("home")
    return Settings(home=home, tracking_uri=mlflow_server.uri, model_name="served")


@pytest.fixture(scope="module")
def downloaded(server_settings: Settings) -> Path:
    return Registry(server_settings).download(logged(server_settings).model_uri)


@pytest.fixture
def folder(downloaded: Path, tmp_path: Path) -> Path:
    """A copy of a logged model to spoil."""
    return Path(shutil.copytree(downloaded, tmp_path / "logged"))


def test_a_logged_model_holds_tensors_and_plain_text_only(folder: Path) -> None:
    files = inventory(folder)
    assert [place for place in files if not place.endswith((".py", ".json", ".yaml", ".txt"))] == [
        "MLmodel",
        "artifacts/classifier/model.safetensors",
    ]
    modules = {place[19:-3] for place in files if place.startswith("code/xray_pipeline/")}
    assert {"__init__", "base/errors", "images/radiograph", "models/backbones", "models/classifier"} <= modules
    assert not modules & {"base/settings", "base/storage"}
    assert {name.partition("/")[0] for name in modules} <= {"__init__", "base", "images", "models"}
    for place in files:
        if not place.endswith(".safetensors"):
            (folder / place).read_text()
    assert audit(folder) == audit(folder, audit(folder))


def test_requirements_are_pinned_to_what_runs_here(folder: Path) -> None:
    lines = (folder / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.split('+')[0]}" in lines
    assert all("==" in line for line in lines)


def test_logging_needs_a_run(saved: Path) -> None:
    with pytest.raises(ConfigError, match="active MLflow run"):
        log_model(saved)


def _pickle(folder: Path) -> None:
    (folder / "python_model.pkl").write_bytes(pickle.dumps(print))


def _pickle_named_json(folder: Path) -> None:
    (folder / "artifacts/classifier/model.json").write_bytes(pickle.dumps(print))


def _pickle_named_safetensors(folder: Path) -> None:
    (folder / "artifacts/classifier/model.safetensors").write_bytes(pickle.dumps(print))


def _archive_behind_the_tensors(folder: Path) -> None:
    with zipfile.ZipFile(folder / "artifacts/classifier/model.safetensors", "a") as archive:
        archive.writestr("data.pkl", pickle.dumps(print))


def _torch_file(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / "artifacts/classifier/model.pt")


def _module(folder: Path) -> None:
    (folder / "code/sitecustomize.py").write_text("print('hello')")


def _bytecode(folder: Path) -> None:
    (folder / "code/xray_pipeline/__pycache__").mkdir()
    (folder / "code/xray_pipeline/__pycache__/errors.cpython-311.pyc").write_bytes(b"\xa7\r\r\n")


def _link(folder: Path) -> None:
    (folder / "requirements.txt").unlink()
    (folder / "requirements.txt").symlink_to("/etc/passwd")


def _linked_folder(folder: Path) -> None:
    (folder / "more").symlink_to("/etc")


def _fifo(folder: Path) -> None:
    (folder / "conda.yaml").unlink()
    os.mkfifo(folder / "conda.yaml")


def _pickle_loader(folder: Path) -> None:
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(text.replace("mlflow.pyfunc.loaders.code_model", "mlflow.pyfunc.model"))


def _second_flavor(folder: Path) -> None:
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(text.replace("flavors:\n", "flavors:\n  sklearn:\n    pickled_model: model.pkl\n"))


def _object_in_yaml(folder: Path) -> None:
    (folder / "MLmodel").write_text("flavors: !!python/object/apply:os.system ['true']\n")


def _other_code_file(folder: Path) -> None:
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(text.replace("/served.py", "/errors.py"))


def _missing_code(folder: Path) -> None:
    (folder / "code/xray_pipeline/models/classifier.py").unlink()


SPOILERS: list[tuple[Callable[[Path], None], str]] = [
    (_pickle, "python_model.pkl"),
    (_pickle_named_json, "model.json' is not text"),
    (_pickle_named_safetensors, "safetensors"),
    (_archive_behind_the_tensors, "not a file of tensors alone .*not fully covered"),
    (_torch_file, "model.pt"),
    (_module, "sitecustomize"),
    (_bytecode, "pyc"),
    (_link, "requirements.txt' in the model is a link"),
    (_linked_folder, "'more' in the model is a link"),
    (_fifo, "conda.yaml' in the model is a link or special file"),
    (_pickle_loader, "MLmodel asks for 'mlflow.pyfunc.model'"),
    (_second_flavor, "MLmodel asks for"),
    (_object_in_yaml, "MLmodel does not describe"),
    (_other_code_file, "'errors.py'"),
    (_missing_code, "lacks code/xray_pipeline/models/classifier.py"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILERS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_spoilt_model_is_refused_before_anything_is_loaded(
    folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder)
    with pytest.raises(ModelRefused, match=message):
        audit(folder)


def test_a_model_of_a_version_with_other_modules_is_loaded(folder: Path) -> None:
    code = folder / "code/xray_pipeline"
    (code / "images/png.py").rename(code / "images/pictures.py")
    (code / "images/dicom.py").rename(code / "dicom.py")
    recorded = audit(folder)
    assert audit(folder, recorded) == recorded
    assert isinstance(Classifier.load(folder), Classifier)


def test_changed_code_is_refused_by_its_digest(folder: Path) -> None:
    recorded = audit(folder)
    with (folder / "code/xray_pipeline/models/classifier.py").open("a") as file:
        file.write("print('hello')\n")
    with pytest.raises(ModelRefused, match=f"recorded is {recorded[:12]}"):
        audit(folder, recorded)


def test_a_model_loaded_in_place_stays_as_it_was(folder: Path) -> None:
    before = audit(folder)
    code = "import mlflow, sys; mlflow.pyfunc.load_model(sys.argv[1])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=environment, cwd=folder.parent)
    assert audit(folder) == before


# The served model


def ask(url: str, content: object) -> Any:
    data = json.dumps(content).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_mlflow_serves_a_registered_version(server_settings: Settings, tmp_path: Path) -> None:
    registry = Registry(server_settings)
    candidate = logged(server_settings, seed=3)
    registry.add(candidate.digest, candidate.model_uri, candidate.run_id)
    version = registry.add("d" * 64, logged(server_settings).model_uri, candidate.run_id)
    assert version == 2
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/served/{version}"),
        *("--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)),
    ]
    files = [image(0), b"no image", image(1, "PNG")]
    encoded = [base64.b64encode(data).decode() for data in files]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server_settings.tracking_uri)
        with running(command, f"http://127.0.0.1:{port}/ping", tmp_path / "serve.log"):
            url = f"http://127.0.0.1:{port}/invocations"
            records = ask(url, {"dataframe_records": [{"image": data} for data in encoded]})["predictions"]
            split = ask(url, {"dataframe_split": {"columns": ["image"], "data": [[data] for data in encoded]}})
    expected = small_classifier().classify(files)
    assert split["predictions"] == records
    for row, answer in zip(records, expected, strict=True):
        assert (row["label"], row["error"], row["model_version"]) == (answer.label, answer.error, "2")
        found = [row["NORMAL"], row["PNEUMONIA"]]
        assert found == ([None, None] if answer.error else pytest.approx(answer.probabilities, abs=1e-5))
    with pytest.raises(OSError, match=r"refused|reset"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)


def test_a_model_asked_for_without_the_registry_names_its_digest(downloaded: Path) -> None:
    code = """
import sys, mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(pandas.DataFrame({"image": [open(sys.argv[2], "rb").read()]}))
print(answer["model_version"][0])
"""
    picture = downloaded.parent / "picture.png"
    picture.write_bytes(image(0, "PNG"))
    arguments = [str(downloaded), str(picture)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    assert done.stdout.split()[-1] == model_digest(downloaded / "artifacts/classifier")


def test_a_network_of_timm_is_served_by_the_source_logged_with_it(server_settings: Settings, tmp_path: Path) -> None:
    """In a process that has this package's code from the logged model alone; timm's version is a requirement."""
    name = "timm/test_vit"
    network = Network(backbones.load(name, "none", side=64), 2, levels=True)
    classifier = Classifier(network, name, ("NORMAL", "PNEUMONIA"), 64)
    classifier.save(tmp_path / "classifier")
    mlflow.set_tracking_uri(server_settings.tracking_uri)
    with mlflow.start_run():
        uri = log_model(tmp_path / "classifier")
    folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "logged")))
    assert audit(folder)
    assert f"timm=={timm.__version__}" in (folder / "requirements.txt").read_text().splitlines()
    (tmp_path / "picture.png").write_bytes(image(0, "PNG"))
    code = """
import pathlib, sys, mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
answers = model.predict(pandas.DataFrame({"image": [pathlib.Path(sys.argv[2]).read_bytes()]}))
import xray_pipeline.models.stages
assert xray_pipeline.models.stages.__file__.startswith(sys.argv[1]), xray_pipeline.models.stages.__file__
print(answers[["NORMAL", "PNEUMONIA"]].to_json(orient="values", double_precision=15))
"""
    arguments = [sys.executable, "-c", code, str(folder), str(tmp_path / "picture.png")]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, cwd=tmp_path)
    expected = classifier.classify([image(0, "PNG")])[0].probabilities
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), [expected], atol=1e-5)


@pytest.mark.slow
def test_a_model_logged_before_the_rooms_is_audited_loaded_and_served(tmp_path: Path) -> None:
    """Its code has other modules, and its facts no limits; MLflow runs that code, this package its own."""
    folder = tmp_path / "logged"
    with zipfile.ZipFile(Path(__file__).with_name("logged-before-the-rooms.zip")) as archive:
        archive.extractall(folder)
    classifier, place = small_classifier(), folder / "artifacts/classifier"
    classifier.save(tmp_path / "now")
    shutil.copyfile(tmp_path / "now" / WEIGHTS, place / WEIGHTS)  # left out of the archive for their size
    facts = json.loads((place / FACTS).read_text())
    assert "limits" not in facts
    (place / FACTS).write_text(
        json.dumps({**facts, "weights": json.loads((tmp_path / "now" / FACTS).read_text())["weights"]})
    )
    recorded = audit(folder)
    assert audit(folder, recorded) == recorded
    files = [image(0), image(1, "PNG")]
    expected = [answer.probabilities for answer in classifier.classify(files)]
    loaded = load(Registry(Settings(home=tmp_path, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")), str(folder))
    assert [answer.probabilities for answer in loaded.classify(files)] == expected
    code = """
import pathlib, sys, mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
answers = model.predict(pandas.DataFrame({"image": [pathlib.Path(name).read_bytes() for name in sys.argv[2:]]}))
import xray_pipeline.serving
assert xray_pipeline.serving.__file__.startswith(sys.argv[1])
print(answers[["NORMAL", "PNEUMONIA"]].to_json(orient="values", double_precision=15))
"""
    names = [tmp_path / f"{number}.image" for number in range(len(files))]
    for name, data in zip(names, files, strict=True):
        name.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), *map(str, names)],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), expected, atol=1e-6)
