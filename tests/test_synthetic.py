"""Synthetic slides: files equal the drawing, on any machine and in any repetition."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile

from panda.errors import ConfigError, ManifestError
from panda.synthetic import dataset as synthetic
from panda.synthetic.dataset import SyntheticSpec, draw_dataset, draw_slide, find_grade
from panda.synthetic.layout import GRADE_PATTERNS, plan_scene
from panda.synthetic.painter import GREY_BLOCK_PX, STYLES, Painter
from panda.synthetic.scene import CELL_PX

SIZES = {"width", "height", "tile"}
SPEC = SyntheticSpec(slides=4, seed=3, width=1024, height=768)


def slide(folder: Path, **how: Any) -> tuple[Path, Path, synthetic.SlideTruth]:
    image, mask = folder / "s.tiff", folder / "s_mask.tiff"
    spec = SyntheticSpec(**{"width": 1024, "height": 768} | {key: how.pop(key) for key in SIZES & how.keys()})
    settings: dict[str, Any] = {"slide_id": "s", "provider": "radboud", "isup_grade": 3, "seed": 5}
    return image, mask, draw_slide(image, mask, spec, **(settings | how))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("panda") / "set", SPEC, progress=False)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def test_draw_dataset_layout(dataset: Path) -> None:
    labels = rows(dataset / "train.csv")
    assert list(labels[0]) == ["image_id", "data_provider", "isup_grade", "gleason_score"]
    assert [r["data_provider"] for r in labels] == ["karolinska", "radboud"] * 2
    assert all(len(r["image_id"]) == 32 and int(r["image_id"], 16) for r in labels)
    assert [r["image_id"] for r in rows(dataset / "truth.csv")] == [r["image_id"] for r in labels]
    assert [r["gleason_score"] for r in labels] == ["0+0", "negative", "3+3", "3+3"]
    assert sorted(p.name for p in dataset.iterdir()) == [
        *("synthetic.json", "train.csv", "train_images", "train_label_masks", "truth.csv")
    ]
    assert sorted(p.name for p in dataset.parent.iterdir()) == [".set.lock", "set"]


def test_draw_dataset_opens_in_openslide_with_levels_and_mpp(dataset: Path) -> None:
    for path in [*dataset.glob("train_images/*"), *dataset.glob("train_label_masks/*")]:
        with openslide.OpenSlide(path) as opened:
            assert opened.level_dimensions == ((1024, 768), (256, 192), (64, 48))
            assert list(opened.level_downsamples) == [1, 4, 16]
            for axis in "xy":
                assert float(opened.properties[f"openslide.mpp-{axis}"]) == pytest.approx(0.48, rel=1e-6)


def test_draw_dataset_tiff_format(dataset: Path) -> None:
    page: Any
    with tifffile.TiffFile(next(dataset.glob("train_images/*"))) as tiff:
        for page in tiff.pages:
            assert (page.compression, page.photometric) == (7, 6)
            assert page.tags["YCbCrSubSampling"].value == (2, 2)
            assert page.is_tiled
    with tifffile.TiffFile(next(dataset.glob("train_label_masks/*"))) as tiff:
        codes = [page.asarray() for page in tiff.pages]
        assert [page.compression for page in tiff.pages] == [8, 8, 8]
        assert tiff.pages[0].tile == (256, 256)
    assert not any(level[..., 1:].any() for level in codes)
    assert (codes[1] == codes[0][2::4, 2::4]).all()
    assert (codes[2] == codes[0][8::16, 8::16]).all()


def test_draw_dataset_truth_equals_masks(dataset: Path) -> None:
    truths = {r["image_id"]: r for r in rows(dataset / "truth.csv")}
    for label in rows(dataset / "train.csv"):
        truth = {k: float(v) for k, v in truths[label["image_id"]].items() if k != "image_id"}
        mask = tifffile.imread(dataset / "train_label_masks" / f"{label['image_id']}_mask.tiff")[..., 0]
        counts = np.bincount(mask.ravel(), minlength=6)
        assert truth["tissue_px"] == counts[1:].sum() > 0
        if label["data_provider"] == "radboud":
            names = ("stroma_px", "benign_px", "pattern3_px", "pattern4_px", "pattern5_px")
            assert [truth[n] for n in names] == list(counts[1:6])
        else:
            assert mask.max() <= 2
            assert truth["cancer_px"] == counts[2]
            assert truth["stroma_px"] + truth["benign_px"] == counts[1]
        assert truth["cancer_px"] == truth["pattern3_px"] + truth["pattern4_px"] + truth["pattern5_px"]
        assert truth["cancer_mm2"] == pytest.approx(truth["cancer_px"] * 0.48**2 / 1e6, abs=1e-6)
        assert (truth["cancer_px"] > 0) == (label["isup_grade"] != "0")


@pytest.mark.parametrize("size", [(1000, 700), (700, 1000)])
def test_painter_tiles_meet_without_seams(size: tuple[int, int]) -> None:
    width, height = size
    scene = plan_scene(width, height, 0.48, 5, 21)
    whole, codes = Painter(scene, "radboud").draw(0, 0, width, height)
    painter = Painter(scene, "radboud")
    for tile in (96, 320):
        for y in reversed(range(0, height, tile)):
            for x in range(0, width, tile):
                rgb, part = painter.draw(x, y, tile, tile)
                here = np.s_[y : y + tile, x : x + tile]
                kept = np.s_[: min(tile, height - y), : min(tile, width - x)]
                assert (rgb[kept] == whole[here]).all()
                assert (part[kept] == codes[here]).all()


def test_painter_tiles_meet_at_fine_resolution_with_full_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panda.synthetic.painter.STAMP_CACHE_BYTES", 1)
    painter = Painter(plan_scene(900, 600, 0.15, 4, 2), "radboud")
    whole, _ = painter.draw(0, 0, 900, 600)
    parts = [painter.draw(x, 0, 100, 600)[0] for x in range(0, 900, 100)]
    assert (np.concatenate(parts, axis=1) == whole).all()
    assert len(painter.stamps) == 1


def test_draw_slide_same_seed_gives_same_files_on_any_thread(tmp_path: Path) -> None:
    def draw(name: str) -> None:
        (tmp_path / name).mkdir()
        slide(tmp_path / name, width=600, height=400)

    threads = [threading.Thread(target=draw, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("s.tiff", "s_mask.tiff"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_draw_slide_tile_size_keeps_truth_and_seed_changes_it(tmp_path: Path) -> None:
    made = [slide(tmp_path, width=600, height=400, **how) for how in ({"tile": 128}, {"tile": 512}, {"seed": 6})]
    truths = [truth for _, _, truth in made]
    assert truths[0] == truths[1] != truths[2]


def test_painter_pixels_are_same_on_any_machine() -> None:
    rgb, codes = Painter(plan_scene(512, 384, 0.48, 3, 4), "radboud").draw(0, 0, 512, 384)
    digests = [hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()[:16] for a in (rgb, codes)]
    # a change here that is meant needs a new DRAWING_VERSION
    assert digests == ["5eb26f118134a916", "ffaa1f33bc259ef8"]


def test_draw_slide_levels_show_same_picture(tmp_path: Path) -> None:
    image, mask, _ = slide(tmp_path, width=1003, height=701, tile=128)
    with openslide.OpenSlide(image) as opened, openslide.OpenSlide(mask) as codes:
        assert opened.level_dimensions == codes.level_dimensions == ((1003, 701), (250, 175), (62, 43))
        full = np.asarray(opened.read_region((0, 0), 0, (992, 688)).convert("RGB"), dtype=float)
        for level, factor in ((1, 4), (2, 16)):
            w, h = 992 // factor, 688 // factor
            mean = full.reshape(h, factor, w, factor, 3).mean(axis=(1, 3))
            low = np.asarray(opened.read_region((0, 0), level, (w, h)).convert("RGB"), dtype=float)
            error = np.abs(low - mean).mean()
            # colours at half resolution and JPEG cost more the coarser the level; a shift costs far more
            assert error < 4 * level
            assert all(np.abs(low - np.roll(mean, 1, axis)).mean() > 2 * error for axis in (0, 1))


def test_draw_slide_providers_differ_in_look_and_codes(tmp_path: Path) -> None:
    for provider, most in (("karolinska", 2), ("radboud", 5)):
        image, mask, truth = slide(tmp_path, provider=provider, isup_grade=5, width=1536, height=1024)
        rgb, codes = tifffile.imread(image), tifffile.imread(mask)[..., 0]
        assert codes.max() <= most
        assert truth.provider == provider
        assert rgb[codes == 0].mean() > 210
        assert rgb[codes > 0].mean() < 200
        grey = STYLES[provider].grey
        flat = (rgb == grey).all(axis=-1) if grey else np.zeros_like(codes, dtype=bool)
        # blocks of bare glass that the scanner skipped: constant, as wide as a block, free of tissue
        assert (int(flat.sum()) >= GREY_BLOCK_PX**2 // 2) == (provider == "radboud")
        assert not codes[flat].any()


@pytest.mark.parametrize("grade", list(GRADE_PATTERNS))
def test_plan_scene_draws_requested_grade(grade: int) -> None:
    for seed in (1, 2):
        _, codes = Painter(plan_scene(1280, 800, 0.48, grade, seed), "radboud").draw(0, 0, 1280, 800)
        counts = np.bincount(codes.ravel(), minlength=6)
        assert find_grade({p: int(counts[p]) for p in (3, 4, 5)})[0] == grade
        assert counts[1] > 0
        assert counts[2] > 0


@pytest.mark.parametrize(
    ("three", "four", "five", "expected"),
    [
        (0, 0, 0, (0, "0+0")),
        (10, 0, 0, (1, "3+3")),
        (96, 4, 0, (1, "3+3")),
        (95, 5, 0, (2, "3+4")),
        (40, 60, 0, (3, "4+3")),
        (50, 50, 0, (3, "4+3")),
        (0, 7, 0, (4, "4+4")),
        (90, 0, 10, (4, "3+5")),
        (10, 0, 90, (4, "5+3")),
        (0, 90, 10, (5, "4+5")),
        (0, 10, 90, (5, "5+4")),
        (1, 1, 98, (5, "5+5")),
        (50, 30, 20, (2, "3+4")),
    ],
)
def test_find_grade_rules(three: int, four: int, five: int, expected: tuple[int, str]) -> None:
    assert find_grade({3: three, 4: four, 5: five}) == expected


def test_draw_dataset_same_spec_is_reused_other_raises(dataset: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in dataset.rglob("*")}
    assert draw_dataset(dataset, SPEC, progress=False) == dataset
    assert {p: p.stat().st_mtime_ns for p in dataset.rglob("*")} == before
    with pytest.raises(ManifestError, match=r"another spec.*'seed': 3.*'seed': 4.*another root"):
        draw_dataset(dataset, SyntheticSpec(slides=4, seed=4, width=1024, height=768), progress=False)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ManifestError, match="was not drawn by this program"):
        draw_dataset(tmp_path, SPEC, progress=False)


def test_draw_dataset_incomplete_set_raises(tmp_path: Path) -> None:
    spec = SyntheticSpec(slides=1, width=256, height=256)
    root = draw_dataset(tmp_path / "set", spec, progress=False)
    next(root.glob("train_label_masks/*")).unlink()
    with pytest.raises(ManifestError, match="lacks train_label_masks"):
        draw_dataset(root, spec, progress=False)


def test_draw_dataset_interrupted_leaves_nothing_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SyntheticSpec(slides=3, width=256, height=256, tile=64)
    root = tmp_path / "set"
    real, calls = draw_slide, []

    def failing(*args: Any, **how: Any) -> synthetic.SlideTruth:
        calls.append(how["slide_id"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **how)

    monkeypatch.setattr(synthetic, "draw_slide", failing)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        draw_dataset(root, spec, progress=False)
    assert not root.exists()
    [partial] = tmp_path.glob("*.partial")
    (partial / "train_images" / ".half.partial.x.tiff").write_bytes(b"killed while writing")
    draw_dataset(root, spec, progress=False)
    assert calls[3:] == calls[2:3]
    assert len(list((root / "train_images").iterdir())) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == [".set.lock", "set"]


def test_draw_dataset_two_at_once_draw_one_set(tmp_path: Path) -> None:
    spec = SyntheticSpec(slides=2, width=256, height=256, tile=64)
    threads = [
        threading.Thread(target=draw_dataset, args=(tmp_path / "set", spec), kwargs={"progress": False})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".set.lock", "set"]
    assert json.loads((tmp_path / "set" / "synthetic.json").read_text())["spec"]["slides"] == 2
    assert draw_dataset(tmp_path / "set", spec) == tmp_path / "set"


def test_synthetic_spec_all_faults_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        SyntheticSpec(slides=0, tile=100, mpp=50)
    assert len(caught.value.faults) == 3
    with pytest.raises(ConfigError, match="provider='oslo'"):
        slide(tmp_path, provider="oslo")
    with pytest.raises(ConfigError, match="isup_grade=6"):
        slide(tmp_path, isup_grade=6)
    assert not any(tmp_path.iterdir())


def test_plan_scene_finds_every_gland_that_touches() -> None:
    scene = plan_scene(4 * CELL_PX, 2 * CELL_PX, 0.48, 3, 9)
    for x, y, w, h in ((0, 0, 512, 512), (700, 300, 100, 40), (511, 511, 2, 2)):
        touching = []
        for number, gland in enumerate(scene.glands):
            u0, v0, u1, v1 = gland.find_box()
            if u0 < x + w and u1 > x and v0 < y + h and v1 > y:
                touching.append(number)
        assert set(touching) <= set(scene.find_glands(x, y, x + w, y + h))


@pytest.mark.parametrize(("width", "height"), [(16384, 512), (512, 16384)])
def test_draw_slide_long_slide_needs_bounded_memory(tmp_path: Path, width: int, height: int) -> None:
    code = f"""
import resource, sys
from pathlib import Path
from panda.synthetic.dataset import SyntheticSpec, draw_slide
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
how = dict(slide_id="s", provider="karolinska", isup_grade=4, seed=1)
draw_slide(Path("a.tiff"), Path("a_mask.tiff"), SyntheticSpec(width=512, height=512, mpp=1.0), **how)
before = peak()
draw_slide(Path("b.tiff"), Path("b_mask.tiff"), SyntheticSpec(width={width}, height={height}, mpp=1.0), **how)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    # the whole slide is 25 MB as pixels and 170 MB as the layers it is drawn from; the cache of stamps is 48 MB
    assert float(done.stdout) < 110
