"""From a buffer to a published version: one pass at a time, on disk before it begins, safe to kill anywhere.

A pass lives in a directory of its own:

    sample.replay    what it trains on, written first
    pass.json        parent, seeds, trigger; its rename is the moment the pass exists
    checkpoint.pt    how far training is
    tries.json       how often it was begun there

and goes through these steps, each of which may be repeated after a kill without harm:

    train            resumes from the checkpoint
    judge            pure
    publish          a version whose lineage names this pass is found again instead of being published twice
    promote          only where the version trained from still serves, and nobody has moved the pointer meanwhile
    finish           the directory goes, once the caller has told everybody

Beside it, `carried/` has what passes hand on (`models.average`), by the name of the pass: written before the version is
published, deleted when the version that serves is of another pass. Where it is lost, the next pass begins with the
version's own weights.
"""

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from models import tries
from models.average import Carried, forget_others
from models.finetune import Candidate, Step, fine_tune, gate
from models.gate import Verdict
from models.job import Job, LearnSettings, Outcome, fine_settings
from models.pass_events import lineage_in, new_to
from models.registry import Registry, StorageRefused, Version, VersionRefused
from state.errors import StateError
from state.replay_buffer import ReplayBuffer
from state.replay_log import sync_directory
from state.replay_sample import Sample

_TIMES_RECENT: Final = 4  # passes in which an event is among the newest
_RECENT_VERSIONS: Final = 5  # where a version published just before a kill is looked for

log = logging.getLogger(__name__)


class Serving(NamedTuple):
    """What a pass goes on from.

    Attributes:
        name: The version that serves; None where none does, or one that is damaged.
        lineage: Its lineage, empty without.
        turn: Of the registry's pointer.
    """

    name: str | None
    lineage: dict[str, Any]
    turn: int


