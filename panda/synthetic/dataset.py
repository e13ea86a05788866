"""Draw a data set in PANDA's layout with known truth: slides, label masks, `train.csv` and the true areas.

The slides show the meaning of the codes, so a small network learns cancer from them at 2 µm/px in a minute. They are no
substitute for tissue. `layout.py` places the glands, `glands.py` and `painter.py` draw them.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from panda.errors import ConfigError, ManifestError, name_exhaustion
from panda.files import advise_removal, fingerprint, hold_lock, remove, replace, sync, write_whole
from panda.progress import Progress
from panda.settings import Settings
from panda.synthetic.layout import GRADE_PATTERNS, plan_scene
from panda.synthetic.painter import Painter
from panda.synthetic.pyramid_writer import write_slide
from panda.tables import read_user_table, write_table
from panda.wsi.gleason import GleasonRule, grade_areas

GRADES = (0, 1, 5, 2, 0, 1, 3, 4, 0, 2, 1, 5)
"""ISUP grades in turn. Three of twelve slides are benign, 3 have grade 1 and 2 grade 2, close to the shares in PANDA
(27, 25 and 13 %; grades 3 to 5 have 12 % each)."""
DRAWING_VERSION = 1
"""To be raised by each change that gives other pixels for the same spec."""
GRADE_RULE = GleasonRule(secondary="largest", min_percent=5.0)
"""The rule of the grades in `train.csv`: a second pattern counts from 5 % of the cancer."""
LARGEST_SIDE = 100_000
# codes in the masks of a provider for glass, stroma, benign epithelium, pattern 3, 4, 5
MASK_CODES = {"karolinska": (0, 1, 1, 2, 2, 2), "radboud": (0, 1, 2, 3, 4, 5)}
TRUTH_COLUMNS = [
    *("image_id", "tissue_px", "cancer_px", "tissue_mm2", "cancer_mm2"),
    *("pattern3_px", "pattern4_px", "pattern5_px", "benign_px", "stroma_px"),
]


class SyntheticSpec(Settings):
    """The data set to draw; the same spec gives the same pixels.

    Attributes:
        slides: Number of slides; providers alternate, and each takes the grades of `GRADES` in turn.
        seed: Seed of the slides.
        width: Width of level 0 in px.
        height: Height of level 0 in px; the cores run along the longer side.
        tile: Side of the TIFF tiles in px, a multiple of 16.
        mpp: µm per level-0 px.
    """

    node: ClassVar[str] = "data.draw"

    slides: int = Field(default=24, ge=1, le=100_000)
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    width: int = Field(default=3072, ge=256, le=LARGEST_SIDE)
    height: int = Field(default=2048, ge=256, le=LARGEST_SIDE)
    tile: int = Field(default=256, ge=64, le=4096, multiple_of=16, description="px, as TIFF tiles have it")
    mpp: float = Field(default=0.48, ge=0.1, le=2.0, description="µm per px")


@dataclass(frozen=True)
class SlideTruth:
    """The content of a drawn slide. All `_px` are level-0 px, counted in the mask as written."""

    image_id: str
    provider: str
    isup_grade: int
    gleason: str
    mpp: float
    stroma_px: int
    benign_px: int
    pattern3_px: int
    pattern4_px: int
    pattern5_px: int

    @property
    def cancer_px(self) -> int:
        """Area of the patterns 3, 4 and 5 in level-0 px."""
        return self.pattern3_px + self.pattern4_px + self.pattern5_px

    @property
    def tissue_px(self) -> int:
        """Area that is not glass in level-0 px."""
        return self.stroma_px + self.benign_px + self.cancer_px

    def to_row(self) -> dict[str, str | int | float]:
        """Return the row of the slide in `truth.csv`."""
        mm2 = self.mpp * self.mpp / 1e6
        values = asdict(self) | {
            "tissue_px": self.tissue_px,
            "cancer_px": self.cancer_px,
            "tissue_mm2": round(self.tissue_px * mm2, 6),
            "cancer_mm2": round(self.cancer_px * mm2, 6),
        }
        return {name: values[name] for name in TRUTH_COLUMNS}


def find_grade(pattern_px: Mapping[int, int]) -> tuple[int, str]:
    """Return the grade of a drawn slide from the areas of its patterns, by `GRADE_RULE`.

    Args:
        pattern_px: Area of the patterns 3, 4, 5 in any unit.

    Returns:
        ISUP grade 0-5 and the Gleason score as text; (0, "0+0") without cancer.
    """
    score = grade_areas(pattern_px, GRADE_RULE)
    return score.isup, score.text


def draw_slide(
    image_path: Path, mask_path: Path, spec: SyntheticSpec, *, slide_id: str, provider: str, isup_grade: int, seed: int
) -> SlideTruth:
    """Draw one slide and its mask, tile by tile in bounded memory; write both files whole or not at all.

    Args:
        image_path: Path of the slide (JPEG pyramid, downsamples 1, 4, 16).
        mask_path: Path of the mask (label in the red channel, same pyramid).
        spec: Size, tiles and resolution of the slide.
        slide_id: Name in the truth.
        provider: `karolinska` or `radboud`; chooses colours, grey unscanned blocks and mask codes.
        isup_grade: The intended grade, 0-5. The truth has the grade of the drawn areas, which can differ if the slide
            has room for few glands only.
        seed: Seed of this slide.

    Raises:
        ConfigError: If the provider or grade is unknown.
    """
    if provider not in MASK_CODES:
        raise ConfigError(f"synthetic provider={provider!r}: give one of {', '.join(MASK_CODES)}")
    if isup_grade not in GRADE_PATTERNS:
        raise ConfigError(f"synthetic isup_grade={isup_grade}: give 0 to 5")
    size = spec.width, spec.height
    painter = Painter(plan_scene(*size, spec.mpp, isup_grade, seed), provider)
    recode = np.zeros(256, np.uint8)
    recode[:6] = MASK_CODES[provider]
    px = write_slide(image_path, mask_path, painter.draw, recode, size=size, tile=spec.tile, mpp=spec.mpp)
    _, stroma, benign, three, four, five = (int(n) for n in px[:6])
    grade, gleason = find_grade({3: three, 4: four, 5: five})
    if not grade and provider == "radboud":
        gleason = "negative"
    return SlideTruth(slide_id, provider, grade, gleason, spec.mpp, stroma, benign, three, four, five)


def _draw_numbered(folder: Path, spec: SyntheticSpec, number: int) -> SlideTruth:
    """Draw slide `number` of the set into `folder`, unless an earlier run finished it."""
    digest = hashlib.sha256(f"synthetic slide {spec.seed} {number}".encode()).digest()
    slide_id = digest[:16].hex()
    note = folder / ".drawn" / f"{slide_id}.json"
    if note.exists():
        return SlideTruth(**json.loads(note.read_text(encoding="utf-8")))
    truth = draw_slide(
        folder / "train_images" / f"{slide_id}.tiff",
        folder / "train_label_masks" / f"{slide_id}_mask.tiff",
        spec,
        slide_id=slide_id,
        provider=tuple(MASK_CODES)[number % 2],
        isup_grade=GRADES[number // 2 % len(GRADES)],
        seed=int.from_bytes(digest[16:20], "big") >> 1,
    )
    write_whole(note, json.dumps(asdict(truth)))
    return truth


def _describe(spec: SyntheticSpec) -> dict[str, object]:
    return {"drawing_version": DRAWING_VERSION, "spec": spec.model_dump()}


def _is_drawn(root: Path, spec: SyntheticSpec) -> bool:
    """Return whether `root` holds the data set of this spec; False if it is absent or empty.

    Raises:
        ManifestError: If it holds something else.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    remedy = advise_removal(root, "synthetic.json", "give another root, which is drawn then")
    try:
        there = json.loads((root / "synthetic.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(
            f"{root} was not drawn by this program (no readable synthetic.json): for slides of your own give "
            "data.draw=null, else another root"
        ) from error
    asked = _describe(spec)
    if there != asked:
        raise ManifestError(f"{root} was drawn with another spec: it has {there}, asked for is {asked}; {remedy}")
    for _, row in read_user_table(root / "train.csv", ("image_id",)):
        name = row["image_id"]
        for part in (f"train_images/{name}.tiff", f"train_label_masks/{name}_mask.tiff"):
            if not (root / part).exists():
                raise ManifestError(f"{root} lacks {part}: {remedy}")
    return True


def _fill(folder: Path, spec: SyntheticSpec, progress: bool) -> None:
    for name in ("train_images", "train_label_masks"):
        (folder / name).mkdir(exist_ok=True)
        for leftover in (folder / name).glob(".*"):
            remove(leftover)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, spec.slides, 8)) as pool:
        drawn = pool.map(lambda number: _draw_numbered(folder, spec, number), range(spec.slides))
        try:
            truths = list(Progress(drawn, "drawing slides", spec.slides, hidden=not progress))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    labels = [(truth.image_id, truth.provider, truth.isup_grade, truth.gleason) for truth in truths]
    write_table(folder / "train.csv", labels, ("image_id", "data_provider", "isup_grade", "gleason_score"))
    write_table(folder / "truth.csv", [truth.to_row() for truth in truths], TRUTH_COLUMNS)
    write_whole(folder / "synthetic.json", json.dumps(_describe(spec), indent=2) + "\n")
    remove(folder / ".drawn")


