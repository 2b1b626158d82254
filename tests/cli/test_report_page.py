"""``featx report``: the tables, and the page as a real browser shows it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from browsing import open_page
from sklearn.metrics import classification_report
from small_caches import write

import featx
from featx.cli import main
from featx.evaluate import ResultsFolder, compare
from featx.evaluate.table import read_lines

CLASSES = ("automobile", "</script><b>frog", "$ship_&|\u202e")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two heads at two sizes, on classes with hostile names."""
    root = tmp_path_factory.mktemp("report")
    (root / "cache").mkdir()
    X = np.random.default_rng(0).normal(size=(90, 20)).astype(np.float32)
    X[np.arange(90), np.arange(90) % 3] += 2
    write(root / "cache", "photos", "train", CLASSES, 60, 1, X=X[:60])
    write(root / "cache", "photos", "test", CLASSES, 30, 2, X=X[60:])
    words = ["fit", "--clf", "ncm", "logreg", "--per-class", "4", "8", "--repeats", "3", "--quiet"]
    places = ["--cache", str(root / "cache"), "--reports", str(root / "reports")]
    assert main([*words, *places]) == 0
    return root


def report(folder, *words):
    return main(["report", "--reports", str(folder / "reports"), *words])


def test_results_are_a_tidy_table(folder):
    frame = featx.results(folder / "reports")
    assert len(frame) == 2 * 2 * 3
    assert set(frame["clf"]) == {"ncm", "logreg"}
    assert all((folder / "reports" / "fits" / name).is_file() for name in frame["file"])
    table = pd.read_csv(folder / "reports" / "results.csv")
    assert frame["acc1"].tolist() == table["acc1"].tolist()


def test_a_line_has_the_interval_of_draws_and_test_images_together(folder):
    frame = read_lines(folder / "reports").frame
    assert frame["system"].unique().tolist() == ["vgg16, ncm", "vgg16, logreg"]
    assert (frame["low"] <= frame[["draws low", "test low"]].min(axis=1)).all()
    assert (frame["high"] >= frame[["draws high", "test high"]].max(axis=1)).all()
    assert frame["low"].min() >= 0
    assert frame["high"].max() <= 1


@pytest.mark.parametrize("form", ["md", "latex", "html"])
def test_the_best_of_a_column_is_bold(folder, capsys, form):
    assert report(folder, "--format", form) == 0
    text = capsys.readouterr().out
    frame = read_lines(folder / "reports").frame
    for _, column in frame.groupby("per class"):
        best = f"{100 * column['accuracy'].max():.1f}"
        bold = {"md": f"**{best}**", "latex": rf"\textbf{{{best}}}", "html": f"<b>{best}</b>"}
        assert bold[form] in text
    if form == "latex":
        assert r"\toprule" in text
        assert r"in per cent, 95 \%" in text


def test_csv_has_every_digit(folder, capsys):
    assert report(folder, "--format", "csv") == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines[0].split(",").index("accuracy") + 1  # the name of a system has a comma
    accuracies = [float(line.split(",")[at]) for line in lines[1:]]
    assert accuracies == read_lines(folder / "reports").frame["accuracy"].tolist()


def test_scores_of_classes_are_those_of_scikit_learn_over_all_draws(folder, capsys):
    assert report(folder, "--classes", "vgg16, ncm", "--format", "csv") == 0
    text = capsys.readouterr().out
    fits = featx.results(folder / "reports").query("clf == 'ncm' and per_class == '8'")
    records = [json.loads((folder / "reports/fits" / name).read_text()) for name in fits["file"]]
    truth = np.concatenate([record["test_labels"] for record in records])
    guess = np.concatenate([record["predictions"] for record in records])
    expected = classification_report(truth, guess, output_dict=True)
    found = re.findall(r"^automobile,([\d.]+),([\d.]+),([\d.]+),10,.*8 per class", text, re.M)
    names = ("precision", "recall", "f1-score")
    wanted = [expected["0"][name] for name in names]
    assert [float(x) for x in found[0]] == pytest.approx(wanted, abs=1e-4)


def test_names_are_escaped_in_tables(folder, capsys):
    for form, bad in (("html", "<b>frog"), ("latex", "\n$ship"), ("md", "&|")):
        assert report(folder, "--classes", "vgg16, ncm", "--format", form) == 0
        assert bad not in capsys.readouterr().out


def test_what_is_missing_is_said(folder, tmp_path, capsys):
    assert main(["report", "--reports", str(tmp_path / "none")]) != 0
    assert "featx extract  and  featx fit  first" in capsys.readouterr().err
    assert report(folder, "--classes", "vgg16, nmc") != 0
    assert "did you mean vgg16, ncm" in capsys.readouterr().err
    assert report(folder, "--data", "other") != 0
    assert "no fit" in capsys.readouterr().err


