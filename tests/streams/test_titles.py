from streams.titles import LONGEST_TITLE, Titles


def test_the_newest_entry_counts_and_one_without_a_title_takes_it_away():
    titles = Titles()
    titles.learn("i1", "Alien")
    titles.learn("i1", "Aliens")
    assert titles.get("i1") == "Aliens"
    for no_title in (None, "", 7, ["Alien"], {"en": "Alien"}):
        titles.learn("i1", "Alien")
        titles.learn("i1", no_title)
        assert titles.get("i1") is None
    assert titles.get(None) is None


def test_number_and_length_are_bounded():
    titles = Titles(limit=100)
    for n in range(1_000):
        titles.learn(f"i{n}", "long" * 1_000)
    assert len(titles) == 100
    assert titles.get("i899") is None
    assert titles.get("i900") == ("long" * 1_000)[:LONGEST_TITLE]
