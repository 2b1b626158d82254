"""The summary: means, and two uncertainties that are kept apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from featx.errors import UsageError
from featx.evaluate import Settings, evaluate, format_table, summarise
from featx.evaluate.result import QUESTION_COLUMNS, joined


@pytest.fixture
def results(pair):
    base = evaluate(pair, Settings(per_class=(2,), repeats=1, C=0.01))[0]
    values = (0.5, 0.6, 0.7)
    return [
        replace(base, repeat=i, seed=i, acc1=a, n_test=100, fit_seconds=float(i), C=10.0**i)
        for i, a in enumerate(values)
    ]


def test_intervals_over_draws_and_over_test_images(results):
    line = summarise(results).iloc[0]
    assert line["accuracy"] == pytest.approx(0.6)
    ends = stats.t.interval(0.95, 2, loc=0.6, scale=stats.sem([0.5, 0.6, 0.7]))
    assert (line["draws low"], line["draws high"]) == pytest.approx(ends)
    ends = stats.binomtest(60, 100).proportion_ci(method="wilson")
    assert (line["test low"], line["test high"]) == pytest.approx((ends.low, ends.high))
    assert line["test images"] == 100
    assert (line["repeats"], line["C"], line["seconds"]) == (3, 10.0, 1.0)


@pytest.mark.parametrize("column", QUESTION_COLUMNS)
def test_what_makes_the_question_parts_the_lines(results, column):
    """Whatever differs between two sets of draws is never pooled, and is told in the line."""
    frame = pd.DataFrame([result.row() for result in results])
    other = frame.assign(
        **{column: frame[column].map(lambda v: 7 if isinstance(v, int) else "other")}
    )
    both = pd.concat([frame.astype(object), other.astype(object)], ignore_index=True)
    table = summarise(both)
    assert table["repeats"].tolist() == [3, 3]
    assert not table.drop(columns=["C", "seconds"]).duplicated().any()


def test_a_draw_counts_once_whatever_its_number(results):
    again = [replace(result, repeat=result.repeat + 5) for result in results]
    assert summarise([*results, *again])["repeats"].tolist() == [3]
    assert format_table(summarise([*results, *again])) == format_table(summarise(results))


def test_one_line_for_each_system_and_size(results):
    more = [replace(results[0], clf="mlp", C=None), replace(results[0], per_class="all")]
    table = summarise([*results, *more, replace(results[0], input_size=64)])
    assert table["repeats"].tolist() == [3, 1, 1, 1]
    assert np.isnan(table["draws low"].tolist()[1])
    assert table["per class"].tolist() == ["2", "2", "all", "2"]


def test_other_test_images_are_another_system(results):
    assert len(summarise([*results, replace(results[0], n_test=90)])) == 2


def test_the_text_is_aligned_and_tells_the_notes(results):
    noted = replace(results[0], clf="mlp", C=None, notes="no test split: 20%; stopped")
    text = format_table(summarise([*results, noted])).splitlines()
    shared, head, rule, svm, mlp = text[:5]
    assert shared == "data farm; backbone net; layer last; dim 100; test images 100"
    names = ["head", "per class", "repeats", "accuracy", "95 % draws", "95 % test", "C", "seconds"]
    assert head.split() == " ".join(names).split()
    assert len(rule) == len(head) == len(svm) == len(mlp) <= 80
    assert "0.600  0.352–0.848  0.502–0.691" in svm
    assert svm.split()[0] == "svm"
    assert " - " in mlp
    assert text[5:] == [
        "mlp: no test split: 20% (1 of 1 fits)",
        "mlp: stopped (1 of 1 fits)",
    ]


def test_a_note_is_told_once_and_counted_over_the_fits_of_the_heads_that_have_it(results):
    base, shared = results[0], "no test split"
    fits = [replace(base, notes=shared, seed=r) for r in range(3)]
    fits += [
        replace(base, clf="mlp", seed=r, notes=f"{shared}; late after {r} epochs") for r in (4, 9)
    ]
    fits += [replace(base, clf="mlp", notes=joined([shared, "late; or early"]))]
    fits += [replace(base, clf="knn", notes=shared), replace(base, clf="ncm", notes="late")]
    assert summarise(fits).attrs["notes"] == [
        "svm, mlp, knn: no test split (7 of 7 fits)",
        "mlp, ncm: late (3 of 4 fits)",
        "mlp: late: or early (1 of 3 fits)",
    ]
    assert summarise(fits[:-1]).attrs["notes"][0] == "no test split (7 of 7 fits)"


def test_a_fit_that_failed_counts_in_no_mean_and_has_its_reason(results):
    lost = dict.fromkeys(("acc1", "train_acc1", "recall", "macro_f1", "C"))
    detail = results[0].detail | {"error": "no luck"}
    failed = replace(results[0], **lost, seed=9, notes="failed: no luck", detail=detail)
    table = summarise([*results, failed])
    assert table["accuracy"].tolist() == summarise(results)["accuracy"].tolist()
    assert table["repeats"].tolist() == [3]
    assert table.attrs["notes"] == ["svm: failed: no luck (1 of 4 fits)"]
    text = format_table(summarise([failed])).splitlines()
    assert "nan" not in text[3]
    assert text[3].split()[2:5] == ["-", "-", "-"]


def test_areas_are_means_over_draws_unless_a_draw_has_none(results):
    fits = [replace(r, auroc=0.9 + r.repeat / 100, average_precision=0.5) for r in results]
    areas = ["auroc", "average_precision"]
    table = summarise([*fits, replace(fits[0], acc1=None, auroc=None, seed=9)], areas)
    assert table["auroc"].tolist() == pytest.approx([np.mean([r.auroc for r in fits])])
    assert table["average_precision"].tolist() == [0.5]
    assert "auroc  average_precision" in format_table(table)
    older = summarise([replace(fits[0], auroc=None), *fits[1:]], areas)
    assert np.isnan(older["auroc"][0])
    assert "auroc" not in summarise(fits)
    with pytest.raises(UsageError, match="did you mean auroc"):
        summarise(fits, ["auc"])
    frame = pd.DataFrame([r.row() for r in fits]).drop(columns="auroc")
    assert np.isnan(summarise(frame, ["auroc"])["auroc"][0])


def test_a_table_read_from_disk_is_summarised_likewise(results):
    frame = pd.DataFrame([result.row() for result in results])
    assert format_table(summarise(frame)) == format_table(summarise(results))
    assert summarise([]).empty
    assert format_table(summarise([])).startswith("data")


def test_no_two_lines_are_alike(results):
    base = results[0]
    assert list(summarise(results).columns)[:4] == ["data", "backbone", "layer", "dim"]
    changes = {
        "precision": ("precision", "bf16"),
        "scale": ("scale", "l2"),
        "class_weight": ("class weight", "balanced"),
        "input_size": ("input", "64"),
        "pool": ("pool", "avg"),
        "weights": ("weights", "V2"),
    }
    for name, (column, value) in changes.items():
        other = replace(base, **{name: int(value) if name == "input_size" else value})
        table = summarise([base, other])
        assert table[column].tolist()[1] == value
        assert len(table.columns) == len(summarise(results).columns) + 1
    table = summarise([base, replace(base, n_test=90)])
    assert table["test images"].tolist() == [100, 90]
    table = summarise([base, replace(base, train_fingerprint="0123456789")])
    assert table["cache"].tolist()[1] == "01234567"
    assert "test cache" not in table
    many = [base, replace(base, scale="l2"), replace(base, precision="bf16")]
    table = summarise([*many, replace(base, train_fingerprint="other")])
    assert {"scale", "precision", "cache"} <= set(table.columns)
    assert not table.iloc[:, : table.columns.get_loc("repeats")].duplicated().any()
