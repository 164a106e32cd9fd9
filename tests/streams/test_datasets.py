import hashlib
import subprocess
import sys
import zipfile

import pytest

from models.tables import TableError
from streams import datasets
from streams.datasets import DataError, download, ml_100k, read_source, unpack
from streams.settings import SettingsError, load_settings

INTERACTIONS = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(
    f"{user}\t{item}\t{rating}\t{time}\n"
    for user, item, rating, time in [(1, 10, 5, 300), (2, 20, 3, 100), (1, 30, 1, 200)]
)
ITEMS = "item_id:token\tmovie_title:token_seq\n10\tToy Story\n20\tHeat\n"


@pytest.fixture
def wheel(tmp_path):
    """A file shaped like the wheel."""
    path = tmp_path / "recbole-1.2.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("recbole/__init__.py", "raise RuntimeError('imported')")
        archive.writestr("recbole/dataset_example/ml-100k/ml-100k.inter", INTERACTIONS)
        archive.writestr("recbole/dataset_example/ml-100k/ml-100k.item", ITEMS)
    return path


@pytest.fixture
def cached(wheel, tmp_path):
    """Settings whose cache has the data set already."""
    unpack(wheel, tmp_path / "cache" / "ml-100k")
    return load_settings(cache_dir=tmp_path / "cache")


def offline(monkeypatch):
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def test_only_the_tables_are_unpacked(wheel, tmp_path):
    unpack(wheel, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ml-100k.inter", "ml-100k.item"]


def test_ml_100k_from_the_cache_needs_no_network(cached, monkeypatch):
    offline(monkeypatch)
    source = read_source("ml-100k", cached)
    assert source.events.items.to_list() == ["20", "30", "10"]  # by time
    assert source.events.kinds.tolist() == [0, 1, 2]  # 3 stars a click, 1 a view, 5 a purchase
    assert source.titles == {"10": "Toy Story", "20": "Heat"}
    assert "recbole" not in sys.modules


def test_offline_is_a_plain_error_and_leaves_nothing(tmp_path, monkeypatch):
    offline(monkeypatch)
    with pytest.raises(DataError, match="cannot download MovieLens-100K") as caught:
        ml_100k(tmp_path / "cache")
    assert caught.value.why
    assert "pip download --no-deps recbole==1.2.1" in caught.value.fix
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_file_under_that_name_is_refused(wheel, tmp_path, monkeypatch):
    offline(monkeypatch)
    with zipfile.ZipFile(wheel, "a") as archive:  # enough of a wheel for pip to take it
        archive.writestr("recbole-1.2.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n")
        archive.writestr(
            "recbole-1.2.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("recbole-1.2.1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    with pytest.raises(DataError, match="is not the file this release knows"):
        ml_100k(tmp_path / "cache")
    monkeypatch.setattr(datasets, "_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert (ml_100k(tmp_path / "cache") / "ml-100k.inter").read_text() == INTERACTIONS


def test_a_wheel_without_the_data(tmp_path):
    path = tmp_path / "other.whl"
    path.write_bytes(b"not a zip")
    with pytest.raises(DataError, match="holds no MovieLens-100K"):
        unpack(path, tmp_path / "a")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(DataError, match="holds no MovieLens-100K"):
        unpack(path, tmp_path / "b")


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="RECSTREAM_CACHE_DIR"):
        ml_100k(tmp_path / "file" / "cache")


def test_the_real_download(tmp_path):
    try:
        wheel = download(tmp_path)
    except DataError as error:
        if "not the file" in error.what:
            raise
        pytest.skip(f"no package index can be reached: {error.why}")
    unpack(wheel, tmp_path / "ml-100k")
    source = read_source("ml-100k", load_settings(cache_dir=tmp_path))
    assert len(source.events) == 100_000
    assert source.events.users.n_unique() == 943
    assert len(source.titles) == 1_682
    assert (source.events.times_ms[1:] >= source.events.times_ms[:-1]).all()


def test_a_file_with_a_mapping_and_a_limit(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("uid,item_id,ts,event_type\na,1,30,pv\nb,2,10,buy\nc,3,20,pv\nd,4,40,other\n")
    source = read_source(str(path), load_settings(), "user_id=uid,timestamp=ts", "pv=views,buy=purchases", limit=2)
    assert source.events.users.to_list() == ["b", "c"]
    assert source.events.kinds.tolist() == [2, 1]
    assert dict(source.events.skipped) == {"unmapped event_type": 1}
    assert source.titles == {}


def test_a_file_without_times_keeps_its_order_at_the_pace(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id\n" + "".join(f"u,{n}\n" for n in range(5)))
    events = read_source(str(path), load_settings(), pace=2.0).events
    assert events.items.to_list() == ["0", "1", "2", "3", "4"]
    assert (events.times_ms - datasets.NO_TIME_START_MS).tolist() == [0, 500, 1000, 1500, 2000]


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("ratings.dat", "1::1193::5::978300760\n1::661::3::978302109\n", "read as MovieLens ratings.dat"),
        (
            "clicks.dat",
            "1,2014-04-07T10:51:09.277Z,1193,0\n1,2014-04-07T10:54:09.868Z,661,S\n",
            "read as Yoochoose clicks",
        ),
        (
            "views.csv",
            "sessionId;userId;itemId;timeframe;eventdate\n1;NA;1193;5;2016-05-09\n1;NA;661;9;2016-05-09\n",
            "read as Diginetica: a session is a user",
        ),
        ("log.csv", "user_id;item_id;timestamp\n1;1193;5\n1;661;9\n", None),
    ],
)
def test_files_that_no_mapping_of_columns_fits_are_read(tmp_path, name, content, note):
    path = tmp_path / name
    path.write_text(content)
    source = read_source(str(path), load_settings())
    assert source.events.users.to_list() == ["1", "1"]
    assert source.events.items.to_list() == ["1193", "661"]
    assert source.remarks() == ([note] if note else [])


def test_errors_name_the_given_file_not_a_copy(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("uid;item_id\n1;2\n")
    with pytest.raises(TableError, match=f"The table {path} has no column user_id"):
        read_source(str(path), load_settings())


@pytest.mark.parametrize(
    ("content", "why"),
    [("user_id,item_id\n", "it has none"), ("user_id,item_id\n,a\nb,\n", "missing user_id: 1; missing item_id: 1")],
)
def test_a_table_without_an_event_is_refused(tmp_path, content, why):
    path = tmp_path / "log.csv"
    path.write_text(content)
    with pytest.raises(TableError, match=r"No row of .* is an event") as caught:
        read_source(str(path), load_settings())
    assert caught.value.why == why


def test_rows_left_out_are_said(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,event_type\na,1,click\nb,2,share\nc,3,share\n")
    assert read_source(str(path), load_settings()).remarks() == ["2 rows skipped; unmapped event_type: 2"]


@pytest.mark.parametrize("options", [{"columns": "user_id"}, {"columns": "nobody=x"}, {"types": "pv=elsewhere"}])
def test_a_malformed_mapping_is_a_settings_error(tmp_path, options):
    with pytest.raises(SettingsError):
        read_source(str(tmp_path / "any.csv"), load_settings(), **options)


def test_a_missing_file_is_a_table_error(tmp_path):
    with pytest.raises(TableError):
        read_source(str(tmp_path / "none.csv"), load_settings())


def test_the_command_asks_the_broker_before_it_imports_torch():
    code = "import sys, streams.cli, streams.worker; raise SystemExit('torch' in sys.modules or 'faust' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
