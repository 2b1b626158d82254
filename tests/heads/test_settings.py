"""Settings of heads, given as values and as words."""

from __future__ import annotations

import sys

import pytest

from featx.errors import UsageError
from featx.heads import available_heads, configure, get_head, settings_of, with_settings, words_of


def test_words_become_values_of_the_right_types():
    words = ["hidden=512,256", "dropout=0.2,0", "optimizer=SGD", "early_stopping=False", "lr=1"]
    head = configure("mlp-torch", words)
    assert head.hidden == (512, 256)
    assert head.dropout == (0.2, 0.0)
    assert head.optimizer == "SGD"
    assert head.early_stopping is False
    assert head.lr == 1.0
    assert isinstance(head.lr, float)
    assert head == with_settings(
        get_head("mlp-torch"),
        {
            "hidden": [512, 256],
            "dropout": (0.2, 0),
            "optimizer": "SGD",
            "early_stopping": False,
            "lr": 1,
        },
    )


@pytest.mark.parametrize("name", available_heads())
def test_settings_survive_being_written_and_read(name):
    head = get_head(name)
    words = words_of(settings_of(head)).split()
    assert configure(name, words) == head
    assert configure(name) is head


def test_one_number_does_for_several():
    assert configure("mlp", ["hidden=7"]).hidden == (7,)
    assert with_settings(get_head("lda"), {"shrinkage": 1}).shrinkage == (1.0,)


@pytest.mark.parametrize(
    ("name", "word", "message"),
    [
        ("mlp", "hiden=3", "unknown setting of mlp 'hiden': did you mean hidden"),
        ("mlp", "hidden", "'hidden' is no setting: write key=value"),
        ("mlp", "=3", "write key=value"),
        ("mlp", "hidden=a", "hidden of mlp is 'a': it must be a whole number, or several"),
        ("mlp", "hidden=1.5", "must be a whole number, or several with commas"),
        ("mlp", "hidden=", "hidden of mlp is empty: give one number or more"),
        ("mlp", "hidden=10,0", r"must be in \[1, inf\)"),
        ("mlp", "alpha=lots", "alpha of mlp is 'lots': it must be a number"),
        ("mlp", "alpha=nan", r"alpha of mlp is nan: it must be in \[0, inf\)"),
        ("mlp", "alpha=inf", r"must be in \[0, inf\)"),
        ("mlp-torch", "early_stopping=maybe", "'maybe': it must be true or false"),
        ("mlp-torch", "batch_norm=befor", "'befor': did you mean before"),
        ("mlp-torch", "dropout=1", r"must be in \[0, 1\)"),
        ("ncm", "k=3", "ncm has no settings: leave k out"),
        ("svm", "hidden=3", "svm has no settings: leave hidden out"),
    ],
)
def test_wrong_words_are_told_on_one_line(name, word, message):
    with pytest.raises(UsageError, match=message) as caught:
        configure(name, [word])
    assert "\n" not in str(caught.value)


def test_wrong_values_are_told():
    with pytest.raises(UsageError, match="max_iter of mlp is True: it must be a whole number"):
        with_settings(get_head("mlp"), {"max_iter": True})
    with pytest.raises(UsageError, match="lr of mlp-torch is '1': it must be a number"):
        with_settings(get_head("mlp-torch"), {"lr": "1"})
    with pytest.raises(UsageError, match="svm has no settings"):
        with_settings(get_head("svm"), {"hidden": 3})
    with pytest.raises(UsageError, match="given twice"):
        configure("mlp", ["alpha=1", "alpha=2"])


def test_torch_is_not_loaded_before_it_fits():
    import subprocess

    code = (
        "import sys; from featx.heads import configure; configure('mlp-torch', ['hidden=3']); "
        "print({'torch', 'skorch'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "set()\n"
