from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.fingerprint import canonical_json, differences, fingerprint, sha256_file

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_the_fingerprint_of_one_identity_never_changes():
    identity = {"b": [1, 2.5, None], "a": {"ü": "x", "flag": True}}
    assert canonical_json(identity) == '{"a":{"flag":true,"ü":"x"},"b":[1,2.5,null]}'.encode()
    assert fingerprint(identity) == (
        "103f64194cb3e0256ec99d20c89fba2163116538b43cd2aecf4158a70c04f625"
    )


@given(st.dictionaries(st.text(), values, max_size=4))
def test_order_of_keys_does_not_count(identity):
    backwards = dict(reversed(list(identity.items())))
    assert fingerprint(backwards) == fingerprint(identity)
    assert differences(identity, backwards) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_refused(value):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": value})


def test_differences_name_nested_fields():
    lines = differences(
        {"a": {"x": 1, "y": (1, 2)}, "c": 1}, {"a": {"x": 2, "y": [1, 2]}, "b": None}
    )
    assert lines == [
        "a.x: asked for 1, the file has 2",
        "b: asked for nothing, the file has None",
        "c: asked for 1, the file has nothing",
    ]


def test_sha256_of_a_file_longer_than_one_read(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "f").write_bytes(content)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()
