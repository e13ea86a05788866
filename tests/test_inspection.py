"""Each finding on a slide made for it, and none on sound ones."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from bench.difficult_slides import PENS
from panda.audit import readability as soundness
from panda.audit.inspection import Inspection, find_outliers
from panda.audit.near_duplicates import digest_quickly, find_identical_files, report_groups
from panda.audit.slide_inspector import inspect_slide
from panda.data.slide_rows import locate_image, locate_mask, read_rows
from panda.synthetic.dataset import SyntheticSpec, draw_dataset
from panda.wsi.readers import ReaderName
from panda.wsi.slide import SlideOptions
from panda.wsi.tiff.pyramid import TiffPyramid
from tests.drawings import box, feature, write_json
from tests.pyramids import level_size, sample_centers, write_levels, write_pyramid

MPP = 0.48
HEIGHT, WIDTH = 1024, 2048

Picture = NDArray[np.uint8]


@pytest.fixture(scope="module")
def drawn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sound slides: of each provider one of grade 0 and one with cancer."""
    root = tmp_path_factory.mktemp("data") / "drawn"
    return draw_dataset(root, SyntheticSpec(slides=4, width=WIDTH, height=HEIGHT, mpp=MPP), progress=False)


ADAPTER = TypeAdapter(Inspection)


class Case:
    """A folder with copies of the drawn slides, of which one, `row`, is to be spoilt."""

    def __init__(self, root: Path, cancer: bool) -> None:
        self.root = root
        self.rows = read_rows(root)
        self.row = next(row for row in self.rows if row.provider == "radboud" and bool(row.grade) == cancer)
        self.image, self.mask = locate_image(root, self.row.slide_id), locate_mask(root, self.row.slide_id)
        self.pixels: Picture = tifffile.imread(self.image, level=0)
        self.codes: Picture = np.ascontiguousarray(tifffile.imread(self.mask, level=0)[..., 0])

    def find(self, **how: Any) -> dict[str, str]:
        """Return the findings of the slide with their values."""
        return {finding.finding: finding.value for finding in inspect_slide(self.row, **how)[0].findings}

    def draw(self, pixels: Picture, downsamples: tuple[float, ...] = (1, 4, 16), **how: Any) -> None:
        """Write the slide again."""
        options: dict[str, Any] = {"mpp": MPP, "compression": "jpeg"} | how
        write_pyramid(self.image, pixels, downsamples, **options)

    def label(self, codes: Picture, downsamples: tuple[float, ...] = (1, 4, 16), **how: Any) -> None:
        """Write the mask again."""
        write_pyramid(self.mask, codes, downsamples, **how)

    def set_grade(self, grade: int) -> None:
        """Give the slide another grade."""
        self.row = dataclasses.replace(self.row, isup_grade=str(grade))


@pytest.fixture
def case(drawn_folder: Path, tmp_path: Path) -> Case:
    """Return a case of a slide with cancer."""
    return Case(Path(shutil.copytree(drawn_folder, tmp_path / "data")), cancer=True)


@pytest.fixture
def benign(drawn_folder: Path, tmp_path: Path) -> Case:
    """Return a case of a slide without cancer."""
    return Case(Path(shutil.copytree(drawn_folder, tmp_path / "data")), cancer=False)