@name_exhaustion()
def draw_dataset(root: Path, spec: SyntheticSpec, progress: bool = True) -> Path:
    """Draw a data set in PANDA's layout, or reuse the existing one.

    `root` gets `train_images/ID.tiff`, `train_label_masks/ID_mask.tiff`, `train.csv` (PANDA's columns),
    `truth.csv` (areas counted in the level-0 masks) and `synthetic.json` (the spec). It is whole or absent: slides are
    drawn in a hidden folder beside it, and a killed run resumes there with the next slide. If several processes ask at
    the same time, one draws and the others wait. Returns `root`.

    Raises:
        ManifestError: If `root` holds something else, a data set of another spec, or an incomplete one.
        ExhaustedError: If memory, threads or file handles run out.
    """
    root = Path(root)
    partial = root.parent / f".{root.name}.{fingerprint(_describe(spec))[:12]}.partial"
    if not _is_drawn(root, spec):
        with hold_lock(root):
            if not _is_drawn(root, spec):  # another process may have drawn it before the lock was free
                partial.mkdir(parents=True, exist_ok=True)
                for other in root.parent.glob(f".{glob.escape(root.name)}.{'[0-9a-f]' * 12}.partial"):
                    if other != partial:  # a killed run left the slides of another spec
                        remove(other)
                _fill(partial, spec, progress)
                sync(partial)
                replace(partial, root)
    return root
