"""Saved models: round trips, damage, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import featx
from featx.cli import main
from featx.errors import CacheMismatchError, ModelError, ProtocolError, UsageError
from featx.evaluate import Pair, Settings, evaluate
from featx.heads import FitOptions, Pool, RowSpace, available_heads, get_head
from featx.heads.knn import KnnModel
from featx.heads.saving import check_savable, pack_model, unpack_model
from featx.heads.scaling import SCALES
from featx.predict import ModelsFolder, load_model
from featx.predict.model import read_arrays, read_record, write_file

HEADS = [name for name, value in available_heads().items() if ":" not in value]
SIZE = {"mlp": {"max_iter": 20}, "mlp-torch": {"max_epochs": 3, "batch_norm": "before"}}


V1 = Path(__file__).parent / "models"


def fitted(name, n_classes=3, scale="none", d=7):
    from featx.heads import with_settings

    rng = np.random.default_rng(1)
    y = np.arange(12 * n_classes) % n_classes
    X = (rng.normal(size=(len(y), d)) + y[:, None]).astype(np.float16)
    head = with_settings(get_head(name), SIZE.get(name, {}))
    rows = np.arange(len(y))
    return head.fit(RowSpace(Pool(X), rows), y.astype(np.int64), FitOptions(scale=scale)).model


def same(a, b):
    """Equal bit for bit, with the same types and order in memory."""
    if isinstance(a, np.ndarray):
        order = a.flags.f_contiguous == b.flags.f_contiguous
        return order and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if is_dataclass(a):
        return type(a) is type(b) and all(
            same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)
        )
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture(scope="module")
def pair(digits_folder):
    caches = sorted((digits_folder / "cache").glob("*.h5"), reverse=True)
    train, test = (featx.load(path) for path in caches)
    assert (train.meta["split"], test.meta["split"]) == ("train", "test")
    return Pair(train, test)


@pytest.fixture(scope="module")
def made(pair, tmp_path_factory):
    """The fitted models by head, and their files."""
    folder = ModelsFolder(tmp_path_factory.mktemp("reports"))
    found = {}

    def keep(result, fit):
        found[result.clf] = (fit.model, folder.keep(pair, result, fit), result)

    evaluate(pair, Settings(heads=tuple(HEADS), per_class=(6,), repeats=1), sink=keep)
    return found


@pytest.fixture
def file(made, tmp_path):
    """A copy of a model, to be harmed."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(made["logreg"][1].read_bytes())
    return path


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("name", HEADS)
def test_every_head_comes_back_bit_for_bit(name, n_classes, scale, tmp_path):
    model = fitted(name, n_classes, scale)
    plain, arrays = pack_model(model)
    write_file(tmp_path / "m.safetensors", {"model": plain}, arrays)
    record = read_record(tmp_path / "m.safetensors")
    again = unpack_model(record["model"], read_arrays(tmp_path / "m.safetensors", record))
    assert same(again, model)
    X = np.random.default_rng(2).normal(size=(40, 7)).astype(np.float16)
    assert again.decision_function(X).tobytes() == model.decision_function(X).tobytes()


@pytest.mark.parametrize("name", ["svm", "mlp", "knn"])
def test_files_of_version_1_can_be_read(name):
    """Written by the first featx that saved models; see tests/models/v1.json."""
    expected = json.loads((V1 / "v1.json").read_text())
    saved = load_model(V1 / f"v1-{name}.safetensors")
    X = np.array(expected["X"])
    np.testing.assert_allclose(saved.decision_function(X), expected[name], rtol=1e-12)
    assert (saved.meta["version"], saved.class_names) == (1, ("a", "b", "c"))


@pytest.mark.parametrize("name", HEADS)
def test_a_loaded_model_scores_a_cache_as_the_fit_did(name, made, pair):
    model, path, result = made[name]
    saved = featx.load_model(path)
    assert same(saved.model, model)
    scores = saved.decision_function(pair.test)
    assert scores.tobytes() == model.decision_function(pair.test.X).tobytes()
    assert np.mean(saved.predict(pair.test) == pair.test.y) == result.acc1
    assert saved.predict(pair.test.X[:3]).tolist() == saved.predict(pair.test)[:3].tolist()
    if saved.has_probabilities:
        np.testing.assert_allclose(saved.predict_proba(pair.test).sum(axis=1), 1.0)
    else:
        with pytest.raises(UsageError, match="has no probabilities"):
            saved.predict_proba(pair.test)


