"""Folders of feature files whose features determine the grade of a slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from panda.data.feature_files import FeatureFile, FeatureOrigin, write_feature_file

ORIGIN: dict[str, Any] = {
    "encoder": "drawn",
    "tile_px0": 64.0,
    "tile_um": 64.0,
    "tile_size": 64,
    "mpp": 1.0,
    "weights": "a" * 64,
}


def draw_features(slide_id: str, grade: int, *, tiles: int = 12, dim: int = 8, **stated: Any) -> FeatureFile:
    """Draw features of a slide, of which a quarter of the tiles shows the grade by its number."""
    rng = np.random.default_rng([*slide_id.encode(), tiles])
    features = rng.normal(size=(tiles, dim)).astype(np.float32)
    features[: max(1, tiles // 4), grade] += 8
    places = np.stack(np.meshgrid(np.arange(4), np.arange(-(-tiles // 4))), -1).reshape(-1, 2)[:tiles]
    origin = FeatureOrigin(format="panda", dim=dim, **(ORIGIN | stated))
    return FeatureFile(slide_id, features, (64 + 64 * places).astype(np.int64), origin)


def make_feature_folder(root: Path, slides: int = 24, grades: tuple[int, ...] = (0, 1, 4), **options: Any) -> Path:
    """Write `features/` and `train.csv` of slides that do not exist, and return the folder of the features."""
    folder = root / "features"
    folder.mkdir(parents=True)
    lines = ["image_id,data_provider,isup_grade,gleason_score"]
    for number in range(slides):
        slide_id, grade = f"slide{number:02d}", grades[number % len(grades)]
        lines.append(f"{slide_id},{('radboud', 'karolinska')[number % 2]},{grade},")
        write_feature_file(folder / f"{slide_id}.h5", draw_features(slide_id, grade, **options))
    (root / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