def _zero(path: Path, start: float, share: float) -> None:
    """Write zeros over a stretch of a file, in shares of its size."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(round(start * size))
        file.write(bytes(round(share * size)))


@pytest.mark.parametrize("how", [{}, {"deep": True}, {"options": SlideOptions("openslide")}])
def test_inspect_slide_sound_slides_have_no_finding(drawn_folder: Path, how: dict[str, Any]) -> None:
    seen = []
    for row in read_rows(drawn_folder):
        inspection, thumbnail = inspect_slide(row, **how)
        assert inspection.findings == ()
        assert thumbnail is not None
        assert thumbnail.dtype == np.uint8
        assert thumbnail.shape == (64, 128, 3)
        assert ADAPTER.validate_json(ADAPTER.dump_json(inspection)) == inspection
        assert inspect_slide(row, **how)[0] == inspection
        assert inspection.hashes is not None
        seen.append(inspection)
    assert len({seen_of_one.hashes for seen_of_one in seen}) == len(seen)
    assert find_outliers(seen) == []
    assert find_identical_files(seen, lambda slide_id: drawn_folder / "train_images" / f"{slide_id}.tiff") == []


def test_inspect_slide_measures_levels_tissue_and_cancer(case: Case) -> None:
    seen, _ = inspect_slide(case.row)
    assert seen.level_dimensions[1:] == ((512, 256), (128, 64))
    assert list(seen.downsamples) == [1, 4, 16]
    assert seen.mpp == pytest.approx((MPP, MPP))
    assert (seen.mpp_source, seen.reader, seen.vendor) == ("openslide", "fast", "generic-tiff")
    assert seen.file_bytes == case.image.stat().st_size
    assert (seen.mask_dimensions, seen.mask_level) == ((2048, 1024), 2)
    assert seen.tissue_fraction is not None
    assert seen.tissue_fraction == pytest.approx((case.codes > 0).mean(), rel=0.05)
    assert seen.cancer_mm2 == pytest.approx((case.codes > 2).sum() * MPP**2 / 1e6, rel=0.05)
    assert seen.cancer_fraction == pytest.approx((case.codes > 2).sum() / (case.codes > 0).sum(), rel=0.05)
    deep, _ = inspect_slide(case.row, deep=True)
    assert deep.mask_codes == {str(code): int((case.codes == code).sum()) for code in np.unique(case.codes).tolist()}


def test_inspect_slide_missing_slide(case: Case) -> None:
    case.image.unlink()
    assert list(case.find()) == ["missing_slide"]
    assert str(case.image) in case.find()["missing_slide"]


@pytest.mark.parametrize("content", [b"", b"no slide", b"II*\0" + bytes(100)])
def test_inspect_slide_unopenable(case: Case, content: bytes) -> None:
    case.image.write_bytes(content)
    assert list(case.find()) == ["unopenable"]
    assert str(case.image) in case.find()["unopenable"]


@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_inspect_slide_truncated_file_is_unreadable_region(case: Case, kept: float) -> None:
    content = case.image.read_bytes()
    case.image.write_bytes(content[: round(kept * len(content))])
    found = case.find()
    assert list(found) == ["unreadable_region"]
    assert "cut short" in found["unreadable_region"]


@pytest.mark.parametrize("reader", ["auto", "openslide"])
@pytest.mark.parametrize("compression", ["jpeg", "adobe_deflate"])
def test_inspect_slide_unwritten_stretch_is_unreadable_region(case: Case, compression: str, reader: ReaderName) -> None:
    case.draw(case.pixels, compression=compression)
    assert case.find() == {}
    _zero(case.image, 0.3, 0.1)
    assert list(case.find(options=SlideOptions(reader))) == ["unreadable_region"]


def test_inspect_slide_damaged_jpeg_tile_is_unreadable_region(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundness, "SMALL_PX", 0)
    monkeypatch.setattr(soundness, "SAMPLES", 1)
    tiff = TiffPyramid(case.image)
    level = tiff.levels[0]
    tiff.close()
    with case.image.open("r+b") as file:  # the end of one tile and the beginning of the next
        file.seek(int(level.offsets[10]) - 40)
        file.write(bytes(80))
    found = case.find()
    assert found["unreadable_region"].startswith("2 of 32 tiles of level 0 do not begin or end as JPEG does")


def test_soundness_gap_of_two_runs_is_always_sampled(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundness, "SMALL_PX", 0)
    rng = np.random.default_rng(0)
    case.draw(rng.integers(0, 256, case.pixels.shape, dtype=np.uint8), (1,), tile=64, compression="adobe_deflate")
    sound = case.image.read_bytes()
    length = 2.2 / soundness.SAMPLES
    for start in rng.uniform(0.05, 0.95 - length, 12):
        case.image.write_bytes(sound)
        _zero(case.image, start, length)
        assert "unreadable_region" in case.find()


def test_soundness_gap_of_one_tile_needs_deep_inspection(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundness, "SMALL_PX", 0)
    monkeypatch.setattr(soundness, "SAMPLES", 1)
    case.draw(case.pixels, compression="adobe_deflate")
    tiff = TiffPyramid(case.image)
    level, seen = tiff.levels[0], 0
    tiff.close()
    sound = case.image.read_bytes()
    corners = [index for index in range(32) if level.byte_counts[index] < 60_000][:8]  # glass: not in the overview
    for index in corners:
        case.image.write_bytes(sound)
        with case.image.open("r+b") as file:
            file.seek(int(level.offsets[index]))
            file.write(bytes(int(level.byte_counts[index])))
        seen += "unreadable_region" in case.find()
        assert list(case.find(deep=True)) == ["unreadable_region"]
    assert seen < len(corners)


def test_inspect_slide_missing_mask(case: Case) -> None:
    case.mask.unlink()
    assert list(case.find()) == ["missing_mask"]


def _garbage(case: Case) -> None:
    case.mask.write_bytes(b"no mask")


def _cut(case: Case) -> None:
    content = case.mask.read_bytes()
    case.mask.write_bytes(content[: len(content) // 2])


def _jpeg(case: Case) -> None:
    case.label(case.codes, compression="jpeg")


def _damage(case: Case) -> None:
    tiff = TiffPyramid(case.mask, red_only=True)
    level = tiff.levels[2]
    tiff.close()
    with case.mask.open("r+b") as file:
        file.seek(int(level.offsets[0]))
        file.write(bytes(int(level.byte_counts[0])))


@pytest.mark.parametrize("spoil", [_garbage, _cut, _jpeg, _damage])
def test_inspect_slide_unopenable_mask(case: Case, spoil: Callable[[Case], None]) -> None:
    spoil(case)
    assert list(case.find()) == ["unopenable_mask"]


def test_inspect_slide_unknown_mask_code(case: Case) -> None:
    codes = case.codes.copy()
    codes[:64, :64] = 7
    case.label(codes)
    found = case.find()
    assert list(found) == ["unknown_mask_code"]
    assert found["unknown_mask_code"] == "7 (16 px) at level 2; radboud has [0, 1, 2, 3, 4, 5]"


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        (lambda codes: codes[:, :1700], "it was cut or padded"),
        (lambda codes: np.where(codes > 0, 0, 4).astype(np.uint8), "are on tissue"),
    ],
    ids=["another shape", "labels on glass"],
)
def test_inspect_slide_mask_geometry(case: Case, codes: Callable[[Picture], Picture], said: str) -> None:
    case.label(codes(case.codes))
    found = case.find()
    assert list(found) == ["mask_geometry"]
    assert said in found["mask_geometry"]


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, lambda codes: codes[::-1, ::-1]])
def test_inspect_slide_turned_mask(case: Case, turn: Callable[[Picture], Picture]) -> None:
    case.label(np.ascontiguousarray(turn(case.codes)))
    found = case.find()
    assert "turned_mask" in found
    assert "of the labelled px are on tissue, but" in found["turned_mask"]


@pytest.mark.parametrize("shrink", ["average", "nearest", "largest"])
@pytest.mark.parametrize("downsamples", [(1, 4, 16), (1, 2, 4), (1, 2.5, 7)])
def test_inspect_slide_averaged_mask(case: Case, shrink: str, downsamples: tuple[float, ...]) -> None:
    levels = [case.codes]
    for downsample in downsamples[1:]:
        size = level_size((WIDTH, HEIGHT), downsample)
        steps = WIDTH / size[0], HEIGHT / size[1]
        if shrink == "average":
            levels.append(np.asarray(cv2.resize(case.codes, size, interpolation=cv2.INTER_AREA), np.uint8))
        elif shrink == "nearest":
            levels.append(sample_centers(case.codes, size, steps))
        else:
            largest = cv2.dilate(case.codes, np.ones((int(steps[1]), int(steps[0])), np.uint8))
            levels.append(sample_centers(np.asarray(largest, np.uint8), size, steps))
    write_levels(case.mask, levels, 256)
    found = case.find()
    assert ("averaged_mask" in found) == (shrink == "average")
    if found:
        assert " px) at places where level 0 has no such code" in found["averaged_mask"]


def test_inspect_slide_empty_mask_graded(case: Case) -> None:
    case.label(np.zeros_like(case.codes))
    assert list(case.find()) == ["empty_mask_graded"]
    case.set_grade(0)
    assert case.find() == {}


def test_inspect_slide_benign_mask_cancer_grade(case: Case) -> None:
    case.label(np.minimum(case.codes, 2))
    assert list(case.find()) == ["benign_mask_cancer_grade"]


def test_inspect_slide_cancer_lost_in_small_levels_counts(case: Case) -> None:
    codes = np.minimum(case.codes, 2)
    row = int(np.flatnonzero(codes[:, 1000] > 0)[0]) | 1
    codes[row, 1000:1100] = 4  # levels take the px at an even place
    case.label(codes)
    assert not (tifffile.imread(case.mask, level=1) > 2).any()
    assert case.find() == {}
    assert inspect_slide(case.row)[0].mask_level == 0


def test_inspect_slide_cancer_mask_benign_grade(case: Case) -> None:
    case.set_grade(0)
    found = case.find()
    assert list(found) == ["cancer_mask_benign_grade"]
    assert "mm²" in found["cancer_mask_benign_grade"]


@pytest.mark.parametrize("tile", [256, None])
def test_inspect_slide_mask_of_one_level_is_counted(case: Case, tile: int | None) -> None:
    write_levels(case.mask, [case.codes], tile)
    assert case.find() == {}
    seen, _ = inspect_slide(case.row)
    assert (seen.mask_level, sum(seen.mask_codes.values())) == (0, case.codes.size)


def test_inspect_slide_unopenable_slide_still_inspects_mask(case: Case) -> None:
    case.image.unlink()
    case.label(np.zeros_like(case.codes))
    assert list(case.find()) == ["missing_slide", "empty_mask_graded"]


def test_inspect_slide_unknown_provider_codes_are_only_counted(case: Case) -> None:
    case.row = dataclasses.replace(case.row, provider="elsewhere")
    assert case.find() == {}
    assert set(inspect_slide(case.row)[0].mask_codes) >= {"0", "1", "2"}


def test_inspect_slide_mpp_missing(case: Case) -> None:
    case.draw(case.pixels, mpp=None)
    assert list(case.find()) == ["mpp_missing"]
    assert "0.5 x 0.5" in case.find(options=SlideOptions(mpp_override=0.5))["mpp_missing"]


def test_inspect_slide_mpp_nonsense(case: Case) -> None:
    case.draw(case.pixels, mpp=352.8)
    assert list(case.find()) == ["mpp_nonsense"]
    assert "352.8 x 352.8" in case.find()["mpp_nonsense"]
    seen, _ = inspect_slide(case.row, SlideOptions(mpp_override=0.5))
    assert (seen.mpp, seen.mpp_source) == ((0.5, 0.5), "override")


def _slide(slide_id: str, **seen: Any) -> Inspection:
    return Inspection(slide_id, **({"provider": "radboud"} | seen))


def test_find_outliers_mpp_unlike_provider() -> None:
    usual = [_slide(f"a{number}", mpp=(0.48 + number / 1e4, 0.48)) for number in range(20)]
    scanners = [_slide(f"b{number}", mpp=(0.5, 0.5)) for number in range(4)]
    others = [_slide("k", provider="karolinska", mpp=(0.24, 0.24)), _slide("o", mpp=(0.3, 0.3), mpp_source="override")]
    odd = _slide("odd", mpp=(0.24, 0.24))
    [found] = find_outliers([odd, *usual, *scanners, *others])
    assert (found.slide_id, found.finding) == ("odd", "mpp_unlike_provider")
    assert found.value == "µm/px is 0.24 / 0.24; the others of radboud have 0.48 / 0.48 or 0.5 / 0.5"


def test_find_outliers_all_different_has_no_outlier() -> None:
    assert find_outliers([_slide(f"a{number}", mpp=(0.2 + number / 10,) * 2) for number in range(10)]) == []


def test_find_outliers_unusual_levels_of_provider() -> None:
    usual = [_slide(f"a{number}", downsamples=(1.0, 4.0004, 16.0084)) for number in range(5)]
    [found] = find_outliers([*usual, _slide("odd", downsamples=(1.0, 2.0, 4.0))])
    assert (found.slide_id, found.finding) == ("odd", "unusual_levels")
    assert found.value == "its levels are shrunk by 1 / 2 / 4; the others of radboud have 1 / 4 / 16"


def test_inspect_slide_unusual_levels(case: Case) -> None:
    level1, level2 = (cv2.resize(case.pixels, size, interpolation=cv2.INTER_AREA) for size in ((512, 256), (128, 40)))
    resolution: dict[str, Any] = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
    write_levels(
        case.image, [case.pixels, np.asarray(level1, np.uint8), np.asarray(level2, np.uint8)], 256, **resolution
    )
    found = case.find(options=SlideOptions("openslide"))
    assert list(found) == ["unusual_levels"]
    assert found["unusual_levels"] == "level 2 of 128x40 px: not a uniform reduction of (2048, 1024)"


def test_inspect_slide_unusual_levels_large_slide_of_one_level(case: Case) -> None:
    case.draw(np.tile(case.pixels, (2, 2, 1)), (1,))
    case.label(np.tile(case.codes, (2, 2)))
    assert case.find() == {"unusual_levels": "4096 x 2048 px and no smaller level"}


def test_inspect_slide_no_tissue(benign: Case) -> None:
    benign.draw(np.full_like(benign.pixels, 245))
    benign.mask.unlink()
    assert list(benign.find()) == ["no_tissue", "missing_mask"]


@pytest.mark.parametrize("pen", PENS)
def test_inspect_slide_pen_marks(case: Case, pen: str) -> None:
    pixels = case.pixels.copy()
    x = np.arange(100, WIDTH - 100, 20)
    line = np.stack([x, 500 + 300 * np.sin(x / 250)], axis=1).astype(np.int32)
    cv2.polylines(pixels, [line], False, PENS[pen], 240)
    case.draw(cv2.GaussianBlur(pixels, (0, 0), 1.0).astype(np.uint8))
    found = case.find()
    assert "pen_marks" in found
    seen, _ = inspect_slide(case.row)
    drawn_folder = cv2.polylines(np.zeros_like(pixels[..., 0]), [line], False, 1, 240).mean()
    assert seen.pen_fraction is not None
    assert 0.8 * drawn_folder < seen.pen_fraction < 1.4 * drawn_folder  # its soft border counts too


def test_inspect_slide_black_padding_is_no_pen(case: Case) -> None:
    pixels = case.pixels.copy()
    pixels[:150] = pixels[:, -300:] = 0  # no rectangle
    case.draw(pixels)
    assert "pen_marks" not in case.find()


def test_inspect_slide_blur(case: Case) -> None:
    case.draw(cv2.GaussianBlur(case.pixels, (0, 0), 3 / MPP).astype(np.uint8))
    found = case.find()
    assert list(found) == ["blur"]
    case.draw(cv2.GaussianBlur(case.pixels, (0, 0), 0.5 / MPP).astype(np.uint8))
    assert case.find() == {}


def test_inspect_slide_partial_blur_is_measured_without_finding(case: Case) -> None:
    pixels = case.pixels.copy()
    pixels[:, :700] = cv2.GaussianBlur(pixels[:, :700], (0, 0), 3 / MPP)
    case.draw(pixels)
    assert case.find() == {}
    seen, _ = inspect_slide(case.row)
    assert seen.blurred is not None
    assert 0 < seen.blurred < 0.5


def test_find_identical_files_exact_duplicate(case: Case) -> None:
    first, second = case.row, next(row for row in case.rows if row is not case.row)
    copy = locate_image(case.root, second.slide_id)
    seen = [inspect_slide(first)[0]]
    content = bytearray(case.image.read_bytes())
    copy.write_bytes(content)
    seen.append(inspect_slide(second)[0])
    groups = find_identical_files(seen, lambda slide_id: case.root / "train_images" / f"{slide_id}.tiff")
    assert groups == [sorted([first.slide_id, second.slide_id])]
    assert {found.slide_id for found in report_groups("exact_duplicate", groups)} == set(groups[0])
    # one byte where the quick digest does not look
    content[4200] ^= 1
    copy.write_bytes(content)
    assert digest_quickly(copy) == seen[0].digest
    assert find_identical_files(seen, lambda slide_id: case.root / "train_images" / f"{slide_id}.tiff") == []


@pytest.mark.parametrize("slide_id", ["../secret", ""])
def test_inspect_slide_id_with_path_opens_nothing(case: Case, slide_id: str) -> None:
    (case.root / "train.csv").write_text(f"image_id,data_provider,isup_grade\n{slide_id},radboud,1\n")
    (case.row,) = read_rows(case.root)
    shutil.copy(case.image, case.root / "secret.tiff")
    inspection, thumbnail = inspect_slide(case.row)
    assert (inspection, thumbnail) == (Inspection(slide_id, "radboud"), None)


def test_inspection_unknown_key_raises() -> None:
    with pytest.raises(ValidationError, match="colour"):
        ADAPTER.validate_python(asdict(Inspection("a", "radboud")) | {"colour": 1})


def test_inspect_slide_interrupt_is_raised(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("panda.audit.slide_inspector.survey", interrupt)
    with pytest.raises(KeyboardInterrupt):
        case.find()


def _annotate(case: Case, *classes: str) -> Path:
    """Give the slide annotations of its cancer, one for each class."""
    ys, xs = np.nonzero(np.isin(case.codes, (3, 4, 5)))
    edges = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    corners = box(*map(int, edges))
    path = write_json(case.mask.with_suffix(".geojson"), [feature(name, corners) for name in classes])
    case.row = dataclasses.replace(case.row, mask_path=path, provider="annotations")
    return path


def test_inspect_slide_annotations_are_counted_and_compared(case: Case) -> None:
    _annotate(case, "G4")
    inspection, _ = inspect_slide(case.row)
    assert "faulty_annotations" not in {found.finding for found in inspection.findings}
    assert inspection.mask_codes["4"] > 0
    assert inspection.cancer_mm2 is not None
    ys, xs = np.nonzero(np.isin(case.codes, (3, 4, 5)))
    area = (xs.max() + 1 - xs.min()) * (ys.max() + 1 - ys.min())
    assert inspection.cancer_mm2 == pytest.approx(area * MPP**2 / 1e6, rel=0.05)
    case.set_grade(0)
    assert "cancer_mask_benign_grade" in case.find()
    _annotate(case, "benign")
    case.set_grade(2)
    value = case.find()["benign_mask_cancer_grade"]
    assert "has annotations of benign, cancer of annotations is cancer, Gleason pattern 3" in value


def test_inspect_slide_faulty_and_repaired_annotations(case: Case) -> None:
    path = _annotate(case, "Cancre")
    assert "class 'Cancre' of 1 annotation" in case.find()["faulty_annotations"]
    bow = feature("Tumor", [(900, 400), (1100, 600), (1100, 400), (900, 600)])
    write_json(path, [bow, feature(None, box(0, 0, 9, 9))])
    value = case.find()["repaired_annotations"]
    assert "Self-intersection" in value
    assert "ignored: 1 without a class" in value


def test_inspect_slide_empty_annotations_may_mean_benign(benign: Case) -> None:
    path = write_json(benign.mask.with_suffix(".geojson"), [])
    benign.row = dataclasses.replace(benign.row, mask_path=path, provider="annotations")
    assert "data.empty_means_benign=true" in benign.find()["faulty_annotations"]
    assert not benign.find(empty_means_benign=True)
