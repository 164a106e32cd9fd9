from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.moments import moments_ms


def naive(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC).replace(tzinfo=None)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize("unit", [1, 1000, 1_000_000, 1_000_000_000])
def test_the_unit_is_that_of_the_whole_column(unit: int) -> None:
    times = [1_400_000_000 * unit, 1_500_000_000 * unit, 1_600_000_000 * unit, 0]
    expected = [1_400_000_000_000, 1_500_000_000_000, 1_600_000_000_000, 0]
    assert moments_ms(pl.Series(times)).to_list() == expected
    assert moments_ms(pl.Series([str(time) for time in times])).to_list() == expected


def test_one_wild_value_does_not_change_the_unit() -> None:
    assert moments_ms(pl.Series(["1400000000", "1400000001", "99999999999999"])).to_list() == [
        1_400_000_000_000,
        1_400_000_001_000,
        None,
    ]


@pytest.mark.parametrize("value", ["nan", "inf", "-5", "", "1e300", "yesterday", None])
def test_unreadable_numbers_are_null(value: str | None) -> None:
    assert moments_ms(pl.Series(["1400000000", "1400000000", value])).to_list()[2] is None


@given(
    st.datetimes(min_value=naive(1970, 1, 2), max_value=naive(9998, 1, 1)),
    st.sampled_from([None, UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=8))]),
    st.sampled_from(["T", " "]),
)
def test_iso_8601_agrees_with_datetime(moment: datetime, zone: timezone | None, separator: str) -> None:
    aware = moment.replace(tzinfo=zone or UTC)
    text = moment.replace(tzinfo=zone).isoformat(separator)
    expected = round(aware.timestamp() * 1000)
    assert moments_ms(pl.Series([text, text.replace("+00:00", "Z")])).to_list() == [expected, expected]


@pytest.mark.parametrize(
    ("words", "days"),
    [
        (["12/1/2010 8:26", "12/25/2010 8:26"], ["2010-12-01T08:26", "2010-12-25T08:26"]),
        (["1/12/2010 8:26", "25/12/2010 8:26"], ["2010-12-01T08:26", "2010-12-25T08:26"]),
        (["1/2/2019", "3/4/2019"], ["2019-01-02T00:00", "2019-03-04T00:00"]),  # months first where nobody can tell
        (["05.06.2020 10:11", "never"], ["2020-06-05T10:11", None]),
        (["01 31, 2015", "12 1, 2014"], ["2015-01-31T00:00", "2014-12-01T00:00"]),
        (["11/11/2019 9:05:00 AM", "11/30/2019 9:05:00 PM"], ["2019-11-11T09:05", "2019-11-30T21:05"]),
        (["1/2/2019 9:05 AM", "1/30/2019 9:05 PM"], ["2019-01-02T09:05", "2019-01-30T21:05"]),
        (["12/1/10 8:26", "12/25/10 18:26"], ["2010-12-01T08:26", "2010-12-25T18:26"]),
        (["1/2/19", "25/4/19"], ["2019-02-01T00:00", "2019-04-25T00:00"]),
        (["05.06.20 10:11", "06.06.20 9:11"], ["2020-06-05T10:11", "2020-06-06T09:11"]),
        (["2019-1-9 1:15:00", "2019-1-10 11:15:00"], ["2019-01-09T01:15", "2019-01-10T11:15"]),
        (["9-Jan-2019 1:15", "10-Jan-2019 11:15"], ["2019-01-09T01:15", "2019-01-10T11:15"]),
        (["10/Jan/2019:11:15:00 +0100"], ["2019-01-10T10:15"]),
        (["2019-10-01 00:00:00 UTC"], ["2019-10-01T00:00"]),
        (["Mon Oct 09 10:11:00 +0200 2017"], ["2017-10-09T08:11"]),
        (["20240531", "20240229"], ["2024-05-31T00:00", "2024-02-29T00:00"]),
        (["20240532", "20240229"], ["1970-08-23T06:22:12", "1970-08-23T06:17:09"]),  # no days: seconds
        (["20240531123001", "20240229000000"], ["2024-05-31T12:30:01", "2024-02-29T00:00"]),
        (["202405311230", "202402290000"], ["2024-05-31T12:30", "2024-02-29T00:00"]),
        (["20240531123061", "20240229000000"], ["2611-05-26T09:45:23.061000", "2611-05-22T21:50:00"]),  # milliseconds
    ],
)
def test_usual_ways_to_write_times(words: list[str], days: list[str | None]) -> None:
    wanted = [day and int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000) for day in days]
    assert moments_ms(pl.Series(words)).to_list() == wanted


def test_typed_dates_are_utc() -> None:
    moment = datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    expected = int(moment.timestamp() * 1000)
    zoned: list[Any] = [moment]
    assert moments_ms(pl.Series(zoned).dt.convert_time_zone("Asia/Tokyo")).to_list() == [expected]
    assert moments_ms(pl.Series([date(1970, 1, 3)])).to_list() == [2 * 86_400_000]
    assert moments_ms(pl.Series([naive(1970, 1, 1, 0, 0, 1, 500_000)])).to_list() == [1500]
    assert moments_ms(pl.Series([timedelta(seconds=3)])).to_list() == [None]