def test_charts_are_pictures(folder, tmp_path):
    plot = pytest.importorskip("featx.plot")
    lines = read_lines(folder / "reports")
    fits = featx.results(folder / "reports")
    record = json.loads((folder / "reports/fits" / fits["file"].iloc[-1]).read_text())
    compared = compare(["ncm", "logreg"], folder / "reports")
    charts = [
        *(plot.learning_curve(lines), plot.learning_curve(fits), plot.cost(lines, "dim")),
        *(plot.confusion(record), plot.recall(record), plot.calibration(record)),
        plot.comparison(compared),
        plot.training_curve([{"epoch": 1, "train_acc": 0.5, "valid_acc": 0.4}]),
    ]
    for i, chart in enumerate(charts):
        chart.save(str(tmp_path / f"{i}.svg"))
        assert (tmp_path / f"{i}.svg").read_text().startswith("<svg")
    with pytest.raises(featx.FeatxError, match="nothing to draw"):
        plot.settings_curve(lines, "input")
    with pytest.raises(featx.FeatxError, match="nothing to draw"):
        plot.cost(lines, "extraction")


def test_confusions_are_shown_the_same_from_both_forms(folder):
    plot = pytest.importorskip("featx.plot")
    from featx.report.details import details_of, read_fits

    results = ResultsFolder(folder / "reports")
    fits = read_fits(results, [name for name, row in results.rows().items() if not row["error"]])
    both = []
    for fit in fits[:2]:
        detail = dict(fit.detail)
        matrix = np.array(detail.pop("confusion_matrix"))
        at = np.nonzero(matrix)
        detail["confusion_cells"] = np.column_stack([*at, matrix[at]]).tolist()
        assert plot.confusion_cells(detail) == plot.confusion_cells(fit.detail)
        both.append(replace(fit, detail=detail))
    told, of_cells = details_of(fits[:2]), details_of(both)
    for name in ("classes", "cells", "confused"):
        assert told[name] == of_cells[name]
    assert sum(n for _, _, n in told["cells"]) == sum(fit.n_test for fit in both)


@pytest.fixture(scope="module")
def page(folder):
    pytest.importorskip("altair")
    assert report(folder, "--quiet") == 0
    return folder / "reports" / "index.html"


def test_the_page_is_small_and_holds_no_name_as_markup(page):
    text = page.read_text(encoding="utf-8")
    assert len(text) < 5_000_000
    assert "<b>frog" not in text
    assert "pictures of photos: " in text  # the data cannot be opened: the page says so


def test_a_damaged_record_is_left_out_and_named(folder, tmp_path, capsys):
    pytest.importorskip("altair")
    shutil.copytree(folder / "reports", tmp_path / "reports")
    bad = next((tmp_path / "reports" / "fits").iterdir())
    bad.write_text(bad.read_text()[:-20])
    assert main(["report", "--reports", str(tmp_path / "reports")]) == 0
    said = capsys.readouterr()
    assert bad.name in said.err
    assert "11 fits" in said.out


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1300])
def test_the_page_opens_without_errors_or_requests(browser, page, width, scheme):
    tab, problems = open_page(browser, page, width, scheme)
    tab.locator(".open").first.click()
    tab.wait_for_selector("#line-recall svg")
    assert problems == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("#line-classes tbody tr").count() == 3
    assert CLASSES[1] in tab.locator("#line-classes").inner_text()
    tab.context.close()


def test_searching_sorting_and_filtering_change_the_table_and_the_charts(browser, page):
    tab, _ = open_page(browser, page)
    rows, firsts = tab.locator("#lines tbody tr"), []
    marks = tab.locator("#chart-seconds .mark-symbol.role-mark path")
    assert (rows.count(), marks.count()) == (4, 4)
    tab.locator(".dt-search input").fill("logreg")
    tab.wait_for_function("document.querySelectorAll('#lines tbody tr').length == 2")
    tab.wait_for_function(
        "document.querySelectorAll('#chart-seconds .mark-symbol.role-mark path').length == 2"
    )
    tab.locator("#clear").click()
    tab.wait_for_function("document.querySelectorAll('#lines tbody tr').length == 4")
    tab.locator("[data-filter]").last.select_option("8")
    tab.wait_for_function("document.querySelectorAll('#lines tbody tr').length == 2")
    tab.locator("#clear").click()
    tab.locator(".tick").first.check()
    tab.wait_for_function(
        "document.querySelectorAll('#chart-seconds .mark-symbol.role-mark path').length == 1"
    )
    tab.locator("#clear").click()
    for way in ("ascending", "descending"):
        tab.locator("#lines thead th", has_text="accuracy").click()
        tab.wait_for_selector(f"#lines th[aria-sort={way}]")
        firsts.append(rows.first.inner_text())
    assert firsts[0] != firsts[1]
    tab.context.close()


