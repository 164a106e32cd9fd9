"""The one place where a user id becomes the name its state is kept under.

Without a key that is the id itself. With one it is a keyed hash (BLAKE2b, 128 bit, as 32 hexadecimal digits): the same
user always has the same name, names cannot be turned back into ids, and without the key they cannot be found by trying
ids either. Everything that remembers users (state, changelog, snapshots, cold store, replay buffer) is given names;
only `recommendations`, whose readers need it, carries the id.

Two of n users share a name with a probability of at most n^2 / 2^129: 1.5e-21 for a thousand million users.

References:
    Aumasson et al., "BLAKE2: simpler, smaller, fast as MD5", ACNS 2013; RFC 7693.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Final

from state.events import EventBatch

MIN_KEY_CHARACTERS: Final = 32
_CACHED: Final = (
    200_000  # names remembered, 180 bytes each: a busy worker's users; a known one costs 0.05 us, a hash 1.2 us
)
_NAME_BYTES: Final = 16


class Pseudonyms:
    """User ids -> names. Any thread may ask: a race costs a hash, never a wrong name.

    Args:
        key: A secret of at least `MIN_KEY_CHARACTERS` characters; empty: names are the ids as they come.
        cached: Most names remembered; about so many are computed again once others have come.

    Attributes:
        fingerprint: Tells whether two keys are the same, and nothing else about them; 0 without a key. State kept
            under another key belongs to nobody any more: compare before it is used.

    >>> names = Pseudonyms("correct horse battery staple, 32 and more")
    >>> names.name("ann"), names.names(["bob", "ann"])[1] == names.name("ann")
    ('5f137e94caaf5a4bf13161bf020bd111', True)
    >>> Pseudonyms("").names(["ann"])
    ['ann']
    """

    def __init__(self, key: str, cached: int = _CACHED) -> None:
        self._keyed = bool(key)
        secret = blake2b(key.encode("utf-8", "surrogatepass")).digest()  # a key of any length to one of 64 bytes
        self._cache = _Cache(blake2b(digest_size=_NAME_BYTES, key=secret, person=b"recstream user"), cached)
        mark = blake2b(digest_size=4, key=secret, person=b"recstream key").digest()
        self.fingerprint = (int.from_bytes(mark, "little") or 1) if key else 0

    def name(self, user: str) -> str:
        """The name of one user."""
        return self._cache[user] if self._keyed else user

    def names(self, users: Sequence[str]) -> list[str]:
        """The names (E) of users (E): a dict lookup for each known one, a hash for each that is new."""
        return list(map(self._cache.__getitem__, users)) if self._keyed else list(users)

    def forget(self, users: Iterable[str]) -> None:
        """Keep nothing of these ids in memory."""
        for user in users:
            self._cache.forget(user)

    def rename(self, events: EventBatch) -> EventBatch:
        """The same events with names for users; the very same batch without a key."""
        return replace(events, users=self.names(events.users)) if self._keyed else events


class _Cache(dict[str, str]):
    """Computes what is missing. Bounded by two generations: one that is full becomes the old one, which is let go next.

    Names in use move to the young generation when they are asked for, so those asked for often stay.
    """

    __slots__ = ("_half", "_hash", "_old")

    def __init__(self, keyed_hash: "blake2b", most: int) -> None:
        super().__init__()
        self._hash, self._half, self._old = keyed_hash, max(1, most // 2), dict[str, str]()

    def forget(self, user: str) -> None:
        self.pop(user, None)
        self._old.pop(user, None)

    def __missing__(self, user: str) -> str:
        name = self._old.get(user)
        if name is None:
            hashed = self._hash.copy()
            hashed.update(user.encode("utf-8", "surrogatepass"))
            name = hashed.hexdigest()
        if len(self) >= self._half:
            self._old = self.copy()
            self.clear()
        self[user] = name
        return name


NO_PSEUDONYMS: Final = Pseudonyms("")
