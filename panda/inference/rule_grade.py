"""The grade of a slide by the rule from pattern areas, with its interval from the threshold band."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike

from panda.inference.class_areas import ClassArea
from panda.inference.grade import RuleGrade
from panda.inference.quantify import THRESHOLDS
from panda.wsi.classes import ClassSet
from panda.wsi.gleason import GleasonRule, explain_no_score, grade_areas

if TYPE_CHECKING:
    # These load torch, which processes that write files do without.
    from panda.inference.slide_score import SlideScore
    from panda.tasks.threshold import ThresholdChoice


@dataclass(frozen=True)
class RuleGrader:
    """Grades slides by the areas of their patterns.

    Attributes:
        classes: The classes of the map.
        rule: The rule from areas to a Gleason score.
        threshold: Probability at which a pixel counts as tumour.
        band: Low and high threshold, multiples of 0.001, at which the interval of a grade is found.
    """

    classes: ClassSet
    rule: GleasonRule
    threshold: float
    band: tuple[float, float]

    @classmethod
    def from_choice(
        cls, classes: ClassSet, rule: GleasonRule | None, choice: ThresholdChoice, provider: str | None
    ) -> Self | None:
        """Return the grader for slides of a provider; None without a rule, as with one class of cancer."""
        if rule is None:
            return None
        return cls(classes, rule, choice.value_for(provider), choice.find_band(provider))

    def grade_score(self, score: SlideScore) -> RuleGrade:
        """Grade a slide by the pixels of its score, before the clean-up."""
        pixels = [score.confuse_classes(at)[:, 1:].sum(axis=0) for at in (self.threshold, *self.band)]
        return self._grade(pixels, score.pixel_area_um2)

    def grade_areas(self, areas: tuple[ClassArea, ...], pixel_area_um2: float | None) -> RuleGrade:
        """Grade a slide by its measured areas: after the clean-up at the threshold, before it at the band's ends."""
        ends = [[area.px_at_threshold[np.abs(THRESHOLDS - at).argmin()] for area in areas] for at in self.band]
        return self._grade([[area.area_px for area in areas], *ends], pixel_area_um2)

    def _grade(self, pixels: ArrayLike, pixel_area_um2: float | None) -> RuleGrade:
        """Grade pixels of each class of cancer, (3, C - 1): at the threshold and at both ends of the band."""
        reason = explain_no_score(self.classes.patterns)
        if not reason and pixel_area_um2 is None and self.rule.min_area_mm2:
            reason = "µm/px of the slide is unknown, and the rule has a least area in mm²"
        if reason:
            return RuleGrade(score=None, isup=None, isup_interval=None, band=self.band, note=reason)
        areas = np.asarray(pixels, float) * (1.0 if pixel_area_um2 is None else pixel_area_um2 / 1e6)
        patterns = [self.classes.patterns[name][0] for name in self.classes.cancer_names]
        scores = [grade_areas(dict(zip(patterns, row.tolist(), strict=True)), self.rule) for row in areas]
        grades = [score.isup for score in scores]
        return RuleGrade(score=scores[0].text, isup=grades[0], isup_interval=(min(grades), max(grades)), band=self.band)
