"""The models by their names on the command line."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from models.family.content import Fusion
from models.family.context_popularity import ContextPopularity
from models.family.counting import Markov, Popularity, SkipMarkov
from models.family.ensemble import Ensemble
from models.family.factors import Bpr
from models.family.interface import SequenceModel, read_saved
from models.family.neighbours import SessionKnn
from models.family.recurrent import Gru, Lstm, Rnn, TimeLstm
from models.family.sessions import InSessions
from models.family.transformer import Bert, Transformer
from state.errors import RecstreamError

MODELS: Final[dict[str, Callable[..., SequenceModel]]] = {
    model.name: model
    for model in (
        Popularity,
        ContextPopularity,
        Markov,
        SkipMarkov,
        SessionKnn,
        Bpr,
        Rnn,
        Lstm,
        Gru,
        TimeLstm,
        Transformer,
        Bert,
        Fusion,
        Ensemble,
    )
}


def build(name: str, items: int, settings: Mapping[str, Any] | None = None) -> SequenceModel:
    """A model by name for ``items`` rows, not yet fitted.

    Args:
        name: One of `MODELS`.
        items: V.
        settings: Keyword arguments of the model other than its defaults.

    Raises:
        RecstreamError: There is no such model, or it cannot be built with these settings.
    """
    if name not in MODELS:
        what = f"There is no model {name!r}"
        raise RecstreamError(what, f"the models are {', '.join(MODELS)}", "Choose among them: --models gru,markov")
    try:
        return MODELS[name](items, **(settings or {}))
    except (TypeError, ValueError, RuntimeError) as error:
        given = ", ".join(f"{key}={value}" for key, value in (settings or {}).items())
        what = f"The model {name} cannot be built with {given or 'its defaults'}"
        raise RecstreamError(what, str(error).splitlines()[0], "Correct the settings, or leave them away") from error


def rebuild(name: str, settings: Mapping[str, Any]) -> SequenceModel:
    """A model by the name and settings it gives of itself, its tensors still to be restored."""
    if name == InSessions.name:
        return InSessions(rebuild(settings["inner"], settings["settings"]), settings["gap_seconds"])
    return MODELS[name](**settings)


def load(path: Path) -> SequenceModel:
    """A saved model, ready to use.

    Raises:
        RecstreamError: It cannot be read, or does not fit its own description.
    """
    name, settings, tensors = read_saved(path)
    if name not in (*MODELS, InSessions.name):
        what, why = f"{path} holds a model {name!r}", f"this release knows {', '.join(MODELS)}"
        raise RecstreamError(what, why, "Load it with the release that saved it")
    try:
        model = rebuild(name, settings)
        model.restore(tensors)
    except (TypeError, KeyError, RuntimeError, ValueError) as error:
        what = f"{path} is damaged"
        raise RecstreamError(what, str(error).splitlines()[0], "Save the model again") from error
    return model
