from __future__ import annotations

import contextlib
import os
import pickle
import pickletools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sets
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.errors import SourceError
from featx.sources.official import plain_pickle
from featx.sources.official.plain_pickle import PickledArray, read_plain_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=60),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=9), inner, max_size=4)
        | st.tuples(inner, inner)
        | st.tuples(inner)
    ),
)


@settings(deadline=None)
@given(value=_PLAIN, protocol=st.sampled_from(PROTOCOLS))
def test_plain_values_come_back(value: Any, protocol: int) -> None:
    assert read_plain_pickle(pickle.dumps(value, protocol), "x") == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", ["u1", "i4", "i8"])
@pytest.mark.parametrize("shape", [(3, 200), (5,), (0,), (2, 3, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back(protocol: int, dtype: str, shape: tuple[int, ...], order: Any) -> None:
    array = np.asarray(np.arange(np.prod(shape)).reshape(shape).astype(dtype), order=order)
    data = pickle.dumps({"first": array, "again": array}, protocol)
    if array.size == 0 and protocol < 3:
        return  # written as a call of bytes()
    read = read_plain_pickle(data, "x")
    assert read["first"] is read["again"]
    assert read["first"].values.dtype == array.dtype
    np.testing.assert_array_equal(read["first"].values, array)
    start = read["first"].start
    if start is not None:
        assert data[start : start + array.nbytes] == array.tobytes("C")


def test_the_pickles_of_2009_say_where_their_pixels_lie() -> None:
    data = tiny_sets.cifar_batch("cifar10", "train", slice(0, 6))
    assert data[:2] == b"\x80\x02"
    entry = read_plain_pickle(data, "data_batch_1")
    pixels = tiny_sets.pixels_of("cifar10", "train")[:6].transpose(0, 3, 1, 2).reshape(6, -1)
    array = entry["data"]
    assert isinstance(array, PickledArray)
    np.testing.assert_array_equal(array.values, pixels)
    assert array.start is not None
    assert data[array.start : array.start + pixels.size] == pixels.tobytes()
    assert entry["labels"] == tiny_sets.labels_of("train")[:6].tolist()


@dataclass
class _Payload:
    called: Any
    arguments: tuple[Any, ...]

    def __reduce__(self) -> Any:
        return self.called, self.arguments


class _State:
    def __setstate__(self, state: Any) -> None:
        raise AssertionError("its state was set")

    def __getstate__(self) -> Any:
        return {"a": 1}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_is_run(protocol: int, tmp_path: Path) -> None:
    target = tmp_path / "sprung"
    for called, arguments, name in (
        (os.system, (f"touch {target}",), "system"),
        (Path.touch, (target,), "getattr|Path"),
        (eval, (f"open({str(target)!r}, 'w')",), "eval"),
        (open, (str(target), "w"), "open"),
    ):
        data = pickle.dumps({"data": [_Payload(called, arguments)]}, protocol)
        with pytest.raises(
            SourceError, match=f"evil is a pickle that wants to run .*({name})"
        ) as e:
            read_plain_pickle(data, "evil")
        assert "nothing was run" in str(e.value)
        assert not target.exists()
    pickle.loads(pickle.dumps(_Payload(open, (str(target), "w")))).close()
    assert target.exists()  # what pickle.load does


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_object_is_made(protocol: int) -> None:
    for value in (_State(), Path("x"), {1, 2}, 1j, np.float64(1), np.array([None]), np.dtype("O")):
        with pytest.raises(SourceError, match="wants to run"):
            read_plain_pickle(pickle.dumps(value, protocol), "x")


def _names(*names: str, then: bytes) -> bytes:
    return b"".join(b"c" + name.encode() + b"\n" for name in names) + then


@pytest.mark.parametrize(
    "data",
    [
        _names("os\nsystem", then=b"U\x02idR."),
        b"(ios\nsystem\n.",  # INST
        b"(cos\nsystem\nU\x02ido.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # STACK_GLOBAL
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pname\n.",  # PERSID
        b"\x80\x05\x97.",  # NEXT_BUFFER
        _names("numpy\ndtype", then=b"U\x01O\x85R."),
        _names("numpy\ndtype", then=b"U\x08u1,(9,)O\x85R."),
        _names("numpy\nndarray", then=b"K\x01\x85R."),
        _names("numpy\nndarray", then=b"}b."),
        _names("_codecs\nencode", then=b"U\x01aU\x03hex\x86R."),
        b"U\x01a}b.",  # the state of a text
        b"]U\x01a\x85R.",  # a list is called
    ],
)
def test_what_is_no_data_is_refused(data: bytes) -> None:
    with pytest.raises(SourceError, match="wants to run .*: nothing was run"):
        read_plain_pickle(data, "x")


_LAUGHS = b"U\x01a" + b"q\x00h\x00\x86" * 300  # (((a, a), (a, a)), ...): 2 ** 300 texts


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"hello, world",
        b"\x80\x02}",
        b"\x80\x02K\x01K\x02.",
        b"}]N" + b"s.",
        b"N]e.",
        b"(K\x01e.",
        b"]K\x01s.",
        b"K\x01N\x93.",
        b"h\x07.",
        b"\x80\x02T\xff\xff\xff\x7fabc.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc.",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"abc.",
        b"L" + b"9" * 5000 + b"L\n.",
        b"}" + _LAUGHS + b"K\x01s.",
        _LAUGHS + _LAUGHS + b"\x93.",
        pickle.dumps({"a": np.arange(9)}, 2)[:-40] + b".",
    ],
)
def test_damaged(data: bytes) -> None:
    with pytest.raises(SourceError, match="^x is no pickle, or damaged"):
        read_plain_pickle(data, "x")


@pytest.mark.parametrize("end", [b"K\x01\x85R.", b"}b.", b"\x85R."])
def test_a_text_that_never_ends_is_not_shown(end: bytes) -> None:
    for head in (b"cnumpy\ndtype\n", b"c_codecs\nencode\n", b""):
        with pytest.raises(SourceError) as caught:
            read_plain_pickle(head + _LAUGHS + end, "x")
        assert len(str(caught.value)) < 400


def test_a_huge_memo_costs_nothing() -> None:
    data = b"\x80\x02K\x07r\xff\xff\xff\x7f."  # pickle.load would allocate 32 GB here
    assert read_plain_pickle(data, "x") == 7


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps(list(range(300)), 2)
    n_steps = sum(1 for _ in pickletools.genops(data))
    monkeypatch.setattr(plain_pickle, "MAX_STEPS", n_steps - 2)
    with pytest.raises(SourceError, match="more than .* steps"):
        read_plain_pickle(data, "x")
    monkeypatch.setattr(plain_pickle, "MAX_BYTES", len(data) - 1)
    with pytest.raises(SourceError, match="x has .* bytes, more than"):
        read_plain_pickle(data, "x")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_damage_is_a_source_error_or_plain_data(drawn: st.DataObject) -> None:
    whole = bytearray(tiny_sets.cifar_batch("cifar100", "test", slice(0, 1)))
    for _ in range(drawn.draw(st.integers(1, 4))):
        at = drawn.draw(st.integers(0, 200) | st.integers(0, len(whole) - 1))
        whole[at] = drawn.draw(st.integers(0, 255))
    with contextlib.suppress(SourceError):
        read_plain_pickle(bytes(whole), "x")
