import pytest

from models.evaluation.dataset import load
from models.layouts import recognise
from models.tables import TableError, read_table

LAYOUTS = {
    "u.data": ["196\t242\t3\t881250949", "186\t302\t4\t891717742"],
    "ratings.dat": ["1::1193::5::978300760", "1::661::3::978302109"],
    "ratings.csv": ["userId,movieId,rating,timestamp", "1,1193,5.0,978300760", "1,661,3.0,978302109"],
    "ratings_Beauty.csv": ["A39HTATAQ9V7YF,0205616461,5.0,1369699200", "A3JM6GV9MNOF9X,0558925278,3.0,1355443200"],
    "reviews.json": [
        '{"reviewerID": "A1", "asin": "B0", "overall": 5.0, "unixReviewTime": 1369699200}',
        '{"reviewerID": "A2", "asin": "B1", "overall": 1.0, "unixReviewTime": 1369699300}',
    ],
    "Beauty.jsonl": [
        '{"rating": 5.0, "title": "x", "asin": "B0", "parent_asin": "P0", "user_id": "A", "timestamp": 1588687728923}',
        '{"rating": 4.0, "title": "x", "asin": "B1", "parent_asin": "P1", "user_id": "B", "timestamp": 1588615855070}',
    ],
    "Beauty.csv": ["user_id,parent_asin,rating,timestamp", "AE,P0,5.0,1588687728923", "AF,P1,4.0,1588615855070"],
    "events.csv": [
        "timestamp,visitorid,event,itemid,transactionid",
        "1433221332117,257597,view,355908,",
        "1433224214164,992329,transaction,248676,4000",
    ],
    "yoochoose-clicks.dat": ["1,2014-04-07T10:51:09.277Z,214536502,0", "1,2014-04-07T10:54:09.868Z,214536500,S"],
    "yoochoose-buys.dat": ["420374,2014-04-06T18:44:58.314Z,214537888,12462,1", "7,2014-04-06T18:45:00Z,214537850,1,2"],
    "train-item-views.csv": [
        "sessionId;userId;itemId;timeframe;eventdate",
        "1;NA;81766;526309;2016-05-09",
        "2;NA;31331;1031018;2016-05-09",
    ],
    "UserBehavior.csv": ["1,2268318,2520377,pv,1511544070", "2,2333346,2520771,buy,1511561733"],
    "Gowalla.txt": [
        "0\t2010-10-19T23:55:27Z\t30.2359091167\t-97.7951395833\t22847",
        "1\t2010-10-18T22:17:43Z\t30.2691029532\t-97.7493953705\t420315",
    ],
    "TSMC.txt": [
        f"470\t{'49bb' * 6}\t{'4bf5' * 6}\tArts\t40.71\t-74.0\t-240\tTue Apr 03 18:00:09 +0000 2012",
        f"979\t{'4a43' * 6}\t{'4bf5' * 6}\tBridge\t40.60\t-74.04\t-240\tTue Apr 03 18:00:25 +0000 2012",
    ],
    "ml.inter": ["user_id:token\titem_id:token\ttimestamp:float", "196\t242\t881250949", "186\t302\t891717742"],
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_known_layouts_are_read_without_being_told(name, tmp_path):
    path = tmp_path / name
    path.write_text("\n".join(LAYOUTS[name]) + "\n")
    data = load(path)
    assert len(data.source) == 2
    assert len(data.vocabulary) == 3
    assert data.timed
    assert data.source.users == (1 if name in ("ratings.dat", "ratings.csv", "yoochoose-clicks.dat") else 2)


def test_the_parent_product_is_the_item_of_amazon_reviews(tmp_path):
    path = tmp_path / "Beauty.jsonl"
    path.write_text("\n".join(LAYOUTS["Beauty.jsonl"]))
    assert load(path).vocabulary == ["", "P1", "P0"]


@pytest.mark.parametrize(
    "header",
    ["UserId,ProductId,Rating,Timestamp", "USER_ID,ITEM_ID,EVENT_VALUE,TIMESTAMP", "user_id, item_id, x, timestamp"],
)
def test_usual_names_may_be_written_in_any_way(tmp_path, header):
    path = tmp_path / "log.csv"
    path.write_text(f"{header}\nu,a,1,9\nu,b,2,7\n")
    data = load(path)
    assert data.timed
    assert [data.vocabulary[row] for row in data.source.items] == ["b", "a"]


def test_items_come_first_in_amazon_ratings_of_2018(tmp_path):
    path = tmp_path / "All_Beauty.csv"
    path.write_text("0143026860,A1V6B6TNIC10QE,1.0,1424304000\nB00005N7P0,A2F5GHSXFQ0W6J,5.0,1418860800\n")
    data = load(path)
    assert data.vocabulary[1:] == ["B00005N7P0", "0143026860"]
    assert "read as Amazon ratings, items first" in data.notes


@pytest.mark.parametrize("mark", ["|", " ", "::", "\t", ";"])
@pytest.mark.parametrize("name", ["log.csv", "log.txt", "log.dat"])
def test_a_header_tells_the_separator(tmp_path, mark, name):
    path = tmp_path / name
    path.write_text(
        "\n".join(mark.join(row) for row in (("user_id", "item_id", "time"), ("u", "a", "9"), ("u", "b", "7")))
    )
    data = load(path)
    assert data.timed
    assert [data.vocabulary[row] for row in data.source.items] == ["b", "a"]


def test_commas_in_a_tsv_are_separators_where_no_tab_is(tmp_path):
    path = tmp_path / "log.tsv"
    path.write_text("user_id,item_id,time\nu,a,9\nu,b,7\n")
    assert load(path).vocabulary == ["", "b", "a"]


@pytest.mark.parametrize("mark", [",", "\t", " "])
@pytest.mark.parametrize("rating", [(), ("4",)])
def test_bare_rows_are_user_item_and_time(tmp_path, mark, rating):
    path = tmp_path / "log.txt"
    rows = (("u-1", "7", *rating, "1700000009"), ("u-1", "8", *rating, "1700000001"))
    path.write_text("\n".join(mark.join(row) for row in rows))
    data = load(path)
    assert data.users == ["u-1"] and data.timed
    assert [data.vocabulary[row] for row in data.source.items] == ["8", "7"]


def test_bare_pairs_stand_in_order_of_time(tmp_path):
    path = tmp_path / "Beauty.txt"
    path.write_text("1 30\n1 20\n2 20\n")
    data = load(path)
    assert data.users == ["1", "2"] and not data.timed
    assert [data.vocabulary[row] for row in data.source.items] == ["30", "20", "20"]


@pytest.mark.parametrize(
    "header",
    [
        "user,song,played_at",
        "u,i,t",
        "user_idx,item_idx,event_ts",
        "cust_id,prod_id,ts_ms",
        "client,book,epoch",
        "household_key,app_id,TRANSACTION_DT",
    ],
)
def test_less_usual_names_of_columns(tmp_path, header):
    path = tmp_path / "log.csv"
    path.write_text(f"{header}\nu,a,9\nu,b,7\n")
    data = load(path)
    assert data.timed
    assert [data.vocabulary[row] for row in data.source.items] == ["b", "a"]


def test_semicolons_quotation_marks_and_decimal_commas(tmp_path):
    path = tmp_path / "log.csv"
    rows = ['"33";"2014-05-27";"item 2; no";"20";"4,5"', '"33";"2014-05-26";"x";"21";"3"']
    path.write_text("\n".join(['"User-ID";"Date";"Title";"Item";"Rating"', *rows]))
    data = load(path)
    assert [data.vocabulary[row] for row in data.source.items] == ["21", "20"]
    assert data.ratings.tolist() == [3, 4.5]
    assert data.timed


def test_latin_1_is_understood_and_said(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes("user_id,item_id\nJos\xe9,a\n".encode("latin-1"))
    data = load(path)
    assert (data.users, data.notes[0]) == (["José"], "not UTF-8: read as Latin-1")


def test_a_table_without_times_names_its_columns(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,moment_of_it\nu,a,1\n")
    assert recognise(path, None, tmp_path).notes == [
        "no column is known to hold times; there are user_id, item_id, moment_of_it"
    ]


def test_what_is_recognised_is_said(tmp_path):
    path = tmp_path / "anything.txt"
    path.write_text("\n".join(LAYOUTS["ratings.dat"]))
    layout = recognise(path, None, tmp_path)
    assert layout.notes == ["read as MovieLens ratings.dat"]
    assert read_table(layout.path).extras["rating"].to_list() == [5.0, 3.0]
    assert path.read_text() == "\n".join(LAYOUTS["ratings.dat"])  # the original stays as it is


def test_names_that_are_given_win_and_no_column_serves_twice(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("session_id,user,item,product_id,time\ns,u,a,b,1\n")
    layout = recognise(path, {"item_id": "product_id"}, tmp_path)
    assert layout.columns == {"item_id": "product_id", "user_id": "user", "timestamp": "time"}


def test_the_own_names_of_a_known_table_may_be_given(tmp_path):
    path = tmp_path / "views.csv"
    path.write_text("\n".join(LAYOUTS["train-item-views.csv"]))
    layout = recognise(path, {"user_id": "sessionId", "item_id": "itemId", "timestamp": "eventdate"}, tmp_path)
    assert read_table(layout.path, layout.columns).items.to_list()[0] == "81766"


def test_plain_tables_are_left_alone(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp,event_type\nu,i,1,view\n")
    layout = recognise(path, None, tmp_path)
    assert (layout.path, layout.columns, layout.notes) == (path, {}, [])


def test_sessions_are_users_where_there_are_no_users(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("session_id,item_id,timestamp\ns1,a,1\ns2,b,2\n")
    assert recognise(path, None, tmp_path).columns == {"user_id": "session_id"}


def test_a_table_without_items_is_still_refused(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,colour\nu,red\n")
    with pytest.raises(TableError, match="no column item_id"):
        load(path)
