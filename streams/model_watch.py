"""Follow the registry: load a new version beside the stream, check it, warm it up, then swap it in."""

import asyncio
import logging
import time
from typing import Any, Final

import numpy as np
from mode import Service

from models.registry import Registry
from models.serving import ServingModel
from models.topk import top_k
from state.errors import RecstreamError
from streams.metrics import Metrics
from streams.pipeline import Pipeline
from streams.settings import Settings

_RETRY_SECONDS: Final = 60.0  # the storage may have been at fault, or the version was repaired

log = logging.getLogger(__name__)


def load_serving(registry: Registry, name: str) -> ServingModel:
    """Load, verify and warm up a version.

    Raises:
        VersionRefused: it is corrupt or does not fit this program.
    """
    model = ServingModel.from_version(registry.load(name))
    state = np.zeros((1, model.state_size), np.float32)
    one = np.zeros(1, np.int32)
    hidden = model.steps(state, one, one, np.zeros(1, np.uint8), np.zeros(1, np.float32))
    top_k(model.scores(hidden), np.zeros((1, 0), np.int32), 1)
    return model


class ModelWatch(Service):  # type: ignore[misc]
    """Polls the registry's current version and swaps it into the pipeline; one that fails is tried once a minute."""

    def __init__(self, settings: Settings, pipeline: Pipeline, metrics: Metrics, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._settings, self._pipeline, self._metrics = settings, pipeline, metrics
        self._registry = Registry(settings.registry)
        self._refused, self._retry_at = "", 0.0

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
            name = await loop.run_in_executor(None, self._registry.current)
            if name is None or name == serving or (name == self._refused and time.monotonic() < self._retry_at):
                return
            model = await loop.run_in_executor(None, load_serving, self._registry, name)
        except RecstreamError as error:
            self._metrics.model_refused.inc()
            if name != self._refused or name is None:
                log.error("%s Serving goes on with %s.", error, serving)
            self._refused, self._retry_at = name or "", time.monotonic() + _RETRY_SECONDS
            return
        await self._pipeline.swap(model)
        self._metrics.model.info({"version": model.name, "cell": model.cell, "items": str(len(model.vocabulary) - 1)})
        self._metrics.model_number.set(model.number)
        self._metrics.model_loaded.set(time.time())
        self._metrics.swaps.inc()
        log.info("Serving %s: %s, %d items", model.name, model.cell, len(model.vocabulary) - 1)
