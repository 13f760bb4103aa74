"""What a reader has to know before trusting the map: said at the top of the report, in plain words. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from preproc.report.inputs import Observations, Sources
from preproc.run.quality import FEW_CLEAR, blind_spots
from preproc.run.text import some

_CLASSES = 12
"""That are named in a line."""

FEW_GROUPS = 10
"""Below so many parcels the figures of a class are anecdotes."""


@dataclass(frozen=True)
class Caution:
    """One of them."""

    title: str
    text: str
    serious: bool
    """The map must not be used without knowing this."""


def cautions(sources: Sources, seen: Observations, *, truth_known: bool = False) -> list[Caution]:
    """All that apply, the serious ones first.

    Args:
        sources: what the report is made from.
        seen: how well the region was observed.
        truth_known: every pixel of the map can be compared with what it truly is.
    """
    found = [*_about_the_encoder(sources), *_about_the_labels(sources)]
    if sources.accuracy.map_accuracy is None and not truth_known:
        text = (
            "No independent reference sample was given, so the accuracy of the map itself is not known. The model's "
            "performance tells how well the classifier recognises labelled groups that it has not seen."
        )
        found.append(Caution("Map accuracy is not known", text, False))
    found += _about_the_scenes(sources, seen)
    return sorted(found, key=lambda caution: not caution.serious)


def _about_the_encoder(sources: Sources) -> list[Caution]:
    found = []
    if sources.simulated:
        text = "The scenes, the fields and the labels were made up by a program. Nothing here is about a real place."
        found.append(Caution("Simulated data", text, True))
    model = sources.map.model
    if not model.trained:
        text = (
            f"The embeddings come from “{model.label}”. Its numbers carry some of the season's signal, as random "
            "projections do, but they are not TESSERA embeddings. This map shows that the chain works, no more."
        )
        found.append(Caution("The encoder is not trained", text, True))
    elif model.name == "demo":
        text = (
            f"The embeddings come from “{model.label}”, a small encoder that was trained on simulated land. They "
            "are not TESSERA embeddings; within one season plain monthly medians tell crops apart better. For a map "
            "that is to be used take a published model: `smalti weights list`."
        )
        found.append(Caution("Made with the demonstration encoder", text, True))
    return found


def _about_the_labels(sources: Sources) -> list[Caution]:
    found = []
    performance = sources.accuracy.performance
    if sources.samples is None:
        seasons = "; ".join(
            f"{entry.embedded.region}, {entry.embedded.window.start} to {entry.embedded.window.end}"
            for entry in sources.model.trained_on
        )
        text = (
            f"The classifier was trained elsewhere: {seasons}. Its performance below is of the labels there. How it "
            "does here only a reference sample of this place and season can tell."
        )
        found.append(Caution("No labels of this place and season", text, True))
    left_out = performance.left_out
    if left_out:
        names = some([f"{entry.name} ({entry.groups})" for entry in left_out], _CLASSES)
        text = (
            f"Too few groups of labels to learn from: {names}. Where these grow, the map shows another class. "
            "The figures below know nothing of them."
        )
        found.append(Caution("Classes left out", text, True))
    few = [entry for entry in performance.pixels.per_class if entry.n_groups < FEW_GROUPS]
    if few:
        names = some([f"{entry.name} ({entry.n_groups})" for entry in few], _CLASSES)
        text = f"Classes with fewer than {FEW_GROUPS} groups of labels: {names}. Read their figures with care."
        found.append(Caution("Little evidence for some classes", text, False))
    return found


def _about_the_scenes(sources: Sources, seen: Observations) -> list[Caution]:
    found = []
    blind = seen.stacks["s2"].pixels_without
    if blind:
        rest = blind_spots(blind, seen.unseen)
        text = f"{blind:,} pixels of the region have no clear Sentinel-2 observation: {rest}."
        found.append(Caution("Pixels never seen clearly", text, False))
    if seen.poor_tiles:
        text = (
            f"{len(seen.poor_tiles)} of {seen.planned} tiles have fewer than {FEW_CLEAR} clear Sentinel-2 observations "
            f"for half of their pixels: {some(seen.poor_tiles)}."
        )
        found.append(Caution("Tiles with few observations", text, False))
    if seen.tiles and not (seen.stacks["s1_ascending"].most_dates or seen.stacks["s1_descending"].most_dates):
        found.append(Caution("No radar", "No Sentinel-1 scene was found: the map rests on Sentinel-2 alone.", False))
    if seen.tiles < seen.planned:
        text = (
            f"The time series of {seen.planned - seen.tiles} of {seen.planned} tiles are no longer in the run: the "
            "figures on observations leave them out."
        )
        found.append(Caution("Time series removed", text, False))
    found += [Caution("From the plan", text, False) for text in sources.plan.warnings]
    return found