def test_axe_finds_nothing_serious(browser, page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tab, _ = open_page(browser, page)
    tab.locator(".open").first.click()
    tab.wait_for_selector("#line-recall svg")
    found = axe.run(tab).response["violations"]
    grave = [v for v in found if v["impact"] in ("serious", "critical")]
    serious = [(v["id"], v["nodes"][0]["html"][:200]) for v in grave]
    assert serious == []
    tab.context.close()


def test_the_command_of_a_line_answers_it(folder, capsys):
    from featx.evaluate import ResultsFolder
    from featx.report.details import details_of, read_fits

    lines, results = read_lines(folder / "reports"), ResultsFolder(folder / "reports")
    fits = read_fits(results, lines.files["line-1"])
    words = shlex.split(details_of(fits)["command"])[1:]
    places = ["--cache", str(folder / "cache"), "--reports", str(folder / "reports")]
    assert main([*words, *places]) == 0
    assert "3 fits answered" in capsys.readouterr().out


@pytest.fixture(scope="module")
def digits_page(digits_folder, tmp_path_factory):
    """The page of fits on real digits."""
    pytest.importorskip("altair")
    reports = tmp_path_factory.mktemp("digits-reports")
    places = ["--cache", str(digits_folder / "cache"), "--reports", str(reports), "-q"]
    assert main(["fit", "--clf", "ncm", "--per-class", "8", "--repeats", "2", *places]) == 0
    assert main(["report", "--reports", str(reports), "-q"]) == 0
    return reports / "index.html"


def test_confident_mistakes_are_those_of_the_record_with_their_pictures(digits_page):
    from featx.evaluate import ResultsFolder
    from featx.report.details import Pictures, details_of, read_fits

    lines, results = read_lines(digits_page.parent), ResultsFolder(digits_page.parent)
    (fit, _) = read_fits(results, lines.files["line-1"])
    pictures = Pictures()
    mistakes = details_of([fit], pictures)["mistakes"]
    wrong = np.flatnonzero(np.not_equal(fit.detail["predictions"], fit.detail["test_labels"]))
    assert len(mistakes) == min(12, len(wrong)) > 0
    test = featx.Cache.open(fit.detail["test_cache"])
    labels = dict(zip(test.paths, np.take(test.class_names, test.y), strict=True))
    for mistake in mistakes:
        assert mistake["label"] == labels[mistake["path"]]
        assert not mistake["guess"].startswith(mistake["label"])
        assert pictures.shelf[mistake["picture"]].startswith("data:image/jpeg;base64,")
    assert len({mistake["picture"] for mistake in mistakes}) == len(mistakes)


def test_the_time_of_the_extraction_is_known(digits_page, digits_folder):
    plot = pytest.importorskip("featx.plot")
    from featx.evaluate.table import extraction_seconds

    lines = read_lines(digits_page.parent)
    seconds = json.loads((digits_folder / "cache" / ".seconds.json").read_text())
    assert extraction_seconds(lines) == pytest.approx([sum(seconds.values())])
    assert "seconds of the extraction" in plot.cost(lines, by="extraction").to_json()
    assert "time of the extraction" in digits_page.read_text(encoding="utf-8")


def test_the_page_shows_pictures_of_mistakes(browser, digits_page):
    tab, problems = open_page(browser, digits_page)
    tab.locator(".open").first.click()
    tab.wait_for_selector("#line-recall svg")
    pictures = tab.locator("#line-mistakes img")
    assert pictures.count() > 0
    decoded = "all => Promise.all(all.map(i => i.decode().then(() => i.naturalWidth)))"
    widths = pictures.evaluate_all(decoded)
    assert min(widths) > 0
    assert problems == []
    tab.context.close()


def test_an_image_of_a_leak_is_found_by_its_path_whatever_its_class_is_called():
    from types import SimpleNamespace

    from featx.report.details import _path

    fit = SimpleNamespace(detail={"class_names": ["cat", "cat (big)", "big"]})
    assert _path("a (1).jpg (cat)", fit) == "a (1).jpg"
    assert _path("b.jpg (cat (big))", fit) == "b.jpg"
    assert _path("c.jpg (unknown)", fit) == "c.jpg"