def test_the_file_says_what_it_was_made_of(made, pair, digits_folder):
    saved = load_model(made["svm"][1])
    meta, result = saved.meta, made["svm"][2]
    assert (
        saved.path.stem == next(saved.path.parent.parent.glob(f"fits/*{result.fit_id}.json")).stem
    )
    assert saved.class_names == tuple(map(str, range(10)))
    assert saved.classes_.tolist() == list(range(10))
    assert meta["features"]["weights_sha256"] == pair.train.meta["weights"]["sha256"]
    assert "source" not in meta["features"]
    assert meta["weights"]["asked"] == str(digits_folder / "weights.pth")
    assert meta["train"]["subset_sha256"] == result.subset_sha256
    assert meta["test"]["accuracy"] == result.acc1
    assert meta["test"]["n_test"] == 40
    assert "TEST" in meta["test"]["what"]
    assert (meta["head"], meta["C"], meta["fit_id"]) == ("svm", result.C, result.fit_id)
    assert meta["featx_version"] == version("featx")
    assert "svm on 512 features of squeezenet1_1, 10 classes" in repr(saved)


def test_a_cache_made_otherwise_is_refused_field_by_field(made, pair):
    saved = load_model(made["svm"][1])

    identity = pair.test.meta["identity"]
    point = {**identity["point"], "pool": "max"}
    changed = {"identity": {**identity, "precision": "bf16", "point": point}}
    other = featx.Cache.open(pair.test.path)
    other._structure = replace(other._structure, meta=changed)
    with pytest.raises(CacheMismatchError) as caught:
        saved.predict(other)
    assert caught.value.differences == (
        "point.pool: asked for 'avg', the file has 'max'",
        "precision: asked for 'fp32', the file has 'bf16'",
    )
    with pytest.raises(ProtocolError, match="fitted on 512 features, these rows have 5"):
        saved.predict(np.zeros((2, 5)))


