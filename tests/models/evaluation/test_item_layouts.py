import gzip
import json

import pytest

from models.evaluation.dataset import load
from models.evaluation.item_layouts import beside
from tests.models.evaluation.walks import table

NAMES = ["unknown", "Action", "Adventure", "Animation"]


def u_item(number: int, title: str, flags: str) -> str:
    return f"{number}|{title}|01-Jan-1995||http://us.imdb.com/M/x|{'|'.join(flags.ljust(19, '0'))}"


def test_movielens_100k(tmp_path):
    events = table(tmp_path / "u.data", ["196\t1\t3\t881250949", "186\t2\t4\t891717742"])
    lines = [u_item(1, "Café Toy", "0011"), u_item(2, "Heat", "01")]
    (tmp_path / "u.item").write_bytes("\n".join(lines).encode("latin-1"))
    data = load(events)
    assert data.catalogue.texts == ["", "Café Toy", "Heat"]
    assert data.catalogue.attributes[1:] == [("genres=Adventure", "genres=Animation"), ("genres=Action",)]
    assert any("from u.item" in note for note in data.notes)


def test_movielens_1m_and_later(tmp_path):
    events = table(tmp_path / "ratings.dat", ["1::10::5::978300760", "1::20::3::978302109"])
    table(tmp_path / "movies.dat", ["10::Toy Story (1995)::Animation|Children's", "20::Heat::Crime"])
    old = load(events).catalogue
    later = tmp_path / "latest"
    later.mkdir()
    events = table(later / "ratings.csv", ["userId,movieId,rating,timestamp", "1,20,3.5,978302109", "1,10,5,978300760"])
    table(
        later / "movies.csv", ["movieId,title,genres", '10,"Toy Story (1995)",Animation|Children\'s', "20,Heat,Crime"]
    )
    new = load(events).catalogue
    assert old.texts == new.texts == ["", "Toy Story (1995)", "Heat"]
    assert old.attributes == new.attributes
    assert new.attributes[1] == ("genres=Animation", "genres=Children's")


@pytest.mark.parametrize("old", [True, False])
def test_amazon_metadata(tmp_path, old):
    key = "asin" if old else "parent_asin"
    reviews = [
        {"reviewerID": "A", "asin": "B0", "overall": 5.0, "unixReviewTime": 1369699200},
        {"reviewerID": "B", "asin": "B1", "overall": 1.0, "unixReviewTime": 1369699300},
    ]
    items = [
        {key: "B0", "title": 'A "good"\tcream', "brand": "X", "categories": [["Beauty", "Skin Care"], ["Beauty"]]},
        {key: "B1", "title": "Soap", "brand": "X", "categories": [["Beauty"]]},
        {"title": "no id"},
    ]
    events = table(tmp_path / "reviews_Beauty_5.json", [json.dumps(row) for row in reviews])
    lines = [repr(row) if old else json.dumps(row) for row in items]  # in 2014 a line was a Python dictionary
    (tmp_path / "meta_Beauty.json.gz").write_bytes(gzip.compress("\n".join([*lines, "{not a line"]).encode()))
    data = load(events)
    assert data.catalogue.texts == ["", "A good cream", "Soap"]
    assert data.catalogue.attributes[1] == ("categories=Beauty", "categories=Skin-Care")


def test_retailrocket_properties(tmp_path):
    lines = ["timestamp,visitorid,event,itemid,transactionid", "1433221332117,1,view,7,", "1433224214164,2,view,8,"]
    events = table(tmp_path / "events.csv", lines)
    head = "timestamp,itemid,property,value"
    table(tmp_path / "item_properties_part1.csv", [head, "5,7,categoryid,100", "1,8,categoryid,200", "1,7,888,x y"])
    table(tmp_path / "item_properties_part2.csv", [head, "9,7,categoryid,200", "1,9,categoryid,300"])
    data = load(events)
    assert data.catalogue.attributes[1:] == [("category=200",), ("category=200",)] or not data.catalogue.attributes[1]
    assert any("item_properties_part1.csv" in note for note in data.notes)


def test_diginetica_products(tmp_path):
    lines = ["sessionId;userId;itemId;timeframe;eventdate", "1;NA;81;526309;2016-05-09", "2;NA;31;1031018;2016-05-09"]
    events = table(tmp_path / "train-item-views.csv", [*lines, "2;NA;41;1031019;2016-05-09"])
    table(tmp_path / "products.csv", ["itemId;pricelog2;product.name.tokens", "81;10;4875,776,56689", "31;11;4875"])
    table(tmp_path / "product-categories.csv", ["itemId;categoryId", "81;5", "31;5", "41;6"])
    data = load(events)
    texts = dict(zip(data.vocabulary, data.catalogue.texts, strict=True))
    assert texts["81"] == "4875 776 56689" and texts["41"] == ""
    assert dict(zip(data.vocabulary, data.catalogue.attributes, strict=True))["31"] == ("category=5",)


def test_a_named_table_of_items_may_have_a_known_layout(tmp_path):
    events = table(tmp_path / "log.csv", ["user_id,item_id", "u,10", "u,20"])
    items = table(tmp_path / "films.txt", ["10::Toy Story (1995)::Animation", "20::Heat::Crime"])
    assert load(events, items=items).catalogue.texts == ["", "Toy Story (1995)", "Heat"]


def test_nothing_is_found_beside_other_tables(tmp_path):
    table(tmp_path / "movies.csv", ["movieId,title"])
    assert beside(table(tmp_path / "log.csv", ["user_id,item_id"])) is None
    assert beside(tmp_path / "ratings.csv") == tmp_path / "movies.csv"
