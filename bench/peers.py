"""Cut slides by other libraries, each used as its documentation says; every adapter names what it leaves out.

An adapter imports its library and returns a function that cuts one slide into `out/img` and `out/msk` and returns the
number of tiles. The same functions write pictures and masks for all libraries that return pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.project import MIN_TISSUE, TILE
from bench.slides import MPP, PROVIDER, mask_path
from panda.data.manifest import SlideRecord
from panda.wsi.label_maps import find_label_map

CutOne = Callable[[SlideRecord, Path], int]
_FAST = 1
"""zlib's level for PNG, the one this project uses; Pillow's own, 6, takes longer."""
_CANCER = np.array([255 * (code in find_label_map(PROVIDER).cancer) for code in range(256)], np.uint8)


def find_saturated(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Find tissue as most loops do, by Otsu's threshold of the blurred saturation: (h, w, 3) RGB to (h, w)."""
    saturation = cv2.medianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1], 7)
    found: NDArray[np.bool_] = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1] > 0
    return found


def picture_png(picture: Image.Image | NDArray[np.uint8], out: Path, x: int, y: int) -> None:
    """Write a tile's picture."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(out / "img" / f"{out.name}_x{x}_y{y}.png", compress_level=_FAST)


def cancer_png(codes: NDArray[np.uint8], out: Path, x: int, y: int) -> None:
    """Write a tile's mask, 255 at cancer codes."""
    Image.fromarray(_CANCER[codes]).save(out / "msk" / f"{out.name}_x{x}_y{y}.png", compress_level=_FAST)


def tiatoolbox() -> CutOne:
    """Use TIAToolbox: its morphological masker, its sliding-window extractor, masks by a second reader.

    Its OpenSlide reader is named outright: by default it takes such a TIFF for a plain picture and loads all of it.
    """
    wsireader: Any = import_module("tiatoolbox.wsicore.wsireader")
    extraction: Any = import_module("tiatoolbox.tools.patchextraction")

    def cut(slide: SlideRecord, out: Path) -> int:
        reader = wsireader.OpenSlideWSIReader(slide.image_path)
        masks = wsireader.OpenSlideWSIReader(mask_path(slide))
        tissue = reader.tissue_mask(method="morphological", resolution=8.0, units="mpp")
        patches = extraction.get_patch_extractor(
            "slidingwindow",
            input_img=reader,
            input_mask=tissue,
            patch_size=(TILE, TILE),
            stride=(TILE, TILE),
            resolution=0,
            units="level",
            min_mask_ratio=MIN_TISSUE,
        )
        for patch, (x, y) in zip(patches, patches.coordinate_list[:, :2].tolist(), strict=True):
            codes = masks.read_rect((x, y), (TILE, TILE), resolution=0, units="level")[..., 0]
            picture_png(patch, out, x, y)
            cancer_png(codes, out, x, y)
        return len(patches)

    return cut


def hs2p(backend: str) -> CutOne:
    """Use the whole pipeline of hs2p, with one of its backends.

    Leaves out the masks (its tiles come without) and previews; writes JPEG of quality 90 into one tar, which is
    less work than PNG files.
    """
    module: Any = import_module("hs2p")
    needed = {"cucim": "cucim", "vips": "pyvips", "openslide": "openslide"}
    import_module(needed[backend])
    masks = replace(module.DEFAULT_MASK_SAMPLING, min_coverage={"tissue": MIN_TISSUE})

    def cut(slide: SlideRecord, out: Path) -> int:
        made = module.tile_slides(
            [module.SlideSpec(sample_id=slide.slide_id, image_path=slide.image_path)],
            tiling=module.TilingConfig(
                requested_spacing_um=MPP, requested_tile_size_px=TILE, tolerance=0.05, overlap=0.0, backend=backend
            ),
            segmentation=module.SegmentationConfig(method="otsu", downsample=16),
            masks=masks,
            output_dir=out,
            num_workers=1,
            save_tiles=True,
        )
        if made[0].tiles_tar_path is None:
            raise RuntimeError("hs2p wrote no tiles")
        return int(made[0].num_tiles)

    return cut


def histolab() -> CutOne:
    """Use the grid tiler of histolab over its tissue mask.

    It leaves out the masks, and writes PNG at Pillow's own compression level. It takes only tiles of which 80 % are in
    the mask, and these are counted.
    """
    slides: Any = import_module("histolab.slide")
    tilers: Any = import_module("histolab.tiler")
    tissue_masks: Any = import_module("histolab.masks")

    def cut(slide: SlideRecord, out: Path) -> int:
        opened = slides.Slide(str(slide.image_path), processed_path=str(out / "img"))
        tiler = tilers.GridTiler((TILE, TILE), level=0, check_tissue=False)
        tiler.extract(opened, extraction_mask=tissue_masks.TissueMask(), log_level="ERROR")
        return sum(1 for _ in (out / "img").iterdir())

    return cut


def dlup(backend: str) -> CutOne:
    """Use the tiled data set of dlup, with one of its backends; tissue is an array, because dlup has no finder."""
    package: Any = import_module("dlup")
    backends: Any = import_module("dlup.utils.backends").ImageBackend

    def cut(slide: SlideRecord, out: Path) -> int:
        chosen = backends[backend.upper()]
        with package.SlideImage.from_file_path(slide.image_path, backend=chosen) as whole:
            overview = np.asarray(whole.get_thumbnail((1024, 1024)).to_numpy())[..., :3]
        masks = package.SlideImage.from_file_path(mask_path(slide), backend=chosen).get_view_at_scaling(1.0)
        data = package.SlideDataset.from_standard_tiling(
            slide.image_path,
            tiling_config=package.TilingConfig(mpp=None, tile_size=(TILE, TILE)),
            mask_config=package.MaskConfig(
                mask=find_saturated(np.ascontiguousarray(overview)).astype(np.int64), mask_threshold=MIN_TISSUE
            ),
            image_config=package.ImageConfig(backend=chosen),
        )
        for sample in data:
            x, y = (int(v) for v in sample.coordinates)
            w, h = min(TILE, masks.size[0] - x), min(TILE, masks.size[1] - y)
            picture_png(np.ascontiguousarray(sample.image.to_numpy()[..., :3]), out, x, y)
            cancer_png(masks.read_region((x, y), (w, h)).to_numpy()[..., 0], out, x, y)
        return len(data)

    return cut


PEERS: dict[str, Callable[[], CutOne]] = {
    "tiatoolbox": tiatoolbox,
    "hs2p openslide": lambda: hs2p("openslide"),
    "hs2p vips": lambda: hs2p("vips"),
    "hs2p cucim": lambda: hs2p("cucim"),
    "histolab": histolab,
    "dlup": lambda: dlup("openslide"),
    "dlup fastslide": lambda: dlup("fastslide"),
}
