"""Areas, clean-up and regions, on maps of known truth and against scipy."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from panda.errors import ConfigError, PandaError
from panda.inference.canvas import Canvas, CanvasWriter
from panda.inference.quantify import Measurements, QuantifySettings, slide_quantification
from panda.inference.regions import clean_mask
from panda.wsi.geometry import Resolution
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap
from tests.pyramids import write_pyramid

WIDTH, HEIGHT = 1200, 800  # level 0; level 1 is 300 x 200
NO_LIMITS = QuantifySettings(min_region_um2=0, min_hole_um2=0, min_region_px=0, min_hole_px=0)


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    image = np.full((HEIGHT, WIDTH, 3), (190, 120, 170), np.uint8)
    return Slide.open(write_pyramid(tmp_path / "slide.tiff", image, mpp=0.5))


@pytest.fixture
def slide_without_mpp(tmp_path: Path) -> Slide:
    image = np.full((HEIGHT, WIDTH, 3), (190, 120, 170), np.uint8)
    return Slide.open(write_pyramid(tmp_path / "bare.tiff", image))


def make_tissue_map(slide: Slide, mask: NDArray[np.bool_] | None = None) -> TissueMap:
    resolution = slide.choose_resolution(level=1)
    everywhere = np.ones((resolution.height, resolution.width), np.bool_)
    return TissueMap(everywhere if mask is None else mask, resolution, "strict")


def paint_map(*boxes: tuple[int, int, int, int, float]) -> NDArray[np.float32]:
    """Paint boxes (left, top, right, bottom, probability) on a 300 x 200 map, one after the other."""
    prob = np.zeros((HEIGHT // 4, WIDTH // 4), np.float32)
    for x0, y0, x1, y1, value in boxes:
        prob[y0:y1, x0:x1] = value
    return prob


def test_slide_quantification_area_is_pixels_times_pixel_area(slide: Slide) -> None:
    # A working px is 2 µm: 4 µm². The box is 60 x 50 px, the small one 20 x 10 px.
    prob = paint_map((40, 30, 100, 80, 0.9), (200, 100, 220, 110, 0.6))
    found = slide_quantification(
        prob, slide, 1, 0.5, settings=QuantifySettings(min_region_um2=800), tissue=make_tissue_map(slide)
    )
    assert found.tumor_px == 3000 + 200
    assert found.tissue_px == 300 * 200
    assert found.tumor_percent_of_tissue == pytest.approx(100 * 3200 / 60000)
    assert found.tumor_mm2 == pytest.approx(3200 * 4e-6)
    assert found.tissue_mm2 == pytest.approx(0.24)
    assert found.num_regions == 2
    np.testing.assert_array_equal(found.mask_clean, prob >= 0.5)
    assert str(found.mask_clean.dtype) == "bool"
    large, small = found.regions
    assert large.id == 1
    assert large.area_px == 3000
    assert large.area_mm2 == pytest.approx(0.012)
    assert list(large.centroid) == [70 * 4, 55 * 4]
    assert large.bbox == (160, 120, 400, 320)
    assert large.mean_probability == pytest.approx(0.9)
    assert small.id == 2
    assert small.max_probability == pytest.approx(0.6)
    over = QuantifySettings(min_region_um2=800.1)
    assert slide_quantification(prob, slide, 1, 0.5, settings=over, tissue=make_tissue_map(slide)).num_regions == 1


def test_slide_quantification_result_is_plain_data_but_mask(slide: Slide) -> None:
    found = slide_quantification(paint_map((0, 0, 100, 100, 1)), slide, 1, 0.5, tissue=make_tissue_map(slide))
    assert found.mask_clean.shape == (200, 300)
    plain = found.model_dump(mode="json")
    assert "mask_clean" not in plain
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert Measurements.model_validate_json(json.dumps(plain), strict=True).model_dump(mode="json") == plain


def test_slide_quantification_memory_is_bounded(tmp_path: Path) -> None:
    """But for the mask itself, a byte a px of what holds tumour."""

    def peak(side: int) -> int:
        slide = Slide.open(
            write_pyramid(tmp_path / f"{side}.tiff", np.full((side, side, 3), 120, np.uint8), downsamples=(1,))
        )
        tissue = TissueMap(np.ones((side // 8, side // 8), np.bool_), slide.choose_resolution(downsample=8), "strict")
        prob = np.zeros((side, side), np.float32)
        blob = np.random.default_rng(0).random((64, 64)).astype(np.float32)
        prob[:1024, :1024] = blob.repeat(16, axis=0).repeat(16, axis=1)
        tracemalloc.start()
        try:
            slide_quantification(prob, slide, 0, 0.5, tissue=tissue, block=512)
            return tracemalloc.get_traced_memory()[1] - side * side  # of which untouched pages take no memory
        finally:
            tracemalloc.stop()

    assert peak(4096) < 1.2 * peak(2048)


def test_slide_quantification_counts_scored_tissue_only(slide: Slide, tmp_path: Path) -> None:
    """Left half is tissue; the right half of the rows below 100 is scored."""
    in_tissue = np.zeros((200, 300), np.bool_)
    in_tissue[:, :150] = True
    with CanvasWriter(tmp_path / "c", slide.choose_resolution(level=1), 100, "f", {}) as writer:
        writer.add(np.ones((3, 100, 100)), [[0, 100], [100, 100], [200, 100]])
    canvas = Canvas.open(tmp_path / "c")
    found = slide_quantification(
        canvas, slide, canvas.resolution, 0.5, settings=NO_LIMITS, tissue=make_tissue_map(slide, in_tissue)
    )
    assert found.tissue_px == 150 * 200
    assert found.tumor_px == 150 * 100
    assert found.unscored_tissue_px == 150 * 100
    # Where nothing was scored, a threshold of 0 finds nothing either.
    at_0 = slide_quantification(canvas, slide, 1, 0, settings=NO_LIMITS, tissue=make_tissue_map(slide, in_tissue))
    assert at_0.tumor_px == 150 * 100


def test_slide_quantification_canvas_and_array_agree(slide: Slide, tmp_path: Path) -> None:
    prob = ndimage.gaussian_filter(np.random.default_rng(3).random((200, 300)), 6)
    prob = ((prob - prob.min()) / np.ptp(prob)).astype(np.float32)
    with CanvasWriter(tmp_path / "c", slide.choose_resolution(level=1), 100, "f", {}) as writer:
        for y in (0, 100):
            writer.add(
                np.stack([prob[y : y + 100, x : x + 100] for x in (0, 100, 200)]), [[x, y] for x in (0, 100, 200)]
            )
    canvas = Canvas.open(tmp_path / "c")
    some, tissue = QuantifySettings(min_region_um2=400), make_tissue_map(slide)
    of_canvas = slide_quantification(canvas, slide, 1, 0.6, settings=some, tissue=tissue)
    of_array = slide_quantification(np.asarray(canvas), slide, 1, 0.6, settings=some, tissue=tissue)
    mask = of_canvas.mask_clean
    np.testing.assert_array_equal(mask, of_array.mask_clean)
    for region, same in zip(of_canvas.regions, of_array.regions, strict=True):
        assert region.mean_probability == pytest.approx(same.mean_probability)
        assert same == region.model_copy(update={"mean_probability": same.mean_probability})
    in_blocks = slide_quantification(canvas, slide, 1, 0.6, settings=some, tissue=tissue, block=64)
    np.testing.assert_array_equal(mask, in_blocks.mask_clean)
    assert of_canvas.model_dump() == in_blocks.model_dump()
    assert of_canvas.num_regions > 1
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    held = np.asarray(canvas)
    assert sorted(r.max_probability for r in of_canvas.regions) == pytest.approx(
        sorted(ndimage.maximum(held, labels, range(1, count + 1)))
    )
    assert sorted(r.mean_probability for r in of_canvas.regions) == pytest.approx(
        sorted(ndimage.mean(held, labels, range(1, count + 1)))
    )
    areas = [r.area_px for r in of_canvas.regions]
    assert areas == sorted(areas, reverse=True)
    assert sum(areas) == of_canvas.tumor_px


def test_slide_quantification_threshold_is_inclusive_and_exact(slide: Slide) -> None:
    for value, thr, count in ((0.5, 0.5, 100), (0.4999, 0.5, 0), (np.nextafter(0.5, 0, dtype=np.float32), 0.5, 0)):
        prob = paint_map((0, 0, 10, 10, float(value)))
        found = slide_quantification(prob, slide, 1, thr, settings=NO_LIMITS, tissue=make_tissue_map(slide))
        assert found.tumor_px == count
    # float32(0.7) is 0.699999988, below 0.7: the same verdict as in the threshold search.
    prob = paint_map((0, 0, 10, 10, 0.7))
    assert slide_quantification(prob, slide, 1, 0.7, settings=NO_LIMITS, tissue=make_tissue_map(slide)).tumor_px == 0


def test_slide_quantification_fills_holes_in_tissue_only(slide: Slide) -> None:
    in_tissue = np.ones((200, 300), np.bool_)
    in_tissue[45:50, 45:55] = False  # half of the hole is lumen
    prob = paint_map((20, 20, 120, 120, 0.9), (45, 45, 55, 55, 0.1), (70, 70, 90, 90, 0.1))
    tissue = make_tissue_map(slide, in_tissue)
    some = QuantifySettings(min_region_um2=0, min_hole_um2=100 * 4 + 1)
    found = slide_quantification(prob, slide, 1, 0.5, settings=some, tissue=tissue)
    assert found.tumor_px == 100 * 100 - 50 - 400
    none = QuantifySettings(min_region_um2=0, min_hole_um2=100 * 4)
    assert slide_quantification(prob, slide, 1, 0.5, settings=none, tissue=tissue).tumor_px == 10000 - 500
    assert found.tissue_px == 60000 - 50


def test_slide_quantification_unknown_mpp_gives_no_area(slide_without_mpp: Slide) -> None:
    slide = slide_without_mpp
    prob = paint_map((0, 0, 8, 8, 1), (50, 50, 57, 59, 1))  # 64 px stays, 63 px does not
    found = slide_quantification(prob, slide, 1, 0.5, tissue=make_tissue_map(slide))
    assert (found.tumor_px, found.num_regions) == (64, 1)
    assert found.tumor_mm2 is None
    assert found.tissue_mm2 is None
    assert found.regions[0].area_mm2 is None
    assert "mpp" in found.mm2_note


def test_slide_quantification_no_tumor_or_no_tissue(slide: Slide) -> None:
    found = slide_quantification(paint_map(), slide, 1, 0.5, tissue=make_tissue_map(slide))
    assert (found.tumor_px, found.num_regions, found.regions) == (0, 0, ())
    assert found.tumor_percent_of_tissue == 0
    none = make_tissue_map(slide, np.zeros((200, 300), np.bool_))
    found = slide_quantification(paint_map((0, 0, 50, 50, 1)), slide, 1, 0.5, tissue=none)
    assert (found.tumor_px, found.tissue_px, found.tumor_percent_of_tissue) == (0, 0, None)


def test_slide_quantification_finds_tissue_if_not_given(tmp_path: Path) -> None:
    image = np.full((HEIGHT, WIDTH, 3), 245, np.uint8)
    image[200:600, 200:1000] = (190, 110, 165)
    slide = Slide.open(write_pyramid(tmp_path / "s.tiff", image, mpp=0.5))
    found = slide_quantification(paint_map((0, 0, 300, 200, 1)), slide, 1, 0.5)
    assert found.tissue_px == pytest.approx(200 * 100, rel=0.1)
    assert found.tumor_px == found.tissue_px
    assert found.tumor_percent_of_tissue == 100


def test_slide_quantification_other_resolution_raises_with_sizes(slide: Slide) -> None:
    with pytest.raises(PandaError, match=r"slide\.tiff: the probability map is 300 x 200 px.*is 1200 x 800 px"):
        slide_quantification(paint_map(), slide, 0, 0.5, tissue=make_tissue_map(slide))
    other = Resolution(4.0, 299, 200, 1, 4.0, None)
    with pytest.raises(PandaError, match="is 299 x 200 px"):
        slide_quantification(paint_map(), slide, other, 0.5, tissue=make_tissue_map(slide))


def test_slide_quantification_nan_or_invalid_threshold_raises(slide: Slide) -> None:
    prob = paint_map()
    prob[7, 7] = np.nan
    with pytest.raises(PandaError, match="holds NaN in rows 0 to 199"):
        slide_quantification(prob, slide, 1, 0.5, tissue=make_tissue_map(slide))
    with pytest.raises(ValueError, match=r"threshold is 1\.5"):
        slide_quantification(paint_map(), slide, 1, 1.5, tissue=make_tissue_map(slide))


def test_quantify_settings_all_faults_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        QuantifySettings(min_region_um2=-1, min_hole_px=-2, connectivity=6)  # type: ignore[arg-type]
    assert len(caught.value.faults) == 3
    assert "quantify.connectivity=6" in str(caught.value)


def quantify_with_scipy(
    mask: NDArray[np.bool_], fillable: NDArray[np.bool_], min_region: int, min_hole: int, connectivity: int
) -> NDArray[np.bool_]:
    """Clean a mask by scipy, one component at a time."""
    eight, four = np.ones((3, 3), int), ndimage.generate_binary_structure(2, 1)
    objects, holes = (eight, four) if connectivity == 8 else (four, eight)
    out = np.zeros_like(mask)
    labels, count = ndimage.label(mask, objects)
    for number in range(1, count + 1):
        if (labels == number).sum() >= min_region:
            out |= labels == number
    enclosed = ndimage.binary_fill_holes(out, structure=holes) & ~out
    labels, count = ndimage.label(enclosed, holes)
    for number in range(1, count + 1):
        if (labels == number).sum() < min_hole:
            out |= (labels == number) & fillable
    return out


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    density=st.floats(0.2, 0.8),
    min_region=st.integers(0, 12),
    min_hole=st.integers(0, 12),
    connectivity=st.sampled_from([4, 8]),
    block=st.integers(1, 12),
)
def test_clean_mask_matches_scipy(
    *, seed: int, density: float, min_region: int, min_hole: int, connectivity: int, block: int
) -> None:
    """Objects and holes that cross the seams of blocks among them."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 40, 2))
    mask, fillable = rng.random(shape) < density, rng.random(shape) < 0.8
    want = quantify_with_scipy(mask, fillable, min_region, min_hole, connectivity)
    objects = clean_mask(
        mask,
        lambda window: fillable[window[1] : window[1] + window[3], window[0] : window[0] + window[2]],
        min_region=min_region,
        min_hole=min_hole,
        connectivity=connectivity,
        block=block,
    )
    np.testing.assert_array_equal(mask, want)
    labels, count = ndimage.label(want, np.ones((3, 3)) if connectivity == 8 else None)
    areas = ndimage.sum_labels(want, labels, range(1, count + 1)).astype(int).tolist()
    assert objects.area[1:].tolist() == sorted(areas, reverse=True)
    for number, (x, y) in enumerate(objects.start.tolist()[1:], start=1):
        rows, columns = np.nonzero(labels == labels[y, x])
        assert (y, x) == (rows[0], columns[0])
        assert len(rows) == objects.area[number]
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert objects.box[number].tolist() == box
        np.testing.assert_allclose(objects.centroid[number], [columns.mean(), rows.mean()])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), density=st.floats(0.3, 0.7), block=st.integers(17, 90))
