"""results.csv and the JSON files outlive crashes, repeats and other versions."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Thread

import pytest
from filelock import FileLock

from featx.evaluate import COLUMNS, ResultsFolder, Settings, evaluate, read_results


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
    assert record["fit"] == results[0].row()
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


def test_a_torn_line_costs_that_line_only(results, tmp_path):
    folder = ResultsFolder(tmp_path)
    for result in results[:2]:
        folder.add(result)
    text = folder.table.read_text(encoding="utf-8")
    for cut in (1, 9, 40, 200):
        folder.table.write_text(text[:-cut], encoding="utf-8")
        folder.add(results[2])
        found = read_results(folder.table)["fit_id"].tolist()
        kept = [results[0].fit_id] + [results[1].fit_id] * (cut == 1)
        assert found == [*kept, results[2].fit_id]


def test_other_columns_are_left_alone(results, tmp_path):
    old = tmp_path / "results.csv"
    old.write_text("a,b\n1,2\n", encoding="utf-8")
    folder = ResultsFolder(tmp_path)
    for result in results[:2]:
        folder.add(result)
    assert old.read_text(encoding="utf-8") == "a,b\n1,2\n"
    assert folder.table.name == "results-2.csv"
    assert len(read_results(folder.table)) == 2


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
    with FileLock(tmp_path / "results.csv.lock"):
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        assert not folder.table.exists()
    writer.join(10)
    assert len(read_results(folder.table)) == 1


def test_a_killed_run_keeps_what_it_has(tmp_path):
    code = """
import os, sys
sys.path[:0] = [sys.argv[1]]
from memory_cache import make_cache
from featx.evaluate import Pair, ResultsFolder, Settings, evaluate
folder = ResultsFolder(sys.argv[2])
count = []
def sink(result, fit):
    folder.add(result)
    count.append(1)
    if len(count) == 3:
        os._exit(9)
evaluate(Pair(make_cache(), make_cache(split="test")), Settings(per_class=(2,)), sink=sink)
"""
    here = __file__.rsplit("/", 1)[0]
    done = subprocess.run([sys.executable, "-c", code, here, str(tmp_path)], check=False)
    assert done.returncode == 9
    assert read_results(tmp_path / "results.csv")["repeat"].tolist() == [0, 1, 2]
