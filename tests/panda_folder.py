"""Make small folders in PANDA's layout, of known tissue and cancer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panda.data.manifest import SlideRecord, read_manifest
from tests.pyramids import write_pyramid

WIDTH, HEIGHT = 768, 512
TISSUE = (slice(64, 448), slice(64, 704))
CANCER = (slice(128, 320), slice(128, 384))
HEADER = "image_id,data_provider,isup_grade,gleason_score"


def slide_name(number: int) -> str:
    """Return the id of a slide, as long as PANDA's."""
    return f"{number:032x}"


def entry_files(store: Path) -> dict[str, tuple[int, int]]:
    """Map slide ids to inode and time of their `slide.json`; both change if it is written again."""
    found = {path.parent.name: path.stat() for path in store.glob("*/slide.json")}
    return {slide_id: (entry.st_ino, entry.st_mtime_ns) for slide_id, entry in found.items()}


def find_kept_slides(store: Path, before: dict[str, tuple[int, int]]) -> set[str]:
    """Return the slides of a store whose files are those that `entry_files` gave `before`."""
    return {slide_id for slide_id, entry in entry_files(store).items() if before.get(slide_id) == entry}


def picture(seed: int) -> NDArray[np.uint8]:
    """Draw a slide of level-0 px: noisy pink tissue (`TISSUE`) on white glass."""
    rng = np.random.default_rng(seed)
    image = np.full((HEIGHT, WIDTH, 3), 245, np.uint8)
    height, width = (part.stop - part.start for part in TISSUE)
    blocks = rng.integers(-25, 25, (height // 16, width // 16, 3)).repeat(16, 0).repeat(16, 1)
    image[TISSUE] = (np.array([200, 120, 180]) + blocks).astype(np.uint8)
    return image


def codes(provider: str, cancer: bool) -> NDArray[np.uint8]:
    """Label codes of such a slide: benign tissue, and cancer in `CANCER` if asked for."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[TISSUE] = 1
    if cancer:
        labels[CANCER] = {"radboud": 4, "karolinska": 2}[provider]
    return labels


def make_folder(root: Path, slides: int = 4) -> list[SlideRecord]:
    """Write slides of alternating providers; every other pair has cancer (grade 4), the rest none (grade 0)."""
    lines = [HEADER]
    for number in range(slides):
        provider = ("radboud", "karolinska")[number % 2]
        grade = 4 if number % 4 < 2 else 0
        name = slide_name(number)
        write_pyramid(root / "train_images" / f"{name}.tiff", picture(number), (1, 2, 4), mpp=2.0)
        write_pyramid(root / "train_label_masks" / f"{name}_mask.tiff", codes(provider, grade > 0), (1, 2, 4), mpp=2.0)
        lines.append(f"{name},{provider},{grade},{'4+4' if grade else '0+0'}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    return read_manifest(root)
