import bz2
import gzip
import io
import json
import lzma
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import cramjam
import numpy as np
import polars as pl
import pytest

from models.tables import Events, TableError, parse_columns, parse_types, read_recbole, read_table


def naive(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC).replace(tzinfo=None)  # type: ignore[arg-type, misc]


ROWS = [
    {"user_id": "u1", "item_id": "007", "timestamp": "1700000000", "event_type": "click", "price": "2.5"},
    {"user_id": "u2", "item_id": "1.0", "timestamp": "1700000003.25", "event_type": "purchases", "price": ""},
    {"user_id": "ü 3", "item_id": "茶", "timestamp": "1700000001", "event_type": "view", "price": "4"},
]


def encoded(rows: list[dict[str, str]], form: str) -> bytes:
    names = list(rows[0])
    if form == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if form == "parquet":
        buffer = io.BytesIO()
        pl.DataFrame(rows).write_parquet(buffer)
        return buffer.getvalue()
    mark = "\t" if form == "tsv" else ","
    return "".join(mark.join(line) + "\n" for line in [names, *([row[n] for n in names] for row in rows)]).encode()


def saved(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_events(tmp_path: Path, form: str, suffix: str) -> None:
    events = read_table(saved(tmp_path, f"events.{form}{suffix}", encoded(ROWS, form)))
    assert events.users.to_list() == ["u1", "u2", "ü 3"]
    assert events.items.to_list() == ["007", "1.0", "茶"]
    assert events.kinds.tolist() == [0, 2, 1]
    assert events.kinds.dtype == np.uint8
    assert events.times_ms.tolist() == [1_700_000_000_000, 1_700_000_003_250, 1_700_000_001_000]
    assert events.extras.to_dict(as_series=False) == {"price": [2.5, None, 4.0]}
    assert events.skipped == {}


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_the_format_shows_in_the_content_when_the_name_is_silent(tmp_path: Path, form: str) -> None:
    assert len(read_table(saved(tmp_path, "dump", encoded(ROWS, form)))) == 3
    assert len(read_table(saved(tmp_path, "dump.2024.gz", encoded(ROWS, form)))) == 3


def test_json_lines_may_mix_numbers_and_strings_and_nest_what_is_ignored(tmp_path: Path) -> None:
    lines = [
        '{"user_id": 1, "item_id": 12345678901234567890123, "timestamp": 1700000000.5, "context": {"device": "tv"}}',
        "",
        '{"item_id": "b", "user_id": "x", "timestamp": "1700000001", "session_id": 9}',
        '{"user_id": null, "item_id": "c", "timestamp": 1700000002}',
    ]
    events = read_table(saved(tmp_path, "e.jsonl", "\n".join(lines)))
    assert events.users.to_list() == ["1", "x"]
    assert events.items.to_list() == ["12345678901234567890123", "b"]
    assert events.extras["session_id"].to_list() == [None, "9"]
    assert events.skipped == {"missing user_id": 1}


def test_columns_and_types_may_have_other_names(tmp_path: Path) -> None:
    path = saved(tmp_path, "e.csv", "ts,uid,item_id,what\n5,a,x,pv\n6,a,y,buy\n7,a,z,cart\n8,b,x,\n")
    columns, types = parse_columns("user_id=uid, timestamp=ts,event_type=what"), parse_types("pv=views,buy=purchases")
    events = read_table(path, columns, types)
    assert events.users.to_list() == ["a", "a"]
    assert events.kinds.tolist() == [1, 2]
    assert events.times_ms.tolist() == [5000, 6000]
    assert events.skipped == {"unmapped event_type": 2}


def test_one_column_may_serve_twice(tmp_path: Path) -> None:
    path = saved(tmp_path, "e.csv", "session,item_id,timestamp\ns1,x,5\n")
    events = read_table(path, {"user_id": "session", "session_id": "session"})
    assert (events.users.to_list(), events.extras["session_id"].to_list()) == (["s1"], ["s1"])


def test_rows_that_cannot_be_events_are_counted_under_their_first_reason(tmp_path: Path) -> None:
    rows = ["a,x,1,click", ",x,1,click", " ,,1,click", "a,,1,click", "a,x,soon,click", "a,x,,click", "a,x,2,gone", "b"]
    events = read_table(saved(tmp_path, "e.csv", "user_id,item_id,timestamp,event_type\n" + "\n".join(rows)))
    assert len(events) == 1
    expected = {"missing user_id": 2, "missing item_id": 2, "unreadable timestamp": 2, "unmapped event_type": 1}
    assert events.skipped == expected


def test_no_type_column_is_all_clicks_and_no_time_is_row_order_at_a_pace(tmp_path: Path) -> None:
    path = saved(tmp_path, "e.csv", "user_id,item_id,timestamp\na,x,\nb,y,\na,z,\n")  # a blank column is none
    events = read_table(path, rows_per_second=4, start_ms=1000)
    assert events.kinds.tolist() == [0, 0, 0]
    assert events.times_ms.tolist() == [1000, 1250, 1500]
    with pytest.raises(TableError, match="pace"):
        read_table(path, rows_per_second=0)


def test_ids_keep_their_spelling(tmp_path: Path) -> None:
    events = read_table(saved(tmp_path, "e.csv", 'user_id,item_id\n007,1e5\n"a,b"," 12 "\ntrue,null\n'))
    assert events.users.to_list() == ["007", "a,b", "true"]
    assert events.items.to_list() == ["1e5", "12", "null"]


def test_numbers_in_parquet_are_ids_without_a_fraction(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": [1.0, None, 3.0], "item_id": [7, 8, 9], "timestamp": [naive(2024, 5, 1)] * 3})
    frame.write_parquet(tmp_path / "e.parquet")
    events = read_table(tmp_path / "e.parquet")
    assert (events.users.to_list(), events.items.to_list()) == (["1", "3"], ["7", "9"])
    assert events.times_ms.tolist() == [1_714_521_600_000] * 2


def test_a_stray_quotation_mark_in_a_tsv_swallows_nothing(tmp_path: Path) -> None:
    events = read_table(saved(tmp_path, "e.tsv", 'user_id\titem_id\na\t5" pipe\nb\t"open\nc\tz\n'))
    assert events.items.to_list() == ['5" pipe', '"open', "z"]


def test_byte_order_marks_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    events = read_table(saved(tmp_path, "e.csv", b"\xef\xbb\xbfuser_id,item_id,timestamp\r\na,x,5\r\n"))
    assert (events.users.to_list(), events.times_ms.tolist()) == (["a"], [5000])


def test_a_json_array_is_read_like_its_lines(tmp_path: Path) -> None:
    text = '[{"user_id": "a", "item_id": 7}, {"item_id": 8, "user_id": "b"}]'
    for name in ("e.json", "e"):
        events = read_table(saved(tmp_path, name, text))
        assert (events.users.to_list(), events.items.to_list()) == (["a", "b"], ["7", "8"])


def test_utf_16_is_read(tmp_path: Path) -> None:
    assert read_table(saved(tmp_path, "e.csv", "user_id,item_id\nä,x\n".encode("utf-16"))).users.to_list() == ["ä"]


def test_blank_fields_behind_the_last_column_are_no_fault(tmp_path: Path) -> None:
    text = 'user_id,item_id\n"a,1",x,\nb,"y ""z""",,\n'
    events = read_table(saved(tmp_path, "e.csv", text))
    assert (events.users.to_list(), events.items.to_list()) == (["a,1", "b"], ["x", 'y "z"'])


def test_time_order_is_stable_and_carries_every_column(tmp_path: Path) -> None:
    rows = "a,x,5,1\nb,x,3,2\na,y,5,3\na,z,3,4\n"
    events = read_table(saved(tmp_path, "e.csv", "user_id,item_id,timestamp,rating\n" + rows)).time_ordered()
    assert list(zip(events.users, events.items, strict=True)) == [("b", "x"), ("a", "z"), ("a", "x"), ("a", "y")]
    assert events.extras["rating"].to_list() == [2, 4, 1, 3]
    assert events.times_ms.tolist() == [3000, 3000, 5000, 5000]


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("e.csv", "uid,item_id\na,x\n", "no column user_id. its columns are uid, item_id.*--columns"),
        ("e.jsonl", '{"uid": "a", "iid": "b"}\n', "no column user_id, item_id. its columns are uid, iid"),
        ("e.csv", "196,242,881250949\n186,302,891717742\n", "values where names should be: 196, 242.*line with names"),
        ("e.csv", "u1,2014-04-07T10:51:09Z,i1\n", "values where names should be.*Put a line with names"),
        ("e.csv", "user_id|item_id\na|x\n", "one column, 'user_id.item_id'.*commas or tabs.*instead of '.'"),
        ("e.tsv", "user_id,item_id\na,x\n", "one column, 'user_id,item_id'.*instead of ','"),
        ("e.csv", "user_id,item_id,event_type\na,x,cart\nb,y,fav\n", "'cart', 'fav'.*--types"),
        ("e.csv", "user_id,item_id,timestamp\na,x,next week\n", "readable timestamp.*next week.*ISO 8601"),
        ("e.csv", "", "is empty"),
        ("e.csv.gz", "", "is empty"),
        ("e.csv", "user_id,item_id\na,b,c,d\n", "Line 2 of .* has 4 fields. the header has 2: user_id, item_id"),
        ("e.csv", "user_id,item_id,x,y\na,b,1,2,3\n", "Line 2 of .* has 5 fields"),
        ("e.tsv", "user_id\titem_id\na\tb\tc\n", "Line 2 of .* has 3 fields"),
        ("e.json", '[{"user_id": 1', "not readable as JSON"),
        ("e.feather", b"ARROW1\0\0more\n", "is no text.*ARROW1.*Give CSV"),
        ("e.csv.zst", b"\x28\xb5\x2f\xfd but no more", "cannot be read"),
        ("e.csv.xz", b"\xfd7zXZ\0 but no more", "cannot be read"),
        ("e.csv.bz2", b"BZh but no more", "cannot be read"),
        ("e.zip", "PK\x03\x04rest", "is a ZIP archive.*unzip"),
        ("e.csv", b"user_id,item_id\n\xff\xfe,b\n", "not readable as csv"),
        ("e.jsonl", '{"user_id": "a", "item_id": "b"}\nnot json\n', "not readable as json"),
        ("e.jsonl", "[1, 2]\n", "not readable as json"),
        ("e.parquet", "PAR1 but no more", "not readable as parquet"),
        ("e.parquet", "user_id,item_id\na,b\n", "not readable as parquet"),
    ],
)
def test_tables_that_cannot_be_read_say_why_and_what_to_do(
    tmp_path: Path, name: str, content: bytes | str, says: str
) -> None:
    with pytest.raises(TableError, match=says) as caught:
        read_table(saved(tmp_path, name, content))
    assert caught.value.fix


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"There is no table at .*nothing\.csv"):
        read_table(tmp_path / "nothing.csv")
    with pytest.raises(TableError, match="is a folder"):
        read_table(tmp_path)
    whole = gzip.compress(encoded(ROWS * 1000, "csv"))
    for damaged in (whole[: len(whole) // 2], whole[:20] + b"\0\0\0\0" + whole[24:]):
        path = tmp_path / "e.csv.gz"
        path.write_bytes(damaged)
        with pytest.raises(TableError, match="cannot be read"):
            read_table(path)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("bz2", bz2.compress), ("xz", lzma.compress), ("zst", cramjam.zstd.compress), ("", bytes)],
)
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_compressed_files_are_read_whatever_their_name(tmp_path: Path, form: str, suffix: str, compress: Any) -> None:
    for name in (f"e.{form}.{suffix}", "e"):
        events = read_table(saved(tmp_path, name, bytes(compress(encoded(ROWS, form)))))
        assert len(events) == len(read_table(saved(tmp_path, f"plain.{form}", encoded(ROWS, form)))) > 0


