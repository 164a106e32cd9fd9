"""Follow the registry: load a new version beside the stream, check it, warm it up, then swap it in.

Refused, counted and logged are versions that are damaged or do not fit this program, and pointers older than the one
that is served: a storage may return yesterday's file. An older version is served when the pointer was moved back to it.
"""

import asyncio
import logging
import time
from typing import Any, Final

import numpy as np
from mode import Service

from models.pointer import PointerDamaged
from models.registry import Registry, VersionRefused
from models.repeats import LastItems
from models.serving import ServingModel
from models.topk import top_k
from models.version import parse_name
from state.errors import RecstreamError
from streams.metrics import Metrics
from streams.pipeline import Pipeline
from streams.settings import Settings
from streams.staged_swap import swap_staged

_RETRY_SECONDS: Final = 60.0  # the storage may have been at fault, or the version was repaired

log = logging.getLogger(__name__)


def load_serving(registry: Registry, name: str) -> tuple[ServingModel, dict[str, Any]]:
    """Load, verify and warm up a version; returns its lineage too.

    Raises:
        VersionRefused: it is corrupt or does not fit this program.
    """
    version = registry.load(name)
    model = ServingModel.from_version(version)
    state = np.zeros((1, model.state_size), np.float32)
    one = np.zeros(1, np.int32)
    hidden = model.steps(state, one, one, np.zeros(1, np.uint8), np.zeros(1, np.float32))
    scores = model.scores(hidden, LastItems.of_rows(one[:, None]))
    top_k(scores, np.zeros((1, 0), np.int32), 1)
    return model, version.lineage


class ModelWatch(Service):  # type: ignore[misc]
    """Polls the registry's pointer and swaps its version into the pipeline; one that fails is tried once a minute."""

    def __init__(self, settings: Settings, pipeline: Pipeline, metrics: Metrics, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._settings, self._pipeline, self._metrics = settings, pipeline, metrics
        self._registry = Registry(settings.registry)
        self._refused, self._retry_at = "", 0.0
        self._turn = 0  # of the pointer that is served

    async def on_first_start(self) -> None:
        """Serve the current version from the first event on, where there is one."""
        await self.look()

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch(self) -> None:
        while not self.should_stop:
            await self.sleep(self._settings.model_poll_seconds)
            await self.look()

    async def look(self) -> None:
        """Swap if the registry names another version than the one served."""
        serving = self._pipeline.recommender.model_version
        loop = asyncio.get_running_loop()
        name = None
        try:
            names, turn = await loop.run_in_executor(None, self._registry.pointer)
            name = names[0] if names else None
            if name == serving:
                self._turn = max(turn, self._turn)
            if name is None or name == serving or (name == self._refused and time.monotonic() < self._retry_at):
                return
            self._check_turn(name, turn)
            model, lineage = await loop.run_in_executor(None, load_serving, self._registry, name)
        except RecstreamError as error:
            self._metrics.model_refused.inc()
            if isinstance(error, PointerDamaged):
                self._turn = 0  # one that is mended counts from its beginning
            known = (name or "") == self._refused and (name is not None or time.monotonic() < self._retry_at)
            if not known:  # a pointer that cannot be read is told of once a minute, not at every look
                log.error("%s Serving goes on with %s.", error, serving)
            self._refused, self._retry_at = name or "", time.monotonic() + _RETRY_SECONDS
            return
        await swap_staged(self._pipeline, model)
        self._turn = max(turn, self._turn)
        self._metrics.model.info({"version": model.name, "cell": model.cell, "items": str(len(model.vocabulary) - 1)})
        self._metrics.model_number.set(model.number)
        self._metrics.model_loaded.set(time.time())
        created_ms = lineage.get("created_ms")
        self._metrics.model_created.set(created_ms / 1000 if isinstance(created_ms, int) else 0)
        self._metrics.swaps.inc()
        log.info("Serving %s: %s, %d items", model.name, model.cell, len(model.vocabulary) - 1)

    def _check_turn(self, name: str, turn: int) -> None:
        """Refuse a pointer to an older version that was written before the one that is served.

        Raises:
            VersionRefused: it is one.
        """
        model = self._pipeline.recommender.model
        if model is not None and turn < self._turn and parse_name(name)[0] < model.number:
            raise VersionRefused(
                what=f"The registry points at {name}, which is older than {model.name}, which is served.",
                why=f"its pointer is outdated: written at turn {turn}, and turn {self._turn} was seen already",
                fix="To serve the older version use `recstream models promote` or `recstream models rollback`; where "
                "the registry was restored from a backup, restart the workers",
            )