def test_every_truncation_and_every_flipped_byte_is_noticed(file):
    whole = file.read_bytes()
    n_head = 8 + int.from_bytes(whole[:8], "little")
    for n in (0, 7, 8, 100, n_head - 1, n_head, n_head + 9, len(whole) - 1):
        file.write_bytes(whole[:n])
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            load_model(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(ModelError):
        load_model(file)
    at = [*range(0, n_head, 7), *range(n_head, len(whole), 997), len(whole) - 1]
    for i in at:
        harmed = bytearray(whole)
        harmed[i] ^= 1 << (i % 8)
        file.write_bytes(harmed)
        with pytest.raises(ModelError):
            load_model(file)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04N.", b"PK\x03\x04", b"a,b\n1,2\n", b"\xff" * 64]
)
def test_foreign_files_are_refused(content, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is no model, or is damaged"):
        load_model(path)


def test_weights_are_no_model_and_a_missing_file_says_how_to_make_one(tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="no model of featx"):
        load_model(tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="featx fit --save-models"):
        load_model(tmp_path / "none.safetensors")


def rewrite(file, change):
    """Write the file again with other content and digests that fit it."""
    record = read_record(file)
    arrays = read_arrays(file, record)
    for key in ("format", "version", "tensors"):
        record.pop(key)
    change(record, arrays)
    write_file(file, record, arrays)


def _fields(record):
    return record["model"]["fields"]


CONTRADICTIONS = {
    "coef_ too narrow for n_features": lambda r, a: a.update(coef_=a["coef_"][:, :5].copy()),
    "coef_ of fewer classes": lambda r, a: a.update(coef_=a["coef_"][:4].copy()),
    "coef_ of no features": lambda r, a: a.update(coef_=np.zeros((10, 0))),
    "coef_ with an axis too many": lambda r, a: a.update(coef_=a["coef_"][None]),
    "coef_ of float32": lambda r, a: a.update(coef_=a["coef_"].astype(np.float32)),
    "coef_ of NaN": lambda r, a: a.update(coef_=a["coef_"] * np.nan),
    "no intercept": lambda r, a: a.pop("intercept_"),
    "intercept too long": lambda r, a: a.update(intercept_=np.zeros(11)),
    "labels that do not ascend": lambda r, a: a.update(classes_=np.zeros(10, np.int64)),
    "labels below 0": lambda r, a: a.update(classes_=np.arange(-1, 9)),
    "one class": lambda r, a: a.update(classes_=np.zeros(1, np.int64)),
    "labels without a name": lambda r, a: a.update(classes_=np.arange(5, 15)),
    "labels that are numbers": lambda r, a: _fields(r).update(classes_=3),
    "coef_ that is text": lambda r, a: _fields(r).update(coef_="x"),
    "an unknown link": lambda r, a: _fields(r).update(link="magic"),
    "an unknown field": lambda r, a: _fields(r).update(hook="os.system"),
    "a scaling that is none": lambda r, a: _fields(r).update(scaling=None),
    "an unknown scaling": lambda r, a: _fields(r)["scaling"]["fields"].update(name="x"),
    "a scaling as model": lambda r, a: r.update(model=_fields(r)["scaling"]),
    "no model": lambda r, a: r.update(model=None),
    "a model without fields": lambda r, a: r["model"].update(fields=[]),
    "a list": lambda r, a: r.update(model=[1]),
    "deep nesting": lambda r, a: r.update(
        model={"tuple": [{"tuple": [{"tuple": [{"tuple": [{"tuple": [1]}]}]}]}]}
    ),
    "no names": lambda r, a: r.update(class_names=None),
    "names that are numbers": lambda r, a: r.update(class_names=list(range(10))),
    "other features": lambda r, a: r["features"].update(precision="bf16"),
    "no features": lambda r, a: r.update(features=None),
    "another number of features": lambda r, a: r.update(n_features=10**12),
    "no weights": lambda r, a: r.pop("weights"),
    "no head": lambda r, a: r.pop("head"),
    "an accuracy that is text": lambda r, a: r["test"].update(accuracy="high"),
    "a feature point that is text": lambda r, a: r["features"].update(point="x"),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_file_that_contradicts_itself_is_refused(what, file):
    rewrite(file, CONTRADICTIONS[what])
    with pytest.raises(ModelError, match=r"cannot be used: .* \(written by featx"):
        load_model(file)


@pytest.mark.parametrize(
    "change",
    [
        {"n_neighbors": 10**15},
        {"n_neighbors": 0},
        {"n_neighbors": True},
        {"codes": np.full(36, 3)},
        {"codes": np.zeros(35, np.int64)},
        {"rows": np.zeros((36, 7), np.int64)},
        {"link": "softmax"},
    ],
)
def test_neighbours_that_contradict_themselves_are_refused(change):
    model = replace(fitted("knn"), **change)
    assert isinstance(model, KnnModel)
    with pytest.raises(ModelError, match="do not fit together"):
        unpack_model(*pack_model(model))


def test_layers_that_do_not_chain_are_refused():
    model = fitted("mlp")
    first, second = model.coefs_
    for coefs in ((first, second[1:]), (first, second[:, 1:]), (first,), ()):
        with pytest.raises(ModelError, match="do not fit together"):
            unpack_model(*pack_model(replace(model, coefs_=coefs)))
    with pytest.raises(ModelError, match="activation"):
        unpack_model(*pack_model(replace(model, activation="__import__")))


@pytest.mark.parametrize("part", ["mean", "std"])
def test_a_scaling_of_another_length_is_refused(part):
    model = fitted("svm", scale="standard")
    scaling = replace(model.scaling, **{part: np.ones(6)})
    with pytest.raises(ModelError, match=f"scaling.{part}"):
        unpack_model(*pack_model(replace(model, scaling=scaling)))


def test_a_kind_of_a_newer_featx_names_that_version(file):
    rewrite(file, lambda r, a: (r["model"].update(kind="forest"), r.update(featx_version="9.1")))
    with pytest.raises(ModelError, match=r"kind 'forest'.*written by featx 9\.1"):
        load_model(file)


def test_a_trained_network_is_no_model(tmp_path):
    file = tmp_path / "net.safetensors"
    save_file({"a": np.zeros(3)}, file, {"featx": '{"format": "featx trained network"}'})
    with pytest.raises(ModelError, match="not a model but a featx trained network.*--backbone"):
        load_model(file)


def test_a_newer_format_names_that_version(file):
    text = json.dumps({"format": "featx model", "version": 2, "featx_version": "9.1"})
    save_file({"a": np.zeros(3)}, file, {"featx": text})
    with pytest.raises(ModelError, match=r"by featx 9\.1 in version 2 of the format.*update featx"):
        load_model(file)


def test_a_classifier_of_ones_own_is_refused(made):
    head = get_head("sklearn.tree:DecisionTreeClassifier")
    with pytest.raises(UsageError, match="never pickles"):
        check_savable(head)
    rows, y = np.random.default_rng(0).normal(size=(20, 4)), np.arange(20) % 2
    fit = head.fit(RowSpace(Pool(rows), np.arange(20)), y, FitOptions())
    with pytest.raises(UsageError, match="ForeignModel cannot be saved"):
        pack_model(fit.model)


def test_another_model_of_the_same_name_is_not_overwritten(made, pair, tmp_path):
    _, path, result = made["svm"]
    record = read_record(path)
    arrays = read_arrays(path, record)
    folder = ModelsFolder(tmp_path)
    target = folder.models / path.name
    for key in ("format", "version", "tensors"):
        record.pop(key)
    fit = type("Fit", (), {"model": made["svm"][0]})()
    write_file(target, record | {"fit_id": "another"}, arrays)
    with pytest.raises(ModelError, match="is another model"):
        folder.keep(pair, result, fit)
    assert read_record(target)["fit_id"] == "another"
    target.write_bytes(b"torn")
    (folder.folder / "fits" / f"{path.stem}.json").unlink()
    assert folder.keep(pair, result, fit) == target
    assert same(load_model(target).model, made["svm"][0])


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from featx import atomic, records
from featx.predict import model as file
place = next(p for p in (file, records, atomic) if hasattr(p, sys.argv[1]))
real, left = getattr(place, sys.argv[1]), [int(sys.argv[2])]
def die(*words, **named):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*words, **named)
setattr(place, sys.argv[1], die)
file.write_file(Path(sys.argv[3]), {"a": 1}, {"x": np.arange(1000.0)})
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("step", "n"), [("save_file", 1), ("replace_file", 1), ("_sync", 1), ("_sync", 2)]
)
def test_a_kill_leaves_no_half_file(step, n, old, tmp_path, forks):
    target = tmp_path / "m.safetensors"
    if old:
        write_file(target, {"a": 0}, {"x": np.zeros(3)})
    assert forks.run(KILLED, step, str(n), str(target)).returncode == -signal.SIGKILL
    is_new = (step, n) == ("_sync", 2)
    assert target.exists() == (old or is_new)
    if target.exists():
        record = read_record(target)
        assert record["a"] == int(is_new)
        read_arrays(target, record)


def test_names_that_are_no_text_are_kept(tmp_path):
    path = tmp_path / "m.safetensors"
    write_file(path, {"class_names": ["\udcff", "ä"]}, {"x": np.zeros(3)})
    assert read_record(path)["class_names"] == ["\udcff", "ä"]


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*words, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("featx.predict.model.save_file", full)
    with pytest.raises(ModelError, match="cannot be written.*No space left"):
        write_file(tmp_path / "m.safetensors", {}, {"x": np.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_a_model_card_is_what_the_hub_reads(made, capsys):
    hub = pytest.importorskip("huggingface_hub")
    _, path, result = made["logreg"]
    assert main(["card", str(path)]) == 0
    text = capsys.readouterr().out
    card = hub.ModelCard(text)
    (found,) = card.data.eval_results
    assert (found.metric_type, found.metric_value) == ("accuracy", result.acc1)
    assert (found.dataset_name, found.dataset_split) == ("digits", "test")
    assert card.data.library_name == "featx"
    model = load_model(path)
    for said in (
        model.meta["fit_id"],
        f"{model.n_features:,} values",
        ", ".join(model.class_names),
    ):
        assert said in card.text
    assert f"featx predict --model {path.name}" in card.text