def test_blanks_around_names_in_a_header_do_not_count(tmp_path: Path) -> None:
    events = read_table(saved(tmp_path, "e.csv", "user_id, item_id , timestamp\na, x, 1\n"))
    assert (events.users.to_list(), events.items.to_list(), events.times_ms.tolist()) == (["a"], ["x"], [1000])


def test_a_key_that_comes_late_in_json_lines_is_a_column(tmp_path: Path) -> None:
    lines = ['{"user_id": "a", "item_id": "x", "timestamp": 1}\n'] * 1500
    lines[1400] = '{"user_id": "a", "item_id": "y", "timestamp": 2, "event_type": "purchase"}\n'
    events = read_table(saved(tmp_path, "e.jsonl", "".join(lines)), keep_missing=True)
    assert events.kinds[1400] == 2


def test_typed_dates_as_ids_are_text(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": [date(2024, 5, 1)], "item_id": ["x"], "timestamp": [date(2024, 5, 1)]})
    frame.write_parquet(tmp_path / "e.parquet")
    events = read_table(tmp_path / "e.parquet")
    assert (events.users.to_list(), events.times_ms.tolist()) == (["2024-05-01"], [1_714_521_600_000])


def test_lists_as_ids_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [["a"], ["b"]], "item_id": ["x", "y"]}).write_parquet(tmp_path / "e.parquet")
    with pytest.raises(TableError, match="user_id does not hold plain values"):
        read_table(tmp_path / "e.parquet")


