"""``featx reports``, and two commands side by side."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from small_caches import CIFAR, write

from featx.cli import main

FIT = ["fit", "--clf", "svm", "--C", "0.01", "--per-class", "4", "--repeats", "3", "--quiet"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cache"
    folder.mkdir()
    write(folder, "cifar", "train", CIFAR, 60, 1)
    write(folder, "cifar", "test", CIFAR, 30, 2)
    return folder


def names():
    return sorted(path.name for path in Path("reports/fits").iterdir())


def test_two_commands_side_by_side_leave_every_fit_once(cache, forks):
    run = "from featx.cli import main; raise SystemExit(main())"
    both = [forks.start(run, *FIT) for _ in range(2)]
    assert [one.wait(300) for one in both] == [0, 0]
    assert len(names()) == 3
    assert pd.read_csv("reports/results.csv")["seed"].tolist() == [0, 1, 2]


def test_one_table_of_all_that_is_kept(cache, capsys):
    assert main(FIT) == 0
    first = capsys.readouterr().out.splitlines()
    assert main([*FIT, "--seed", "50"]) == 0
    capsys.readouterr()
    assert main(["reports", "list"]) == 0
    shared, head, _, *lines, last = capsys.readouterr().out.splitlines()
    assert "first seed" in head
    assert len(lines) == 2
    assert shared == first[0]
    assert set(first[3].split("  ")) <= set(lines[0].split("  "))
    assert last.startswith("6 fits in reports/fits, ")


def test_prune_asks_and_removes_what_gives_no_line(cache, capsys, monkeypatch):
    assert main(FIT) == 0
    table = Path("reports/results.csv").read_bytes()
    assert main([*FIT, "--refit"]) == 0
    damaged = Path("reports/fits") / names()[0]
    damaged.write_text("{", encoding="utf-8")
    assert len(names()) == 6
    monkeypatch.setattr("click.confirm", lambda text: False)
    assert main(["reports", "prune"]) == 0
    assert "nothing was removed" in capsys.readouterr().out
    assert len(names()) == 6
    assert main(["reports", "prune", "--yes"]) == 0
    out = capsys.readouterr().out
    assert f"{damaged}: cannot be read" in out
    assert "removed 3, freed" in out
    assert len(names()) == 3
    frame = pd.read_csv("reports/results.csv")
    assert frame["fit_id"].tolist() == [line.split(",")[-15] for line in _lines(table)]
    assert main(["reports", "prune", "--yes"]) == 0
    assert "nothing to remove in reports" in capsys.readouterr().out
    # The line of the damaged one is of no record any more: the table that had it is kept.
    assert len(list(Path("reports").glob("*.unused-*"))) == 1


def _lines(table):
    columns = table.decode().splitlines()[0].split(",")
    assert columns[-15] == "fit_id"
    return table.decode().splitlines()[1:]


def test_prune_of_systems_and_of_caches_that_are_gone(cache, capsys):
    assert main(FIT) == 0
    assert main([*FIT, "--clf", "logreg"]) == 0
    assert main(["reports", "prune", "svm", "--yes"]) == 0
    assert pd.read_csv("reports/results.csv")["clf"].tolist() == ["logreg"] * 3
    assert main(["reports", "prune", "--gone", "--yes"]) == 0
    assert len(names()) == 3
    for file in cache.glob("*.h5"):
        file.unlink()
    assert main(["reports", "prune", "--gone", "--yes"]) == 0
    assert names() == []
    capsys.readouterr()
    for words, said in (
        (["prune", "--gone", "--cache", "none"], "no cache folder none"),
        (["prune", "--gone", "svm"], "leave the words out"),
        (["list", "--reports", "none"], "there is no folder none"),
    ):
        assert main(["reports", *words]) in (1, 2)
        assert said in capsys.readouterr().err


def test_an_older_table_is_kept_under_another_name(cache, capsys):
    Path("reports").mkdir()
    older = b"data,backbone,acc1,fit_id\nphotos,net,0.9,0123456789abcdef\n"
    Path("reports/results.csv").write_bytes(older)
    assert main(FIT) == 0
    captured = capsys.readouterr()
    assert Path("reports/results.csv.unused-1").read_bytes() == older
    assert "it is kept as reports/results.csv.unused-1" in captured.err
    assert len(pd.read_csv("reports/results.csv")) == 3
    assert main(FIT) == 0
    assert "kept as" not in capsys.readouterr().err


def test_compare_takes_the_cache_of_today(cache, capsys):
    words = [*FIT, "--clf", "svm", "logreg"]
    assert main(words) == 0
    (cache / next(p.name for p in cache.iterdir() if "train" in p.name)).unlink()
    content = {"source": {"content": "more"}, "weights_sha256": "w", "input_size": 32}
    write(cache, "cifar", "train", CIFAR, 70, 1, identity=content)
    assert main(words) == 0
    capsys.readouterr()
    assert main(["compare", "svm", "logreg"]) == 0
    assert "3 draws" in capsys.readouterr().out
    assert main(["compare", "svm", "logreg", "--cache", "none"]) == 2
    assert "with cache" in capsys.readouterr().err


def test_the_command_line_knows_every_measure():
    from featx.cli.options import MEASURES
    from featx.evaluate import scores

    assert ("acc1", *MEASURES) == scores.MEASURES
