import hashlib
import hmac
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.events import EventBatch
from state.pseudonyms import MIN_KEY_CHARACTERS, NO_PSEUDONYMS, Pseudonyms

KEY, OTHER = "k" * MIN_KEY_CHARACTERS, "o" * MIN_KEY_CHARACTERS
USERS = st.lists(st.text(min_size=1, max_size=12), max_size=40)


@given(USERS, st.integers(1, 6))
def test_names_depend_on_user_and_key_alone_whatever_was_asked_before(users, cached):
    names = Pseudonyms(KEY, cached)
    assert names.names(users) == [Pseudonyms(KEY).name(user) for user in users]
    assert len(set(names.names(users))) == len(set(users))


@given(USERS)
def test_another_key_gives_other_names(users):
    assert not set(Pseudonyms(KEY).names(users)) & set(Pseudonyms(OTHER).names(users))


def test_a_name_is_blake2b_under_the_key():
    secret = hashlib.blake2b(KEY.encode()).digest()
    expected = hashlib.blake2b(b"ann", digest_size=16, key=secret, person=b"recstream user").hexdigest()
    assert hmac.compare_digest(Pseudonyms(KEY).name("ann"), expected)


def test_without_a_key_users_keep_their_ids():
    batch = EventBatch(["ann"], ["i"], *(np.zeros(1, kind) for kind in (np.uint8, *[np.int64] * 3)))
    assert NO_PSEUDONYMS.rename(batch) is batch
    assert (NO_PSEUDONYMS.name("ann"), NO_PSEUDONYMS.names(["ann"])) == ("ann", ["ann"])


def test_a_batch_is_renamed_and_left_as_it_is_otherwise():
    batch = EventBatch(
        ["ann", "bob", "ann"], ["i", "j", "k"], *(np.arange(3, dtype=kind) for kind in (np.uint8, *[np.int64] * 3))
    )
    names = Pseudonyms(KEY)
    renamed = names.rename(batch)
    assert renamed.users == [names.name(user) for user in batch.users]
    assert replace(renamed, users=batch.users) == batch
    assert batch.users == ["ann", "bob", "ann"]


def test_the_cache_is_bounded_and_keeps_users_who_come_again():
    names = Pseudonyms(KEY, cached=100)
    hashed = []
    original = names._cache._hash

    class Counting:
        def copy(self):
            hashed.append(1)
            return original.copy()

    names._cache._hash = Counting()
    for n in range(2_000):
        names.name("regular")
        names.name(f"passer-by {n}")
        assert len(names._cache) + len(names._cache._old) <= 101
    assert len(hashed) == 2_001


def test_fingerprints_tell_keys_apart_and_none_is_zero():
    assert Pseudonyms(KEY).fingerprint == Pseudonyms(KEY).fingerprint != Pseudonyms(OTHER).fingerprint
    assert NO_PSEUDONYMS.fingerprint == 0 < Pseudonyms(KEY).fingerprint < 2**32


@pytest.mark.parametrize("user", ["\ud800", "x" * 300, "ü"])
def test_every_id_that_can_be_decoded_has_a_name(user):
    assert len(Pseudonyms(KEY).name(user)) == 32