@pytest.mark.parametrize("text", ["user_id", "user_id=", "=uid", "user_id=a,user_id=b", "colour=c", "user_id a"])
def test_wrong_column_mappings_teach_the_right_one(text: str) -> None:
    with pytest.raises(TableError, match="user_id=uid,timestamp=ts"):
        parse_columns(text)


@pytest.mark.parametrize("text", ["pv", "pv=view,pv=click", "pv=looks"])
def test_wrong_type_mappings_teach_the_right_one(text: str) -> None:
    with pytest.raises(TableError, match=r"--types|is not a new"):
        parse_types(text)


def test_mappings_that_name_a_missing_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no column when"):
        read_table(saved(tmp_path, "e.csv", "user_id,item_id\na,x\n"), {"timestamp": "when"})


# --- RecBole -------------------------------------------------------------------------------------------------------


def test_recbole_ratings_become_kinds_and_items_have_titles(tmp_path: Path) -> None:
    inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    inter += "".join(f"u\ti{rating}\t{rating}\t{881250949 + rating}\n" for rating in (1, 2, 3, 4, 5))
    saved(tmp_path, "toy.inter", inter)
    events, titles = read_recbole(tmp_path, "toy")
    assert events.kinds.tolist() == [1, 1, 0, 0, 2]
    assert events.times_ms[0] == 881_250_950_000
    assert titles == {}
    saved(tmp_path, "toy.item", 'item_id:token\tmovie_title:token_seq\ti:token\ni1\tToy "Story"\t3\ni2\t\t4\n')
    _, titles = read_recbole(tmp_path, "toy")
    assert titles == {"i1": 'Toy "Story"'}


def test_events_without_extras_can_be_taken_from() -> None:
    users, items = pl.Series(["a", "b"]), pl.Series(["x", "y"])
    events = Events(users, items, np.zeros(2, np.uint8), np.array([2, 1], np.int64))
    assert events.time_ordered().users.to_list() == ["b", "a"]


def test_a_users_ties_come_apart_in_their_order() -> None:
    rng = np.random.default_rng(0)
    times = np.sort(rng.integers(0, 30, 400)) * 1_000
    times[200:220] += np.arange(20)  # some are apart already
    times.sort()
    users = pl.Series([f"u{user}" for user in rng.integers(0, 5, 400)])
    events = Events(users, users, np.zeros(400, np.uint8), times)
    apart = events.apart()
    assert apart.users.to_list() == users.to_list()
    assert (apart.times_ms >= times).all() and (apart.times_ms - times).max() < 100
    for user in users.unique():
        assert (np.diff(apart.times_ms[(users == user).to_numpy()]) > 0).all()
    assert np.array_equal(apart.apart().times_ms, apart.times_ms)
