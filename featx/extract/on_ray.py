"""Extraction by the workers of a Ray cluster: each computes shards, and writes their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from featx.cluster import Crew
from featx.errors import UsageError
from featx.extract.plan import Plan, make_folder
from featx.extract.report import ExtractReport
from featx.extract.shards import Shard, ShardJob, describe_place
from featx.progress import SILENT, Bar, Reporter
from featx.ray_nodes import Need, connected
from featx.text import count_of

__all__ = ["Cluster", "run_on_ray"]

_MOST_DECODERS = 16

_Listed = tuple[list[Shard], list[Path]]
_Done = list[ExtractReport] | None


@dataclass(frozen=True)
class Cluster:
    """Where the workers are, and what each takes."""

    address: str | None = None
    gpus_per_worker: float | None = None

    def need(self, ray: Any, plan: Plan) -> Need:
        """Give a worker its GPUs, by default one where there are any, and cores that decode."""
        gpus = self.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
        if plan.workers is not None or not gpus:
            return Need(1 + (plan.workers or 0), gpus)
        rooms = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        shares = [
            int(room.get("CPU", 1) // (room["GPU"] // gpus))
            for room in rooms
            if room.get("GPU", 0) >= gpus
        ]
        return Need(max(1, min([_MOST_DECODERS + 1, *shares])), gpus)


def run_on_ray(
    plan: Plan,
    cluster: Cluster,
    shard_rows: int | None = None,
    reporter: Reporter = SILENT,
    *,
    tell: Callable[[str], object] = print,
) -> list[ExtractReport]:
    """Compute all shards of a plan that are not finished, by the workers of a cluster."""
    if plan.devices != ("auto",):
        raise UsageError(
            "--device is for one process: with --engine ray, a worker takes the GPUs of "
            "--num-gpus-per-worker, or none with 0"
        )
    plan.check_words()
    make_folder(Path(plan.cache_dir))
    with connected(cluster.address) as ray:
        need = cluster.need(ray, plan)
        own = replace(plan, workers=need.cpus - 1, device="cuda" if need.gpus else "cpu")
        progress = _Progress(reporter)
        crew = Crew[Shard | None, Any](
            ray,
            partial(_open, own, shard_rows),
            need,
            reporter,
            shared=Path(plan.cache_dir).absolute(),
            heard=progress.hear,
        )
        with crew:
            # A worker lists the shards: this machine may have no GPU, and loads no network.
            [(_, (shards, places))] = crew.do([None], more_follow=True)
            label = f"{plan.data}, {' '.join(plan.backbone)}"
            with reporter.bar(sum(s.stop - s.start for s in shards), label) as bar:
                progress.show(crew, shards, bar)
                made = dict(progress.finishing(number, done) for number, done in crew.do(shards))
    return _told(made, places, tell)


def _told(
    made: dict[int, _Done], places: Sequence[Path], tell: Callable[[str], object]
) -> list[ExtractReport]:
    """Say what was done, in order, and what the places hold."""
    if n_known := sum(done is None for done in made.values()):
        tell(f"{count_of(n_known, 'shard')} finished before, every byte as written")
    reports = [report for number in sorted(made) for report in made[number] or ()]
    for report in reports:
        tell(str(report))
    for place in places:
        tell(describe_place(place))
    return reports


def _open(plan: Plan, shard_rows: int | None, reporter: Reporter) -> Callable[[Any], Any]:
    """Open data and network in a worker, for the list of all shards and for each of them."""
    job = ShardJob.open(plan, shard_rows, reporter)

    def work(shard: Shard | None) -> _Listed | _Done:
        if shard is None:
            return list(job.shards()), job.places()
        reports = job.run(shard)
        return reports and [replace(report, times=None) for report in reports]

    return work


class _Progress:
    """Images that are done, in shards that are not finished too; and warnings, each once."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._told: set[str] = set()
        self._crew: Crew[Any, Any] | None = None
        self._bar: Bar
        self._sizes: list[int] = []
        self._n_done: list[int] = []

    def show(self, crew: Crew[Any, Any], shards: Sequence[Shard], bar: Bar) -> None:
        """Show these shards from now on."""
        self._sizes = [shard.stop - shard.start for shard in shards]
        self._n_done = [0] * len(shards)
        self._crew, self._bar = crew, bar

    def hear(self, messages: list[tuple[int, Any]]) -> None:
        """Take in what workers say."""
        for number, said in messages:
            if isinstance(said, str):
                if said not in self._told:
                    self._told.add(said)
                    self._reporter.warn(said)
            elif self._crew is not None:
                self._advance(number, said)
        if self._crew is not None:
            self._bar.update(0, f"{self._crew.n_workers} workers")

    def finishing(self, number: int, done: _Done) -> tuple[int, _Done]:
        """Count all images of a shard."""
        self._advance(number, self._sizes[number])
        return number, done

    def _advance(self, number: int, n_done: int) -> None:
        # A shard that another worker began anew does not count backwards.
        before = self._n_done[number]
        self._n_done[number] = max(before, n_done)
        self._bar.update(self._n_done[number] - before)
