"""Titles of items, for people who look: as many as fit, the longest unchanged leave first."""

from typing import Final

MOST_TITLES: Final = 100_000  # about 25 MB with ids and titles of 60 characters
LONGEST_TITLE: Final = 200  # characters kept of one


class Titles:
    """Item id -> title, of at most `limit` items.

    >>> titles = Titles(limit=2)
    >>> for item, title in (("i1", "Alien"), ("i2", "Fargo"), ("i1", "Aliens"), ("i3", "Heat")):
    ...     titles.learn(item, title)
    >>> titles.get("i1"), titles.get("i2"), titles.get("i3")
    ('Aliens', None, 'Heat')
    """

    def __init__(self, limit: int = MOST_TITLES) -> None:
        self._limit = limit
        self._of: dict[str, str] = {}  # in the order in which they were learnt

    def __len__(self) -> int:
        return len(self._of)

    def learn(self, item_id: str, title: object) -> None:
        """Note an item's newest catalogue entry; a title that is empty or no text means that it has none."""
        self._of.pop(item_id, None)
        if not isinstance(title, str) or not title:
            return
        if len(self._of) >= self._limit:
            del self._of[next(iter(self._of))]
        self._of[item_id] = title[:LONGEST_TITLE]

    def get(self, item_id: str | None) -> str | None:
        """The item's title, None where it is not known."""
        return None if item_id is None else self._of.get(item_id)