class Learner:
    """Makes, judges and publishes versions.

    Args:
        registry: Where versions go.
        directory: Where a pass keeps its files; one learner at a time.
        settings: What passes are made of.
        device: Where to train.
        origin: Added to every lineage: code version, host.
    """

    def __init__(
        self,
        registry: Registry,
        directory: Path,
        settings: LearnSettings | None = None,
        device: str = "cpu",
        origin: dict[str, Any] | None = None,
    ) -> None:
        self.registry, self.settings, self.device = registry, settings or LearnSettings(), device
        self._directory, self._origin = directory / "pass", dict(origin or {})
        self._checkpoint = self._directory / "checkpoint.pt"
        self._carried = directory / "carried"
        self._damaged: str | None = None  # the version that serves, where it cannot be loaded
        self._missed = 0  # the change whose aftermath alone no longer makes a better model

    def serving(self) -> Serving:
        """The version to go on from.

        Raises:
            VersionRefused: Storage refuses, or the pointer is damaged.
        """
        names, turn = self.registry.pointer()
        if not names:
            return Serving(None, {}, turn)
        name = names[0]
        try:
            lineage = (self.registry.load if name == self._damaged else self.registry.describe)(name).lineage
        except StorageRefused:
            raise
        except VersionRefused as error:
            log.warning("%s serves and is damaged: the next model is fitted from nothing. %s", name, error)
            self._damaged = name
            return Serving(None, {}, turn)
        self._damaged = None
        return Serving(name, lineage, turn)

    def begin(self, buffer: ReplayBuffer, trigger: str, changed_at: int | None = None) -> Job | None:
        """`draw` and `write` in one."""
        job = self.draw(buffer, trigger, changed_at)
        if job is not None:
            self.write(job)
        return job

    def draw(
        self, buffer: ReplayBuffer, trigger: str, changed_at: int | None = None, serving: Serving | None = None
    ) -> Job | None:
        """Take a sample for a new pass, which nothing on disk tells of yet.

        Args:
            buffer: Where the events are.
            trigger: Why.
            changed_at: After an alarm: events seen when the stream changed. Older events no longer tell what follows
                what, so they are learnt no more, here and in the passes of the versions that come of it; until one of
                those is rejected, which says that the older ones are missed.
            serving: What `serving` has just said, where that was asked in another thread than the buffer's.

        Returns:
            The pass, to `write`; None when too little in the buffer is new to the serving version.

        Raises:
            RecstreamError: The registry refuses.
        """
        parent, described, turn = self.serving() if serving is None else serving
        settings, seen = self.settings, buffer.seen
        lineage = lineage_in(buffer.log_id, seen, described)
        since = int(lineage.get("since", 0)) if changed_at is None else changed_at
        if since == self._missed and changed_at is None:
            since = 0
        # How much a model was begun on is told in another log's count as well: it is not to begin anew on less.
        fitted = int(described.get("fitted_seen", described.get("events", 0)))
        grown = (seen - since) / max(fitted - since, settings.changed_least if since else settings.fine_least)
        small = min(len(buffer), seen - since) <= settings.refit_most
        anew = parent is None or (0 < settings.refit_growth <= grown and small)
        recent, reservoir = (settings.first_most, 0) if anew else (settings.recent, settings.reservoir)
        if not anew and not since:
            recent = min(recent, _TIMES_RECENT * (seen - int(lineage.get("seen", 0))))
        recent = min(recent, seen - since)
        reservoir = min(settings.fine.epochs * min(reservoir, recent), seen - since - recent)
        sample = buffer.sample(recent, reservoir, _seed(settings.seed, seen), since)
        # Of the turn and the settings too: what an operator rolled back or has changed since is another pass.
        origin = f"{parent} {turn} {seen} {trigger} {sorted(sample.offsets.items())} {settings}"
        identity = hashlib.sha256(origin.encode()).hexdigest()[:16]
        fitted = seen if anew else fitted
        job = Job(identity, parent, anew, sample.seed, trigger, since, fitted, sample, turn)
        return job if new_to(lineage, sample).sum() >= 2 * settings.fine.gate.fewest_events else None

    def write(self, job: Job) -> None:
        """Put a new pass on disk; one that was under way is dropped. Any thread may do it: the buffer is not touched.

        Raises:
            StateError: The disk refuses.
        """
        self.finish()
        try:
            self._directory.mkdir(parents=True)
            job.sample.save(self._directory / "sample.replay")
            head = {name: value for name, value in _fields(job).items() if name != "sample"}
            temporary = self._directory / "pass.new"
            with temporary.open("w") as file:
                json.dump(head, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._directory / "pass.json")
            sync_directory(self._directory)
        except OSError as exc:
            what = f"cannot write a training pass to {self._directory}"
            raise StateError(what, str(exc), "check the disk and the directory's permissions") from exc

    def pending(self) -> Job | None:
        """The pass a kill interrupted, None when there is none, or the pointer has moved by another hand.

        Raises:
            StateError: Its process died three times without getting on; the pass is dropped.
            VersionRefused: The registry refuses.
        """
        try:
            head = json.loads((self._directory / "pass.json").read_text())
            sample = Sample.load(self._directory / "sample.replay")
            job = Job(**head, sample=sample)
        except (OSError, ValueError, TypeError, StateError):
            self.finish()
            return None
        published = published_by(self.registry, job.id)
        serving, _, turn = self.serving()
        as_it_was = serving == job.parent and job.turn in (turn, None)
        if not as_it_was and (published is None or serving != published):
            self.finish()
            return None
        if published is None and tries.at_this_place(self._directory, self._checkpoint) >= tries.MOST:
            self.finish()
            raise StateError(
                what=f"the pass {job.id} ({job.trigger}, {len(job.sample)} events) is dropped",
                why=f"it was begun {tries.MOST} times and its process died each time before the next checkpoint",
                fix="if it ran out of memory, give it more, or make RECSTREAM_TRAIN_RECENT_EVENTS smaller",
            )
        return job

    def run(
        self, job: Job, progress: Callable[[Step], bool | None] | None = None, now_ms: int | None = None
    ) -> Outcome | None:
        """Train, judge and publish; None when `progress` stopped it (the pass stays on disk).

        Args:
            job: From `begin` or `pending`.
            progress: Called after each batch; True stops.
            now_ms: Noted as the version's time of birth.

        Raises:
            RecstreamError: There is too little to train on, or the registry refuses; `finish` drops the pass.
        """
        published = published_by(self.registry, job.id)
        if published is None:
            tries.count(self._directory, self._checkpoint)
            parent = self._parent(job)
            candidate = fine_tune(
                parent,
                job.sample,
                fine_settings(self.settings, job),
                job.seed,
                progress,
                self.device,
                self._checkpoint,
                anew=job.anew,
                carried=None if parent is None else carried_by(self._carried, parent),
            )
            if candidate is None:
                return None
            strict = job.since > 0
            verdict = gate(candidate, parent, job.sample, self.settings.fine, job.seed, strict=strict)
            if not candidate.finite:  # no registry takes it
                return Outcome(None, False, {"gate": verdict.to_dict()}, candidate.lineage)
            if candidate.carried is not None:
                candidate.carried.save(self._carried / f"{job.id}.safetensors")
            published = self._publish(job, candidate, verdict, now_ms)
        summary = self.registry.describe(published)
        promoted = bool(summary.metrics["gate"]["promoted"])
        self._missed = 0 if promoted else job.since
        if promoted:
            self.serving()  # notes whether that is a damaged one, which the pass was begun without
            promoted = self.registry.succeed(published, job.parent or self._damaged, job.turn)
            if not promoted:
                summary.metrics["gate"]["reasons"].append("another version was promoted meanwhile")
        return Outcome(published, promoted, summary.metrics, summary.lineage)

    def finish(self) -> None:
        """Drop the pass's files and versions beyond those to keep."""
        (self._directory / "pass.json").unlink(missing_ok=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    def tidy(self) -> list[str]:
        """Delete versions beyond `keep_versions`, and what nobody will go on from; returns the versions' names."""
        serving = self.registry.current()
        if serving is not None:
            with suppress(VersionRefused):  # damaged: nobody can tell what it goes on from
                forget_others(self._carried, str(self.registry.describe(serving).lineage.get("pass")))
        return self.registry.retention(self.settings.keep_versions)

    def _parent(self, job: Job) -> Version | None:
        try:
            return self.registry.load(job.parent) if job.parent is not None else None
        except StorageRefused:
            raise
        except VersionRefused:  # this pass fails; the next does without
            self._damaged = job.parent
            raise

    def _publish(self, job: Job, candidate: Candidate, verdict: Verdict, now_ms: int | None) -> str:
        lineage = {
            **self._origin,
            **candidate.lineage,
            "created_ms": now_ms,
            "pass": job.id,
            "trigger": job.trigger,
            "since": job.since,
            "fitted_seen": job.fitted_seen,
        }
        figures = figures_of(candidate, verdict)
        return self.registry.publish(candidate.network, candidate.vocabulary, figures, lineage, promote=False)


def figures_of(candidate: Candidate, verdict: Verdict) -> dict[str, Any]:
    """The metrics published beside a candidate: the gate's findings, losses, vocabulary, privacy spent."""
    return {
        **verdict.candidate,
        "loss": [round(loss, 6) if math.isfinite(loss) else None for loss in candidate.loss],
        "items_added": candidate.added,
        "items_expired": candidate.expired,
        "gate": verdict.to_dict(),
        **candidate.privacy,
    }


def carried_by(folder: Path, version: Version) -> Carried | None:
    """Where the training of a version stood; None where nothing was kept of it."""
    made_by = version.lineage.get("pass")
    return Carried.load(folder / f"{made_by}.safetensors", version.network()) if made_by else None


def published_by(registry: Registry, identity: str) -> str | None:
    """The version whose lineage names this pass, None when it has published none lately."""
    for name in reversed(registry.versions()[-_RECENT_VERSIONS:]):
        try:
            if registry.describe(name).lineage.get("pass") == identity:
                return name
        except VersionRefused:  # somebody else's damage; not this pass's version then
            continue
    return None


def _fields(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in Job.__slots__}


def _seed(seed: int, seen: int) -> int:
    digest = hashlib.sha256(f"{seed} {seen}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
