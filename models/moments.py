"""Times of a table's column: epoch seconds to nanoseconds, ISO 8601 and other usual ways to write them, typed dates."""

from datetime import UTC, datetime
from typing import Final

import polars as pl

MILLISECONDS_ABOVE: Final = 1e11  # as seconds the year 5138, as milliseconds 1973
MICROSECONDS_ABOVE: Final = 1e14  # as milliseconds the year 5138
NANOSECONDS_ABOVE: Final = 1e17
_WRITTEN: Final = (  # other ways of writing times; where several read as many, the first counts
    "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y", "%d/%m/%Y",
    "%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %I:%M %p", "%m/%d/%y %H:%M", "%d/%m/%y %H:%M", "%m/%d/%y", "%d/%m/%y",
    "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d",
    "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d",
    "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%d.%m.%y %H:%M", "%d.%m.%y",
    "%d-%b-%Y %H:%M:%S", "%d-%b-%Y %H:%M", "%d-%b-%Y", "%d-%b-%y", "%d %b %Y", "%d/%b/%Y:%H:%M:%S %z",
    "%d-%m-%Y %H:%M:%S", "%d-%m-%Y %H:%M", "%d-%m-%Y", "%m %d, %Y", "%b %d, %Y", "%B %d, %Y",
    "%a %b %d %H:%M:%S %z %Y",
)  # fmt: skip
_DIGITS: Final = (  # whole numbers of these ranges are days and moments written without marks
    (19_000_101, 21_001_231, "%Y%m%d"),  # as seconds they are a few days of 1970
    (190_001_010_000, 210_012_312_359, "%Y%m%d%H%M"),  # as milliseconds the year 1976
    (19_000_101_000_000, 21_001_231_235_959, "%Y%m%d%H%M%S"),  # as milliseconds the years 2572 to 2635
)
LATEST_MS: Final = 253_402_300_799_999  # the end of the year 9999, the last that ISO 8601 and datetime can write


def moments_ms(column: pl.Series) -> pl.Series:
    """Milliseconds since the epoch (N,), Int64; null where a value cannot be read or lies outside 1970-9999.

    The unit is decided once for the whole column, by its median, so that one damaged value cannot turn seconds into
    milliseconds. Times without an offset are UTC. Where months and days cannot be told apart, months come first.

    Args:
        column: Strings, numbers or a temporal type (N,).

    Example:
        >>> moments_ms(pl.Series(["1396314141.719", "1396314153", "soon"])).to_list()
        [1396314141719, 1396314153000, None]
        >>> moments_ms(pl.Series(["2014-04-01T01:02:21.719Z", "2014-04-01 03:02:33+02:00"])).to_list()
        [1396314141719, 1396314153000]
    """
    if isinstance(column.dtype, pl.Date | pl.Datetime):
        times = column.cast(pl.Datetime("ms"), strict=False).cast(pl.Int64)
    elif column.dtype.is_temporal():  # a duration or a time of day is no point in time
        times = pl.repeat(None, len(column), dtype=pl.Int64, eager=True)
    else:
        numbers = column.cast(pl.Float64, strict=False)
        numbers = numbers.set(~numbers.is_finite(), None)
        written = _digits_ms(numbers)
        if written is not None:
            times = written
        elif 2 * numbers.count() >= column.count():
            times = (numbers * _milliseconds_per_unit(numbers)).round().cast(pl.Int64, strict=False)
        else:
            words = column.cast(pl.String)
            distinct = words.drop_nulls().unique()
            parsed = _words_ms(distinct)
            times = words.replace_strict(distinct, parsed, default=None, return_dtype=pl.Int64)
    return times.set(~times.is_between(0, LATEST_MS), None)


def _milliseconds_per_unit(numbers: pl.Series) -> float:
    median = numbers.abs().median()
    size = float(median) if isinstance(median, int | float) else 0.0
    if size > NANOSECONDS_ABOVE:
        return 1e-6
    if size > MICROSECONDS_ABOVE:
        return 1e-3
    return 1.0 if size > MILLISECONDS_ABOVE else 1e3


def _digits_ms(numbers: pl.Series) -> pl.Series | None:
    """Milliseconds of days written 20240531 and moments written 20240531123000; None where one is none."""
    for least, most, way in _DIGITS:
        if numbers.count() and numbers.drop_nulls().is_between(least, most).all():
            whole = numbers.cast(pl.Int64, strict=False)
            words = whole.set(whole != numbers, None).cast(pl.String)
            times = words.str.to_datetime(way, strict=False, time_unit="ms").cast(pl.Int64)
            return times if times.null_count() == numbers.null_count() else None
    return None


def _words_ms(words: pl.Series) -> pl.Series:
    """Milliseconds of times in words: ISO 8601, or where it reads none of them the way that reads most."""
    best = pl.Series([_iso_ms(word) for word in words], dtype=pl.Int64)
    if best.count():
        return best
    for way in _WRITTEN:
        zoned = "%z" in way
        read = words.str.to_datetime(way, strict=False, time_unit="ms", time_zone="UTC" if zoned else None).cast(
            pl.Int64
        )
        read = read.set(~read.is_between(0, LATEST_MS), None)  # the year 20 is one of two digits, for another way
        if read.count() > best.count():
            best = read
    return best


def _iso_ms(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text.removesuffix(" UTC"))
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
