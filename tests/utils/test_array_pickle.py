"""Arrays out of pickles: the same as numpy reads, and nothing that the file says is believed."""

from __future__ import annotations

import io
import pickle
import random
from collections import OrderedDict

import numpy as np
import pytest

from mpn_d2.utils.array_pickle import ArrayUnpickler
from mpn_d2.utils.safe_files import READ_ERRORS

try:
    from numpy._core.multiarray import _reconstruct
except ImportError:  # numpy 1
    from numpy.core.multiarray import _reconstruct


class Written:
    """What a file says, word for word: a callable, its arguments, a state."""

    def __init__(self, *words: object):
        self.words = words

    def __reduce__(self) -> tuple:
        return self.words


def read(content: object, protocol: int = 2) -> object:
    data = content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol)
    return ArrayUnpickler(io.BytesIO(data), "{} is not {}".format, encoding="latin1").load()


def array(state: tuple) -> Written:
    return Written(_reconstruct, (np.ndarray, (0,), b"b"), state)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "values",
    [
        np.arange(24, dtype="f4").reshape(2, 3, 4),
        np.asfortranarray(np.arange(6, dtype="i8").reshape(2, 3)),
        np.arange(12, dtype=">i2").reshape(3, 4)[:, ::2],
        np.zeros((0, 5), "f8"),
        np.array(3.5, "f2"),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.float32(2.5),
        np.int64(-3),
    ],
    ids=lambda x: f"{np.asarray(x).dtype.str}{np.shape(x)}",
)
def test_arrays_and_numbers(values, protocol):
    found = read(OrderedDict(a=values, again=[values]), protocol)
    np.testing.assert_array_equal(found["a"], values)
    assert found["a"].shape == values.shape and found["a"].dtype.kind == values.dtype.kind
    assert found["a"].dtype.itemsize == values.dtype.itemsize and found["again"][0] is found["a"]
    if values.ndim:
        found["a"][...] = 0  # writable, as PyTorch wants it


F4 = np.dtype("f4")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (array((1, (3,), F4, False, b"12345678")), r"8 bytes for an array of the shape \(3,\)"),
        (array((1, (-1,), F4, False, b"")), r"an array of the shape \(-1,\)"),
        (array((1, [2], F4, False, b"12345678")), r"an array of the shape \[2\]"),
        (array((1, (1,), "f4", False, b"1234")), "of something else than numbers"),
        (array((1, (1,), F4, False, [1.0])), "of something else than numbers"),
        (np.array([object], dtype=object), "an array of 'O8'"),
        (np.zeros(2, "f4,i8"), "an array of 'V12'"),
        (np.array(["a"]), "an array of 'U1'"),
        (Written(np.ndarray, ((1 << 20,),)), "not callable"),
        (Written(np.save, ("x",)), "is not an array, dict or number"),
    ],
)
def test_what_does_not_fit_is_refused(content, message):
    with pytest.raises((ValueError, TypeError), match=message):
        read(content)


def test_flags_of_dtypes_are_not_believed():
    """With them numpy takes the numbers for addresses of objects."""
    kind = Written(np.dtype, ("f4", False, True), (3, "<", None, None, None, -1, -1, 63))
    values = np.array([1.0, 2.0], "f4")
    found = read(array((1, (2,), kind, False, values.tobytes())))
    np.testing.assert_array_equal(found, values)
    with pytest.raises(ValueError, match="byte order 'x'"):
        read(Written(np.dtype, ("f4", False, True), (3, "x", None, None, None, -1, -1, 0)))


def test_broken_files_are_errors():
    whole = pickle.dumps({"a": np.ones((3, 4), "f4"), "n": np.float64(2)}, protocol=2)
    draw = random.Random(0)
    failed = 0
    for _ in range(2000):
        broken = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        try:
            read(bytes(broken))
        except READ_ERRORS:
            failed += 1
    assert failed > 1000