def test_slide_quantification_block_size_changes_nothing(
    slide: Slide, *, seed: int, density: float, block: int
) -> None:
    """On a map of blobs that cross many seams."""
    rng = np.random.default_rng(seed)
    prob = ndimage.gaussian_filter(rng.random((200, 300)), rng.uniform(0.5, 4))
    prob = ((prob - prob.min()) / np.ptp(prob)).astype(np.float32)
    tissue = make_tissue_map(slide, ndimage.gaussian_filter(rng.random((200, 300)), 3) < 0.52)
    some = QuantifySettings(min_region_um2=60, min_hole_um2=60, connectivity=int(rng.choice([4, 8])))  # type: ignore[arg-type]
    thr = float(np.quantile(prob, density))
    whole = slide_quantification(prob, slide, 1, thr, settings=some, tissue=tissue)
    parts = slide_quantification(prob, slide, 1, thr, settings=some, tissue=tissue, block=block)
    np.testing.assert_array_equal(whole.mask_clean, parts.mask_clean)
    for region, same in zip(whole.regions, parts.regions, strict=True):
        assert region.mean_probability == pytest.approx(same.mean_probability)
    without = {"regions": {"__all__": {"mean_probability"}}}
    assert whole.model_dump(exclude=without) == parts.model_dump(exclude=without)


