from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from state.columns import ColumnReader, ColumnWriter
from state.errors import StateError

MAGIC = b"TESTFIL\x01"


def write(path: Path, names: list[str], numbers: np.ndarray) -> bytes:
    with path.open("wb") as file:
        writer = ColumnWriter(file, MAGIC)
        footer = {"names": writer.names(names), "numbers": writer.array(numbers), "empty": writer.array(numbers[:0])}
        assert writer.finish(footer) == file.tell()
    return path.read_bytes()


def read(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    with path.open("rb") as file:
        reader = ColumnReader(file, path, MAGIC)
        footer = reader.footer
        return reader.names(footer["names"]), reader.array(footer["numbers"]), reader.array(footer["empty"])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text(max_size=5) | st.just("\ud800\n\0"), max_size=20), seed=st.integers(0, 9))
def test_round_trip(tmp_path: Path, names: list[str], seed: int) -> None:
    path = tmp_path / "file"
    numbers = np.random.default_rng(seed).normal(size=(seed, 3)).astype(np.float16)
    write(path, names, numbers)
    read_names, read_numbers, empty = read(path)
    assert read_names == names
    assert read_numbers.tobytes() == numbers.tobytes()
    assert empty.shape == (0, 3)


def test_columns_longer_than_a_piece(tmp_path: Path) -> None:
    numbers = np.random.default_rng(1).integers(0, 100, (20_011, 50), np.int32)
    write(tmp_path / "file", [], numbers)
    mapping = np.arange(100, dtype=np.int32)[::-1].copy()
    into = np.zeros_like(numbers)
    with (tmp_path / "file").open("rb") as file:
        reader = ColumnReader(file, tmp_path / "file", MAGIC)
        assert (reader.array(reader.footer["numbers"]) == numbers).all()
        reader.translate(reader.footer["numbers"], mapping, into)
    assert (into == 99 - numbers).all()


def test_every_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = write(path, ["ann", "bob"], np.arange(4, dtype=np.int32))
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        with pytest.raises(StateError):
            read(path)
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 1 << position % 8
        path.write_bytes(broken)
        with pytest.raises(StateError):
            read(path)


def test_a_column_is_not_read_into_another_shape_or_type(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, [], np.arange(4, dtype=np.int32))
    with path.open("rb") as file:
        reader = ColumnReader(file, path, MAGIC)
        for wrong in (np.zeros(5, np.int32), np.zeros(4, np.uint32)):
            with pytest.raises(StateError, match="another shape or type"):
                reader.into(reader.footer["numbers"], wrong)
