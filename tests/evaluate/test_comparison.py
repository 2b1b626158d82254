"""Comparisons from kept fits: what is paired, what is refused, and what is said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from memory_cache import make_cache

from featx.errors import ProtocolError, UsageError
from featx.evaluate import Pair, ResultsFolder, Settings, compare, evaluate, format_comparison
from featx.evaluate.intervals import estimate_mean, holm


def fits_of(heads=("svm", "logreg"), noise=2.0, n_test=45, roll=0, settings=(), **meta):
    pair = Pair(
        make_cache(noise=noise, **meta), make_cache(n_test, split="test", noise=noise, **meta)
    )
    words = "-".join(map(str, meta.values()))
    for cache in (pair.train, pair.test):
        cache.fingerprint = f"{words}{cache.fingerprint}"
        rng = np.random.default_rng(len(cache.meta["split"]))
        cache.image_digests = np.roll(rng.integers(1, 255, (len(cache.y), 32), np.uint8), roll, 0)
    asked = {"per_class": (3, 6), "repeats": 3, "C": 0.01, "near": "off", **dict(settings)}
    return evaluate(pair, Settings(heads=heads, **asked))


@pytest.fixture(scope="module")
def fits():
    return [*fits_of(), *fits_of(noise=6.0, backbone="other", layer="top", input_size=64)]


def right(fit):
    return np.equal(fit.detail["predictions"], fit.detail["test_labels"]).astype(float)


def test_heads_on_every_backbone_and_size(fits):
    frame = compare(["svm", "logreg"], fits)
    assert list(zip(frame["backbone"], frame["per_class"], strict=True)) == [
        ("net", "3"),
        ("net", "6"),
        ("other", "3"),
        ("other", "6"),
    ]
    for _, line in frame.iterrows():
        own = {
            clf: [
                right(f)
                for f in fits
                if (f.clf, f.backbone, f.per_class) == (clf, line["backbone"], line["per_class"])
            ]
            for clf in ("svm", "logreg")
        }
        e = estimate_mean(np.array(own["svm"]) - np.array(own["logreg"]))
        assert line["difference_points"] == pytest.approx(100 * e.mean)
        assert (line["low_points"], line["high_points"]) == pytest.approx(
            (100 * e.low, 100 * e.high)
        )
        assert line["p"] == pytest.approx(e.p)
        assert (line["n_draws"], line["n_images"]) == (3, 45)
        accuracy = [np.mean(own[clf]) for clf in ("svm", "logreg")]
        assert line["difference_points"] == pytest.approx(100 * (accuracy[0] - accuracy[1]))
    assert frame["p_holm"].tolist() == pytest.approx(holm(frame["p"]).tolist())


def test_backbones_are_paired_by_their_images_and_may_have_other_layers(fits):
    frame = compare(["net", "other"], fits, where={"clf": ["svm"], "per_class": [6]})
    (line,) = (line for _, line in frame.iterrows())
    assert line["difference_points"] > 5
    assert (line["backbone"], line["layer"], line["clf"]) == ("", "", "svm")
    assert line["statement"].startswith("net beats other by ")
    assert line["statement"].endswith("(3 draws, 45 test images)")
    (back,) = (
        line
        for _, line in compare(["other,svm", "net,svm"], fits, where={"per_class": [6]}).iterrows()
    )
    assert back["difference_points"] == -line["difference_points"]
    assert back["low_points"] == -line["high_points"]
    assert back["statement"] == line["statement"].replace("net", "net,svm").replace(
        "other", "other,svm"
    )
    text = format_comparison(frame)
    shared, head = text.splitlines()[:2]
    assert shared == "draws 3; images 45"
    assert head.split() == ["A", "B", "difference", "low", "high", "p", "p", "(Holm)"]
    assert text.endswith(line["statement"])


def test_three_systems_make_three_pairs():
    fits = fits_of(heads=("svm", "logreg", "mlp"), settings={"per_class": (6,)}.items())
    frame = compare(["svm", "logreg", "mlp"], fits)
    assert list(zip(frame["A"], frame["B"], strict=True)) == [
        ("svm", "logreg"),
        ("svm", "mlp"),
        ("logreg", "mlp"),
    ]
    assert all("corrected p" in text for text in frame["statement"])


def test_sizes_of_subsets_are_compared_by_seed(fits):
    frame = compare(
        ["per_class=6", "per_class=3"], fits, where={"clf": ["svm"], "backbone": ["net"]}
    )
    assert frame["n_draws"].tolist() == [3]


def test_nothing_to_tell_and_a_single_draw():
    fits = fits_of(settings={"repeats": 1, "per_class": (6,)}.items())
    same = [replace(f, clf="mlp") for f in fits if f.clf == "svm"]
    (line,) = (line for _, line in compare(["svm", "mlp"], [*fits, *same]).iterrows())
    assert line["statement"] == (
        "on this one training subset, no difference between svm and mlp can be told: 0.0 points, "
        "-6.1 to 6.1, p = 1.000 (1 draw, 45 test images; nothing is said of other subsets: fit 5 "
        "or more draws)"
    )


@pytest.mark.parametrize(("repeats", "per_class"), [(1, 6), (1, "all"), (2, 6), (5, 6)])
def test_what_few_draws_can_say(repeats, per_class):
    settings = {"repeats": repeats, "per_class": (per_class,)}.items()
    strong, weak = (
        fits_of(heads=("svm",), noise=noise, n_test=90, settings=settings, backbone=name)
        for noise, name in ((0.5, "net"), (9.0, "other"))
    )
    frame = compare(["net", "other"], [*strong, *weak])
    (said,) = frame["statement"]
    assert frame["p"][0] < 0.05
    assert ("beats" in said) == (repeats > 1)
    assert said.startswith("on this one training " if repeats == 1 else "net beats other by ")
    assert ("training set," in said) == (per_class == "all")
    assert ("fit 5 or more draws" in said) == (repeats == 1 and per_class != "all")
    assert ("about that training subset alone" in format_comparison(frame)) == (repeats == 1)
    same = [replace(f, backbone="third") for f in strong]
    (said,) = compare(["net", "third"], [*strong, *same])["statement"]
    assert ("few draws make wide intervals" in said) == (repeats == 2)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"settings": {"seed": 9}.items()}, "seed (0 and 9)"),
        ({"roll": 3}, "differ in test images"),
        ({"settings": {"C": 0.5}.items()}, "C (0.01 and 0.5)"),
        ({"settings": {"scale": "l2"}.items()}, "scale (none and l2)"),
        ({"pool": "avg"}, "pool (none and avg)"),
        ({"data": "zoo"}, "data (farm and zoo)"),
    ],
)
def test_what_cannot_be_paired_says_why(other, text):
    apart = [*fits_of(("svm",)), *fits_of(("svm",), backbone="other", **other)]
    with pytest.raises(ProtocolError) as caught:
        compare(["net", "other"], apart)
    assert "net and other share no draw" in str(caught.value)
    assert text in str(caught.value)
    if "seed" in text:
        assert "fit both with the same --seed" in str(caught.value)


def test_equal_row_numbers_of_other_training_images_are_no_pair():
    """The same rows, labels and paths of two data sets whose training files differ."""
    whole = {"settings": {"per_class": ("all",)}.items()}
    one, other = fits_of(("svm",), **whole), fits_of(("svm",), backbone="other", roll=3, **whole)
    tested = one[0].detail["test_images_sha256"]
    other = [replace(fit, detail={**fit.detail, "test_images_sha256": tested}) for fit in other]
    assert one[0].subset_sha256 == other[0].subset_sha256
    with pytest.raises(ProtocolError, match="differ in train images: fit both on the same images"):
        compare(["net", "other"], [*one, *other])


@pytest.mark.parametrize(
    ("systems", "text"),
    [
        (["svm"], "two or more"),
        (["svm", "svm"], "two or more different"),
        (["svm", "logref"], "no fit has 'logref': did you mean logreg? There are data farm;"),
        (["svm", "zzz"], "backbone net, other; layer last, top"),
        (
            ["none", "svm"],
            "'none' is a value of pool and of scale and of class_weight: write pool=none",
        ),
        (["svm", "clf=mlp"], "no fit has clf=mlp: There are logreg, svm"),
        (["svm", "head=mlp"], "there is no column 'head'"),
        (["svm,logreg", "net"], "'svm,logreg' names clf twice"),
        (["net,layer=top", "other"], "no fit has all of 'net,layer=top'"),
        (
            ["net", "other,svm"],
            "'net' names 2 systems, with clf logreg, svm: say which, as in  net,clf=logreg",
        ),
    ],
)
def test_words_that_name_no_system(fits, systems, text):
    with pytest.raises(UsageError) as caught:
        compare(systems, fits)
    assert text in str(caught.value)


def test_filters(fits):
    frame = compare(["svm", "logreg"], fits, where={"data": ["farm"], "backbone": ["net"]})
    assert set(frame["backbone"]) == {"net"}
    with pytest.raises(UsageError, match="no fit has data=zoo: There are farm"):
        compare(["svm", "logreg"], fits, where={"data": ["zoo"]})


def test_of_a_classifier_that_was_changed_the_last_fit_of_a_draw_counts(fits):
    """Old and new code have the same name: only the time says which fit is of which."""
    expected = compare(["svm", "logreg"], fits)
    stale = [
        replace(fit, created="2020-01-01T00:00:00+00:00", detail={**fit.detail, "predictions": []})
        for fit in fits
    ]
    for both in ([*stale, *fits], [*fits, *stale]):
        assert compare(["svm", "logreg"], both).equals(expected)


def test_fits_are_read_from_a_folder(fits, tmp_path):
    with pytest.raises(ProtocolError, match="holds no fits: run  featx fit  first"):
        compare(["svm", "logreg"], tmp_path)
    folder = ResultsFolder(tmp_path)
    for fit in fits:
        folder.add(fit)
    from_folder = compare(["svm", "logreg"], tmp_path).sort_values(["backbone", "per_class"])
    expected = compare(["svm", "logreg"], fits).sort_values(["backbone", "per_class"])
    assert from_folder["p"].tolist() == pytest.approx(expected["p"].tolist())


def test_commas_in_the_settings_of_a_head_do_not_part_words(fits):
    name = "mlp(hidden=512,256 alpha=0.1)"
    more = [replace(f, clf=name) for f in fits if f.clf == "svm"]
    frame = compare([f"{name},net", "svm,net"], [*fits, *more], where={"per_class": ["6"]})
    assert frame["p"].tolist() == [1.0]