def test_slide_quantification_region_length_is_greatest_extent(slide: Slide) -> None:
    prob = paint_map((40, 30, 43, 34, 0.9), (100, 100, 160, 101, 0.9))
    found = slide_quantification(prob, slide, 1, 0.5, settings=NO_LIMITS, tissue=make_tissue_map(slide), block=16)
    line, box = found.regions
    assert box.length_px == pytest.approx(5)  # 3 by 4
    assert box.length_mm == pytest.approx(5 * 2 / 1000)
    assert line.length_px == pytest.approx(np.hypot(60, 1))
    assert (box.box_px, box.start_px) == ((40, 30, 43, 34), (40, 30))


def test_slide_quantification_counts_pixels_at_every_threshold(slide: Slide) -> None:
    rng = np.random.default_rng(5)
    prob = rng.choice(np.linspace(0, 1, 2001), (200, 300)).astype(np.float32)
    tissue = make_tissue_map(slide, rng.random((200, 300)) < 0.5)
    found = slide_quantification(prob, slide, 1, 0.1234, settings=NO_LIMITS, tissue=tissue)
    inside = prob[tissue.mask].astype(np.float64)
    assert found.px_at_threshold == tuple(int((inside >= k / 1000).sum()) for k in range(1001))
    for near, off in zip(found.nearby, (-0.1, -0.05, 0, 0.05, 0.1), strict=True):
        assert near.threshold == 0.1234 + off
        assert near.tumor_percent_of_tissue == 100 * (inside >= 0.1234 + off).sum() / inside.size


def test_slide_quantification_mask_on_disk_gives_same_result(
    slide: Slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prob = ndimage.gaussian_filter(np.random.default_rng(3).random((200, 300)), 2).astype(np.float32)
    in_memory = slide_quantification(prob, slide, 1, 0.5, settings=NO_LIMITS, tissue=make_tissue_map(slide))
    monkeypatch.setattr("panda.inference.quantify._IN_MEMORY_PX", 100)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    on_disk = slide_quantification(prob, slide, 1, 0.5, settings=NO_LIMITS, tissue=make_tissue_map(slide))
    assert isinstance(on_disk.mask_clean, np.memmap)
    np.testing.assert_array_equal(in_memory.mask_clean, on_disk.mask_clean)
    assert in_memory.model_dump() == on_disk.model_dump()
