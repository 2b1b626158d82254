"""The JSON files outlive crashes, repeats and other versions, and results.csv shows them."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Thread

import numpy as np
import pandas as pd
import pytest

from featx.atomic import locked
from featx.evaluate import (
    COLUMNS,
    ResultsFolder,
    Settings,
    evaluate,
    read_results,
    results_folder,
)
from featx.progress import SILENT, Reporter
from featx.records import write_record


@pytest.fixture
def results(pair):
    settings = Settings(heads=("svm", "mlp"), per_class=(2,), repeats=2)
    return evaluate(pair, settings)


def test_what_was_written_is_read_again(results, tmp_path):
    folder = ResultsFolder(tmp_path / "reports")
    paths = [folder.add(result) for result in results]
    frame = read_results(folder.table)
    assert tuple(frame.columns) == COLUMNS
    for (_, row), result in zip(frame.iterrows(), results, strict=True):
        for name, value in result.row().items():
            if value is None:
                assert row[name] != row[name]
            else:
                assert row[name] == value, name
    assert folder.table.read_text(encoding="utf-8").count("data,backbone") == 1
    record = json.loads(paths[0].read_text(encoding="utf-8"))
    assert record["fit"].items() <= results[0].row().items()
    assert tuple(results[0].row()) == COLUMNS
    assert {"confusion_matrix", "per_class", "train_rows", "cv", "settings", "versions"} <= set(
        record
    )


def test_a_repeated_fit_keeps_both_files_and_reads_as_the_last(results, tmp_path):
    folder = ResultsFolder(tmp_path)
    first = folder.add(results[0])
    second = folder.add(replace(results[0], created="later"))
    assert first != second
    assert json.loads(first.read_text(encoding="utf-8"))["fit"]["created"] != "later"
    frame = read_results(folder.table)
    assert frame["created"].tolist() == ["later"]


def ids_of(folder):
    return read_results(folder, reporter=SILENT)["fit_id"].tolist()


def test_the_table_is_made_of_the_records_whatever_becomes_of_it(results, tmp_path):
    folder = ResultsFolder(tmp_path)
    for result in results:
        folder.add(replace(result, notes='stopped "early", at max_iter=50'))
    data, expected = folder.table.read_bytes(), [result.fit_id for result in results]
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(data), 15).tolist():
        flipped = data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]
        for damaged in (flipped, data[:position], data[:position] + b"\xff"):
            folder.table.write_bytes(damaged)
            frame = read_results(folder.table)
            assert frame["fit_id"].tolist() == expected
            assert frame["acc1"].tolist() == [result.acc1 for result in results]
    ResultsFolder(tmp_path).complete()
    assert folder.table.read_bytes() == data


def test_a_fit_of_an_older_featx_has_no_areas_and_answers(pair, tmp_path):
    settings = Settings(heads=("svm",), per_class=(2,), repeats=1)
    record = evaluate(pair, settings)[0].record()
    areas = [record["fit"].pop(name) for name in ("auroc", "average_precision")]
    assert all(0 <= area <= 1 for area in areas)
    write_record(tmp_path / "fits" / record["fit"]["fit_id"], "fit", record)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featx.evaluate.fitting.find_head", None)  # nothing is fitted again
        (answer,) = evaluate(pair, settings, known=ResultsFolder(tmp_path))
    assert (answer.auroc, answer.average_precision) == (None, None)
    assert answer.acc1 == record["fit"]["acc1"]
    ResultsFolder(tmp_path).complete([answer])
    assert len(list((tmp_path / "fits").iterdir())) == 1
    assert read_results(tmp_path)["auroc"].isna().tolist() == [True]


def test_the_table_of_an_older_featx_is_one_of_these_records(results, tmp_path):
    folder = ResultsFolder(tmp_path)
    folder.complete(results)
    frame = pd.read_csv(folder.table, dtype=str, keep_default_na=False)
    older = frame.drop(columns=["auroc", "average_precision"])
    older.to_csv(folder.table, index=False, lineterminator="\n")
    folder.complete([replace(results[0], seed=77, fit_id="f" * 16)])
    assert not list(tmp_path.glob("*.unused-*"))
    assert len(read_results(tmp_path / "results.csv")) == len(results) + 1


def test_a_table_with_lines_of_somebody_gets_another_name(results, tmp_path):
    """Of an older featx, changed by hand, or torn: a line that no record gives is not lost."""
    folder = ResultsFolder(tmp_path)
    folder.add(results[0])
    ours = folder.table.read_bytes()
    for n, theirs in enumerate([b"a,b\n1,2\n", ours + b"mine,1\n", ours[:-9], b"\xff\xfe"], 1):
        folder.table.write_bytes(theirs)
        stream = io.StringIO()
        ResultsFolder(tmp_path, Reporter(stream=stream)).complete()
        kept = tmp_path / f"results.csv.unused-{n}"
        assert kept.read_bytes() == theirs
        assert str(kept) in stream.getvalue()
        assert folder.table.read_bytes() == ours
    folder.add(results[1])
    assert len(list(tmp_path.glob("results.csv.*"))) == 5  # with the lock


def test_a_table_that_lies_alone_loses_torn_lines_only(results, tmp_path):
    folder = ResultsFolder(tmp_path / "reports")
    for result in results:
        folder.add(replace(result, notes='stopped "early", at max_iter=50'))
    lines = folder.table.read_text(encoding="utf-8").splitlines()
    lines[2] = lines[2][: lines[2].index('""early') + 4]
    copy = tmp_path / "copy.csv"
    copy.write_text("\n".join(lines) + "\n", encoding="utf-8")
    stream = io.StringIO()
    frame = read_results(copy, reporter=Reporter(stream=stream))
    assert frame["fit_id"].tolist() == [results[i].fit_id for i in (0, 2, 3)]
    assert "1 damaged line" in stream.getvalue()


def test_a_damaged_record_is_named_and_left_out(results, tmp_path):
    folder = ResultsFolder(tmp_path)
    paths = [folder.add(result) for result in results]
    text = paths[1].read_bytes()
    for damaged in (text[:-9], text.replace(b"0.", b"1.", 1), b"\xff", b"[" * 10_000, b""):
        paths[1].write_bytes(damaged)
        stream = io.StringIO()
        again = ResultsFolder(tmp_path, Reporter(stream=stream))
        assert [fit.fit_id for fit in again.fits()] == [results[i].fit_id for i in (0, 2, 3)]
        assert stream.getvalue().count(f"{paths[1]} is not used") == 1
        assert len(read_results(tmp_path, reporter=SILENT)) == 3


@pytest.mark.parametrize(
    "change",
    [{"acc1": "high"}, {"n_test": None}, {"clf": ["svm"]}, {"notes": {}}, {"settings": 3}],
)
def test_a_record_of_other_content_with_a_good_digest(results, tmp_path, change):
    record = results[0].record()
    for name, value in change.items():
        (record["fit"] if name in record["fit"] else record)[name] = value
    write_record(tmp_path / "fits" / "odd-0123456789abcdef", "fit", record)
    ResultsFolder(tmp_path).add(results[1])
    stream = io.StringIO()
    frame = read_results(tmp_path, reporter=Reporter(stream=stream))
    assert frame["fit_id"].tolist() == [results[1].fit_id]
    assert "odd-0123456789abcdef.json is not used" in stream.getvalue()


def test_rows_are_remembered_for_as_long_as_the_files_stay(results, tmp_path, monkeypatch):
    folder = ResultsFolder(tmp_path)
    paths = [folder.add(result) for result in results]
    monkeypatch.setattr(results_folder, "_RECENT_SECONDS", -60.0)  # as if a minute had passed
    folder.complete()
    text = (tmp_path / ".rows").read_text(encoding="utf-8")
    read = []
    real = results_folder.read_record
    monkeypatch.setattr(results_folder, "read_record", lambda *a: read.append(a[1]) or real(*a))
    assert ids_of(tmp_path) == [result.fit_id for result in results]
    assert read == []
    paths[2].write_text(paths[2].read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert ids_of(tmp_path) == [result.fit_id for result in results]
    assert read == [paths[2]]
    for odd in (text.replace("farm", "barn"), text[:-9], "", "{}", '{"columns": 1}'):
        (tmp_path / ".rows").write_text(odd, encoding="utf-8")
        assert set(read_results(tmp_path)["data"]) == {"farm"}
    paths[0].unlink()
    assert ids_of(tmp_path) == [result.fit_id for result in results[1:]]


def test_a_file_that_is_new_is_not_remembered(results, tmp_path):
    """It may change again within one tick of the clock, and look the same."""
    folder = ResultsFolder(tmp_path)
    folder.add(results[0])
    folder.complete()
    assert '"rows": {}' in (tmp_path / ".rows").read_text(encoding="utf-8")


def test_the_same_fit_of_another_process_is_not_added_again(results, tmp_path):
    first, second = ResultsFolder(tmp_path), ResultsFolder(tmp_path)
    path = first.add(results[0])
    assert second.add(replace(results[0], created="later", fit_seconds=9.0)) == path
    assert len(list((tmp_path / "fits").iterdir())) == 1
    # One that began to look after that, fits again on purpose.
    assert ResultsFolder(tmp_path).add(replace(results[0], created="later")) != path


def test_removed_records_leave_the_table(results, tmp_path):
    folder = ResultsFolder(tmp_path)
    paths = [folder.add(result) for result in results]
    assert folder.remove([paths[0].name]) > 0
    assert ids_of(tmp_path) == [result.fit_id for result in results[1:]]
    assert not list(tmp_path.glob("*.unused-*"))


def test_words_with_commas_and_slashes(results, tmp_path):
    folder = ResultsFolder(tmp_path)
    odd = replace(results[0], data='my "photos", ../2', notes="a,b; ü")
    path = folder.add(odd)
    assert path.parent == tmp_path / "fits"
    frame = read_results(folder.table)
    assert frame["data"].tolist() == [odd.data]
    assert frame["notes"].tolist() == [odd.notes]


def test_many_writers(results, tmp_path):
    many = [replace(results[0], repeat=i, fit_id=f"{i:016x}") for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda result: ResultsFolder(tmp_path).add(result), many))
    assert sorted(read_results(tmp_path / "results.csv")["repeat"]) == list(range(40))
    assert len(list((tmp_path / "fits").iterdir())) == 40


def test_a_writer_waits_for_another(results, tmp_path):
    folder = ResultsFolder(tmp_path)
    writer = Thread(target=folder.add, args=(results[0],))
    with locked(tmp_path / "results.csv.lock", print):
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        assert not folder.table.exists()
    writer.join(10)
    assert len(read_results(folder.table)) == 1
