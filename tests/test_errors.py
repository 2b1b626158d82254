from __future__ import annotations

import featx.errors
from featx.errors import CacheMismatchError, FeatxError, MissingExtraError, UsageError, unknown_name


def test_every_error_is_a_featx_error_with_an_exit_code():
    for name in featx.errors.__all__:
        value = getattr(featx.errors, name)
        if isinstance(value, type):
            assert issubclass(value, FeatxError)
            assert value.exit_code == (2 if issubclass(value, UsageError) else 1)


def test_unknown_name_suggests_the_nearest_and_says_where_all_are():
    error = unknown_name("backbone", "vgg_16", ["vgg16", "resnet50", "VGG19"], see="featx list")
    assert "did you mean vgg16" in str(error)
    assert "featx list" in str(error)


def test_unknown_name_lists_all_where_nothing_is_near():
    assert str(unknown_name("pool", "zzz", ["max", "avg"])).endswith("choose from avg, max")


def test_a_mismatch_prints_one_line_a_field():
    error = CacheMismatchError("differs", ["a: 1", "b: 2"])
    assert str(error).splitlines() == ["differs", "  a: 1", "  b: 2"]


def test_a_missing_extra_says_how_to_install_it():
    assert "pip install 'featx[demo]'" in str(MissingExtraError("timm", "demo", "the backbone x"))
