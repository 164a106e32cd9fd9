import gzip

import numpy as np
import pytest

from models.evaluation.dataset import load
from models.tables import UNKNOWN_KIND, TableError, read_table
from state.events import CLICK, PURCHASE, VIEW
from tests.models.evaluation.walks import table


def test_events_are_grouped_by_user_in_time_order_with_rows_by_first_appearance(tmp_path):
    path = table(tmp_path / "a.csv", ["user_id,item_id,timestamp", "u,x,30", "v,y,10", "u,z,20"])
    data = load(path)
    assert data.vocabulary == ["", "y", "z", "x"]
    assert data.source.items.tolist() == [1, 2, 3]
    assert data.source.starts.tolist() == [0, 1, 3]
    assert data.timed and data.notes == []


def test_usual_event_types_are_understood_and_said(tmp_path):
    lines = ["user_id,item_id,event_type", "u,a,view", "u,b,addtocart", "u,c,transaction", "u,d,refund"]
    data = load(table(tmp_path / "a.csv", lines))
    assert data.source.kinds.tolist() == [VIEW, CLICK, PURCHASE]
    assert any("addtocart is a click" in note for note in data.notes)
    assert any("1 rows left out" in note for note in data.notes)


def test_event_types_may_be_written_with_blanks_and_marks(tmp_path):
    lines = ["user_id,item_id,event_type", "u,a,Page View", "u,b,Add To Cart", "u,c,add-to-cart", "u,d,PURCHASE"]
    assert load(table(tmp_path / "a.csv", lines)).source.kinds.tolist() == [VIEW, CLICK, CLICK, PURCHASE]


def test_unknown_event_types_are_all_clicks(tmp_path):
    data = load(table(tmp_path / "a.csv", ["user_id,item_id,event_type", "u,a,zap", "u,b,zop"]))
    assert data.source.kinds.tolist() == [CLICK, CLICK]
    assert "unknown event types are clicks: zap, zop" in data.notes


def test_a_column_of_ids_is_no_event_type(tmp_path):
    lines = ["user_id,item_id,event_type", *(f"u,i{n},t{n}" for n in range(60))]
    path = table(tmp_path / "a.csv", lines)
    with pytest.raises(TableError, match="does not look like an event type"):
        load(path, {"event_type": "event_type"})
    data = load(path)
    assert "column event_type has 60 values and is no event type: all events are clicks" in data.notes
    assert data.source.kinds.tolist() == [CLICK] * 60


def test_named_types_are_taken_as_named(tmp_path):
    lines = ["uid,sku,action", "u,a,1", "u,b,2", "u,c,3"]
    columns = {"user_id": "uid", "item_id": "sku", "event_type": "action"}
    data = load(table(tmp_path / "a.csv", lines), columns, {"1": VIEW, "2": PURCHASE})
    assert data.source.kinds.tolist() == [VIEW, PURCHASE]


@pytest.mark.parametrize("stamp", [None, "77"], ids=["no column", "one moment"])
def test_without_times_the_order_of_rows_counts(tmp_path, stamp):
    head = "user_id,item_id" + (",timestamp" if stamp else "")
    rows = [f"u{n % 3},i{n}" + (f",{stamp}" if stamp else "") for n in range(30)]
    data = load(table(tmp_path / "a.csv", [head, *rows]))
    assert not data.timed
    assert data.source.items[:3].tolist() == [1, 4, 7]
    assert not data.source.gaps_seconds.any()
    assert any("order of the rows" in note for note in data.notes)


def test_ratings_follow_their_events_and_become_kinds(tmp_path):
    lines = ["user_id,item_id,timestamp,rating", "u,a,3,5", "v,b,1,1", "u,c,2,3", "v,d,4,"]
    data = load(table(tmp_path / "a.csv", lines))
    named = [data.vocabulary[row] for row in data.source.items]
    assert dict(zip(named, data.ratings.tolist(), strict=True))["a"] == 5
    assert [named[place] for place in np.flatnonzero(np.isnan(data.ratings))] == ["d"]
    kinds = dict(zip(named, data.source.kinds.tolist(), strict=True))
    assert kinds == {"a": PURCHASE, "b": VIEW, "c": CLICK, "d": UNKNOWN_KIND}


def test_blank_types_and_times_are_kept_as_not_known(tmp_path):
    lines = ["user_id,item_id,timestamp,event_type", "u,a,10,view", "v,x,,click", "u,b,,", "u,c,30,buy", "v,y,5,click"]
    lines += ["u,d,soon,view", "w,z,,view", "u,e,40,click"]
    path = table(tmp_path / "a.csv", lines)
    data = load(path)
    named = [data.vocabulary[row] for row in data.source.items]
    # x stands at the time of y, b at that of a; w has no time at all, z stands at that of the row before
    assert named == ["x", "y", "z", "a", "b", "c", "e"]
    assert data.source.kinds.tolist() == [CLICK, CLICK, VIEW, VIEW, UNKNOWN_KIND, PURCHASE, CLICK]
    assert data.source.gaps_seconds.tolist() == [0, -1, 0, 0, -1, -1, 10]
    assert {"1 events without a type", "3 events without a time", "1 rows left out: unreadable timestamp"} <= {
        *data.notes
    }
    plain = read_table(path, types={"view": VIEW, "click": CLICK, "buy": PURCHASE})  # the stream guesses nothing
    assert plain.untimed is None and len(plain) == 4


