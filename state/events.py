"""Event kinds and the input topics they arrive on (an event's kind is its topic)."""

from typing import Final

KINDS: Final = ("click", "view", "purchase")
TOPICS: Final = ("clicks", "views", "purchases")
CLICK, VIEW, PURCHASE = range(3)
KIND_OF_TOPIC: Final = {topic: kind for kind, topic in enumerate(TOPICS)}