def test_ties_between_users_keep_the_order_of_the_table(tmp_path):
    rows = [("u", "a", 1), ("v", "b", 1), ("u", "c", 1), ("v", "d", 0)]
    data = load(table(tmp_path / "a.csv", ["user_id,item_id,timestamp", *(f"{u},{i},{t}" for u, i, t in rows)]))
    assert [data.vocabulary[row] for row in data.source.items[data.order()]] == ["d", "a", "b", "c"]


def test_ratings_that_are_no_numbers_are_missing(tmp_path):
    lines = ["user_id,item_id,rating", "u,a,1", "u,b,inf", "u,c,5", "u,d,nan"]
    data = load(table(tmp_path / "a.csv", lines))
    assert data.source.kinds.tolist() == [VIEW, UNKNOWN_KIND, PURCHASE, UNKNOWN_KIND]
    assert np.isfinite(data.ratings).tolist() == [True, False, True, False]


def test_errors_name_the_table_that_was_given(tmp_path):
    path = table(tmp_path / "books.csv", ["User-ID;Colour", "1;red"])
    with pytest.raises(TableError) as caught:
        load(path)
    assert str(path) in caught.value.what


def test_items_that_describe_nothing_are_noticed(tmp_path):
    events = table(tmp_path / "a.csv", ["user_id,item_id", "u,a", "u,b"])
    items = table(tmp_path / "items.csv", ["item_id,title", "a,Shoe", "x,Hat"])
    assert "items: title from items.csv, of 1 of 2 items" in load(events, items=items).notes


def test_a_damaged_table_beside_the_events_only_leaves_items_undescribed(tmp_path):
    events = table(
        tmp_path / "train-item-views.csv", ["sessionId;userId;itemId;timeframe;eventdate", "1;NA;8;5;2016-05-09"]
    )
    table(tmp_path / "products.csv", ["itemId;pricelog2;product.name.tokens", "81;10;4875;too;many"])
    assert any(note.startswith("items stay undescribed") for note in load(events).notes)


def test_a_limit_keeps_the_oldest(tmp_path):
    lines = ["user_id,item_id,timestamp", "u,late,9", "u,early,1", "u,middle,5"]
    assert load(table(tmp_path / "a.csv", lines), limit=2).vocabulary == ["", "early", "middle"]


def test_nothing_usable_is_said(tmp_path):
    with pytest.raises(TableError, match="No event"):
        load(table(tmp_path / "a.csv", ["user_id,item_id,timestamp", ",a,1", "u,,2"]))
    with pytest.raises(TableError, match="no column item_id"):
        load(table(tmp_path / "b.csv", ["user_id,thing", "u,a"]))


def test_items_beside_the_events_describe_them(tmp_path):
    with gzip.open(tmp_path / "shop_events.tsv.gz", "wt") as file:
        file.write("user_id\titem_id\ttimestamp\nu\ta\t1\nu\tb\t2\nu\tc\t3\nu\td\t4\n")
    lines = ["item_id\ttitle\tcategory\tprice", "a\tRed shoe\tshoes\t1", "b\tHat\thats\t2", "c\tBlue shoe\tshoes\t3"]
    table(tmp_path / "shop_items.tsv", lines)
    data = load(tmp_path / "shop_events.tsv.gz")
    assert data.catalogue.texts == ["", "Red shoe", "Hat", "Blue shoe", ""]
    assert data.catalogue.attributes[1] == ("category=shoes",) and data.catalogue.attributes[4] == ()
    assert data.catalogue.attribute_table()[1] == ["category=shoes"]
    assert any("shop_items.tsv" in note for note in data.notes)


def test_a_useless_table_of_items_matters_only_when_it_was_asked_for(tmp_path):
    events = table(tmp_path / "shop_events.csv", ["user_id,item_id", "u,a", "u,b"])
    items = table(tmp_path / "shop_items.csv", ["sku,title", "a,Alpha"])
    data = load(events)
    assert not data.catalogue.has_text
    assert any("items stay undescribed" in note for note in data.notes)
    with pytest.raises(TableError, match="no column item_id"):
        load(events, items=items)


def test_recbole_items_and_columns_of_the_events_describe_too(tmp_path):
    table(tmp_path / "m.inter", ["user_id:token\titem_id:token\ttimestamp:float", "1\t7\t5", "1\t8\t6", "2\t9\t7"])
    lines = [
        "item_id:token\tmovie_title:token_seq\tclass:token_seq",
        "7\tHeat\tCrime Drama",
        "8\tUp\tDrama",
        "9\tIt\tHorror",
    ]
    table(tmp_path / "m.item", lines)
    data = load(tmp_path / "m.inter")
    assert data.catalogue.texts[1] == "Heat"
    assert data.catalogue.attributes[1] == ("class=Crime", "class=Drama")
    inline = load(table(tmp_path / "x.csv", ["user_id,item_id,title", "u,a,Alpha", "v,b,Beta", "w,a,Alpha"]))
    assert inline.catalogue.texts == ["", "Alpha", "Beta"]
    guessed = load(table(tmp_path / "y.csv", ["visitorid,itemid,title", "u,a,Alpha", "v,b,Beta", "w,a,Alpha"]))
    assert guessed.catalogue.texts == ["", "Alpha", "Beta"]
