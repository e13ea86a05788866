"""Bad slides and masks: each gives patches, or one failure with its class, the file's name and a remedy.

Each case spoils the first of two slides; the second one is cut in every case.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from panda.data.extraction import extract_slide, extract_store
from panda.data.manifest import SlideRecord, read_manifest
from panda.data.patches import load_slide
from panda.data.settings import PatchSettings
from panda.data.store import StoreResult
from panda.errors import MaskError, SlideError
from panda.wsi.slide import Slide
from tests.conftest import SHARED
from tests.integration.entry_points import run_entry_point, table
from tests.panda_folder import (
    CANCER,
    HEADER,
    HEIGHT,
    WIDTH,
    codes,
    entry_files,
    find_kept_slides,
    make_folder,
    picture,
    slide_name,
)
from tests.pyramids import write_pyramid

LEVEL = PatchSettings(level=1, patch_size=64)
FINEST = PatchSettings(level=0, patch_size=64)
BY_MPP = PatchSettings(level=None, mpp=4.0, patch_size=64)

Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "small"
    make_folder(root, 2)
    return root


@pytest.fixture
def folder(sound_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """Two slides, of which the first may be spoilt."""
    copy = tmp_path / "small"
    shutil.copytree(sound_folder, copy)
    yield copy
    assert not list((tmp_path / "patches").glob("*/.*.partial.*"))


def _extract(folder: Path, settings: PatchSettings = LEVEL) -> StoreResult:
    return extract_store(read_manifest(folder), settings, folder.parent / "patches", folder, progress=False)


def _write(image: NDArray[Any], **options: Any) -> Spoil:
    """Write an image of one level in place of a file."""
    given = {"tile": (256, 256), "photometric": "rgb", "compression": "adobe_deflate", "metadata": None} | options
    return lambda path: tifffile.imwrite(path, image, **given)


def _write_levels(**options: Any) -> Spoil:
    """Write the slide again, as levels of other options."""

    def spoil(path: Path) -> None:
        with tifffile.TiffWriter(path) as tiff:
            for level, downsample in enumerate((1, 2)):
                part = np.ascontiguousarray(picture(0)[::downsample, ::downsample])
                tiff.write(part, photometric="rgb", subfiletype=int(level > 0), metadata=None, **options)

    return spoil


def _cut(share: float) -> Spoil:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def _damage_tiles(path: Path) -> None:
    """Spoil the pixels of all levels, leaving the tables, so that it opens and fails on read."""
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        for page in tif.pages:
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                content[offset + count // 2 : offset + count] = bytes(count - count // 2)
    path.write_bytes(content)


def _set_width(value: int) -> Spoil:
    def spoil(path: Path) -> None:
        content = bytearray(path.read_bytes())
        with tifffile.TiffFile(path) as tif:
            tag = tif.pages.first.tags["ImageWidth"]
        content[tag.valueoffset : tag.valueoffset + tag.valuebytecount] = value.to_bytes(tag.valuebytecount, "little")
        path.write_bytes(content)

    return spoil


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_loop(path: Path) -> None:
    path.unlink()
    path.with_suffix(".other").symlink_to(path)
    path.symlink_to(path.with_suffix(".other"))


def _replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _redraw(image: NDArray[np.uint8], **options: Any) -> Spoil:
    """Write an image of two levels in place of a file."""
    return lambda path: write_pyramid(path, image, (1, 2), **({"mpp": 2.0} | options))


RGBA = np.dstack([picture(0), np.full((HEIGHT, WIDTH), 255, np.uint8)])
CMYK = np.dstack([255 - picture(0), np.zeros((HEIGHT, WIDTH), np.uint8)])
GREY = picture(0)[..., 1]

REFUSED: dict[str, tuple[Spoil, PatchSettings, str, str]] = {
    "no slide at all": (lambda path: path.write_bytes(b"no slide"), LEVEL, "slide", "OpenSlide cannot open it.*whole"),
    "empty file": (lambda path: path.write_bytes(b""), LEVEL, "slide", "cannot open it.*is it whole"),
    "missing": (lambda path: path.unlink(), LEVEL, "slide", r"cannot be found.*check data\.root"),
    "folder": (_replace_by_folder, LEVEL, "slide", "is a folder, not a slide; name the file"),
    "symlink loop": (_replace_by_loop, LEVEL, "slide", r"cannot be found.*symbolic links.*check data\.root"),
    "pipe": (_replace_by_pipe, LEVEL, "slide", "is a pipe or a device, not a slide; give a file"),
    "tiles damaged": (_damage_tiles, LEVEL, "tissue", "cannot read .*fetch it again"),
    **{f"cut at {share}": (_cut(share), LEVEL, "slide", "cut short.*fetch it again") for share in (0.3, 0.7, 0.97)},
    "tables cut": (_cut(0.001), LEVEL, "slide", "fetch it again"),
    "one level, another asked for": (_write(picture(0)), LEVEL, "slide", r"has no level 1.*data\.level"),
    "strips of CMYK": (
        _write(CMYK, tile=None, photometric="separated"), FINEST, "slide", "4 channels, neither RGB nor.*vips col",
    ),
    "grey": (_write(GREY, photometric="minisblack"), FINEST, "tissue", "no tissue found.*leave the slide out"),
    "strips of grey": (_write(GREY, tile=None, photometric="minisblack"), FINEST, "tissue", "no tissue found"),
    "lzma": (_write(picture(0), compression="lzma"), FINEST, "slide", "compression is 34925.*bfconvert"),
    "no width": (_set_width(0), LEVEL, "slide", "it is 0 x 512 px.*fetch it again"),
    "absurd width": (_set_width(2**16 - 1), LEVEL, "slide", "it lists 6 of 512 tiles.*fetch it again"),
    "no tissue": (_redraw(np.full((HEIGHT, WIDTH, 3), 244, np.uint8)), LEVEL, "tissue", "no tissue.*leave the slide"),
    "no resolution": (_redraw(picture(0), mpp=None), BY_MPP, "slide", r"give data\.mpp_override.*or use data\.level"),
    "nonsense resolution": (
        _redraw(picture(0), mpp=352.8), BY_MPP, "slide", r"352\.8 x 352\.8.*outside 0\.05\.\.20.*data\.mpp_override",
    ),
}  # fmt: skip
"""Case: what makes it, settings, the stage it fails in, and what the message says."""

ACCEPTED: dict[str, tuple[Spoil, PatchSettings]] = {
    "one level": (_write(picture(0)), FINEST),
    "strips": (_write_levels(rowsperstrip=64, compression="adobe_deflate"), LEVEL),
    "strips of nothing": (_write_levels(), LEVEL),
    "16 bits": (_write(picture(0).astype(np.uint16) * 257), FINEST),
    "strips of 16 bits": (_write(picture(0).astype(np.uint16) * 257, tile=None), FINEST),
    "RGBA": (_write(RGBA, extrasamples=["unassalpha"]), FINEST),
    "strips of RGBA": (_write(RGBA, tile=None, extrasamples=["unassalpha"]), FINEST),
    "CMYK": (_write(CMYK, photometric="separated"), FINEST),
    "no resolution": (_redraw(picture(0), mpp=None), LEVEL),
    "nonsense resolution": (_redraw(picture(0), mpp=352.8), LEVEL),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", REFUSED)
def test_extract_store_bad_slide_is_one_failure(folder: Path, case: str) -> None:
    spoil, settings, stage, said = REFUSED[case]
    spoil(read_manifest(folder)[0].image_path)
    result = _extract(folder, settings)
    assert [*result.slides] == [slide_name(1)]
    (failure,) = result.failures
    assert (failure.slide_id, failure.stage, failure.error) == (slide_name(0), stage, "SlideError"), failure.message
    assert re.search(rf"{slide_name(0)}\.tiff.*{said}", failure.message), failure.message
    assert "\n" not in failure.message


@pytest.mark.parametrize("case", ACCEPTED)
def test_extract_store_odd_slide_gives_same_patches(folder: Path, case: str) -> None:
    spoil, settings = ACCEPTED[case]
    usual = _extract(folder, settings).slides[slide_name(0)]
    spoil(read_manifest(folder)[0].image_path)
    (store,) = (folder.parent / "patches").iterdir()
    before = entry_files(store)
    result = _extract(folder, settings)
    assert result.failures == []
    cut = result.slides[slide_name(0)]
    assert slide_name(0) not in find_kept_slides(result.store, before)
    assert cut.xy.tolist() == usual.xy.tolist()
    assert cut.tumor_fraction.sum() == pytest.approx(usual.tumor_fraction.sum())


@pytest.mark.parametrize("case", ["16 bits", "strips of 16 bits", "RGBA", "strips of RGBA", "CMYK"])
def test_slide_odd_colors_are_converted(folder: Path, case: str) -> None:
    path = read_manifest(folder)[0].image_path
    ACCEPTED[case][0](path)
    difference = Slide.open(path).read_region((0, 0), 0, (WIDTH, HEIGHT)).astype(int) - picture(0)
    assert np.abs(difference).max() <= 2


MASK_REFUSED: dict[str, tuple[Spoil, str, str]] = {
    "missing": (lambda path: path.unlink(), "mask", r"no mask; put the mask at .*data\.exclude=\[missing_mask\]"),
    "folder": (_replace_by_folder, "mask", "is a folder, not a mask"),
    "pipe": (_replace_by_pipe, "mask", "there is no such mask"),
    "symlink loop": (_replace_by_loop, "mask", "cannot be found.*symbolic links"),
    "empty file": (lambda path: path.write_bytes(b""), "mask", "the mask cannot be opened"),
    "cut": (_cut(0.6), "mask", "cannot be opened: it is cut short"),
    "cut early": (_cut(0.01), "mask", "cannot be opened"),
    "tiles damaged": (_damage_tiles, "(mask|read)", "does not decode"),
    "16 bits": (
        _write(codes("radboud", True).astype(np.uint16) * 100, photometric="minisblack"), "mask",
        "its values are 0 to 400, label codes are 0 to 255",
    ),
    "JPEG": (
        _write(codes("radboud", True), photometric="minisblack", compression="jpeg"), "mask",
        "JPEG, which alters label codes; store the mask without loss",
    ),
    "unknown codes": (
        _redraw(codes("radboud", True) + np.uint8(3)), "read",
        r"label codes 7 \(\d+ px\) are not among radboud's \[0, 1, 2, 3, 4, 5\].*provider right.*stored without loss",
    ),
    "other geometry": (_redraw(codes("radboud", True)[:, :500]), "mask", "cut or padded, or is the mask of another"),
}  # fmt: skip
"""Case: what makes it, the stage, and what the message says."""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", MASK_REFUSED)
def test_extract_store_bad_mask_is_one_failure(folder: Path, case: str) -> None:
    spoil, stage, said = MASK_REFUSED[case]
    mask = read_manifest(folder)[0].mask_path
    assert mask is not None
    spoil(mask)
    result = _extract(folder)
    assert [*result.slides] == [slide_name(1)]
    (failure,) = result.failures
    assert (failure.slide_id, failure.error) == (slide_name(0), "MaskError"), failure
    assert re.search(rf"{slide_name(0)}.*{said}", failure.message), failure.message
    assert re.fullmatch(stage, failure.stage)


@pytest.mark.parametrize("case", ["grey", "palette", "strips", "half the size"])
def test_extract_store_odd_mask_gives_same_cancer(folder: Path, case: str) -> None:
    labels = codes("radboud", True)
    palette = np.random.default_rng(0).integers(0, 2**16, (3, 256), dtype=np.uint16)
    spoil = {
        "grey": _write(labels, photometric="minisblack"),
        "palette": _write(labels, photometric="palette", colormap=palette),
        "strips": _write(labels, photometric="minisblack", tile=None, rowsperstrip=32),
        "half the size": _write(np.ascontiguousarray(labels[::2, ::2]), photometric="minisblack"),
    }[case]
    record = read_manifest(folder)[0]
    assert record.mask_path is not None
    spoil(record.mask_path)
    result = _extract(folder)
    assert result.failures == []
    height, width = (part.stop - part.start for part in CANCER)
    assert result.slides[slide_name(0)].tumor_fraction.sum() * 64 * 64 * 4 == pytest.approx(height * width, rel=1e-3)


@pytest.mark.parametrize("name", ["a slide", "прóба 🐼", "a'b\"c%20[1]*?", "-x"])
def test_extract_store_any_characters_in_slide_id(sound_folder: Path, tmp_path: Path, name: str) -> None:
    root = tmp_path / "a folder 🐼"
    for part, suffix in (("train_images", ""), ("train_label_masks", "_mask")):
        (root / part).mkdir(parents=True)
        shutil.copy(sound_folder / part / f"{slide_name(0)}{suffix}.tiff", root / part / f"{name}{suffix}.tiff")
    quoted = name.replace('"', '""')
    (root / "train.csv").write_text(f'{HEADER}\n"{quoted}",radboud,4,4+4\n', encoding="utf-8")
    for settings in (LEVEL, LEVEL.model_copy(update={"reader": "openslide"})):
        result = extract_store(read_manifest(root), settings, tmp_path / "patches", root, progress=False)
        assert result.failures == []
        assert len(result.slides[name]) > 5


@pytest.mark.parametrize("part", ["image_path", "mask_path"])
def test_extract_slide_file_replaced_during_read_raises(folder: Path, part: str) -> None:
    """Patches of one file must never have the identity of another."""
    record = read_manifest(folder)[0]
    other = folder / "other"
    path: Path = getattr(record, part)
    shutil.copy(path, other)
    os.utime(other, ns=(1, 1))

    def swap(stage: str) -> None:
        if stage == "grid" and other.exists():
            other.rename(path)

    store = folder.parent / "patches" / "store"
    with pytest.raises((SlideError, MaskError), match=rf"{path.name}: changed while it was read; run again"):
        extract_slide(record, LEVEL, store, swap)
    assert not (store / record.slide_id).exists()
    assert load_slide(record, LEVEL, store) is None
    assert len(extract_slide(record, LEVEL, store)) > 5


def test_extract_slide_file_truncated_during_read_raises(folder: Path) -> None:
    record = read_manifest(folder)[0]

    def shrink(stage: str) -> None:
        if stage == "grid":
            os.truncate(record.image_path, record.image_path.stat().st_size // 4)

    with pytest.raises(SlideError, match=r"\.tiff: (cannot read|changed)"):
        extract_slide(record, LEVEL, folder.parent / "patches" / "store", shrink)


_UNPRIVILEGED = """
import os, pathlib, sys
from panda.data.manifest import read_manifest
from panda.data.settings import PatchSettings
from panda.data.extraction import extract_store

root, uid = pathlib.Path(sys.argv[1]), int(sys.argv[2])
records, settings = read_manifest(root), PatchSettings(level=1, patch_size=64)
extract_store(records, settings, root.parent / "warm", root, progress=False)  # all that is imported late
if uid:
    os.setgid(uid)
    os.setuid(uid)
for failure in extract_store(records, settings, root.parent / "patches", root, progress=False).failures:
    print(failure.slide_id, failure.error, failure.message)
"""


@pytest.mark.parametrize("what", ["slide", "mask", "folder"])
def test_extract_store_unreadable_file_is_one_failure(sound_folder: Path, what: str) -> None:
    """Permissions do not bind root, so another user tries."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        root = home / "small"
        shutil.copytree(sound_folder, root)
        (home / "patches").mkdir()
        records = read_manifest(root)
        forbidden = {"slide": records[0].image_path, "mask": records[0].mask_path, "folder": root / "train_images"}[
            what
        ]
        assert forbidden is not None
        home.chmod(0o755)
        (home / "patches").chmod(0o777)
        forbidden.chmod(0)
        uid = 0 if os.getuid() else 65534
        done = subprocess.run(
            [sys.executable, "-c", _UNPRIVILEGED, str(root), str(uid)], capture_output=True, text=True, check=True
        )
        forbidden.chmod(0o755)
    failures = done.stdout.splitlines()
    assert len(failures) == (2 if what == "folder" else 1)
    error = "MaskError" if what == "mask" else "SlideError"
    assert failures[0].startswith(f"{slide_name(0)} {error} {root}")
    assert "Permission denied" in failures[0]


def test_extract_slide_real_slide_nonsense_mpp_raises(tmp_path: Path) -> None:
    slide = SHARED / "wsi" / "nonsense_mpp.tiff"
    if not slide.is_file():
        pytest.skip(f"the real slides are not at {SHARED}")
    with tifffile.TiffFile(slide) as tif:
        height, width = tif.pages.first.shape[:2]
    mask = write_pyramid(tmp_path / "mask.tiff", np.zeros((height, width), np.uint8), (1,))
    record = SlideRecord("nonsense_mpp", "radboud", 0, "0+0", slide, mask, "nonsense_mpp")
    settings = FINEST.model_copy(update={"min_tissue": 0.0})
    with pytest.raises(SlideError, match="no tissue found"):  # it shows three coloured squares
        extract_slide(record, settings, tmp_path / "store")
    with pytest.raises(SlideError, match=r"nonsense_mpp\.tiff.*outside 0\.05\.\.20.*data\.mpp_override"):
        extract_slide(record, settings.model_copy(update={"level": None, "mpp": 1.0}), tmp_path / "store")


@pytest.mark.slow
def test_entry_points_bad_slides_continue_and_exit_nonzero(tmp_path: Path) -> None:
    root = tmp_path / "small"
    records = make_folder(root, 12)
    bad: dict[str, Spoil] = {
        slide_name(number): REFUSED[case][0] for number, case in enumerate(["pipe", "tiles damaged", "folder", "grey"])
    }
    for record in records[: len(bad)]:
        bad[record.slide_id](record.image_path)
    small = (
        "data=panda", f"data.root={root}", "data.level=2", "data.patch_size=64", "data.batch_size=8",
        "data.num_workers=0", "model.encoder_name=resnet18", "model.decoder_channels=[16,16,8,8,8]", "trainer=cpu",
        "trainer.max_epochs=1", "task.panels=1", "task.overlap=0", "logger=csv", "name=first",
    )  # fmt: skip
    done = run_entry_point("train", tmp_path, *small)
    run = tmp_path / "runs" / "segmentation" / "first"
    assert done.returncode == 1, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert sorted(row["slide_id"] for row in table(run / "failures.csv")) == sorted(bad)
    assert (run / "summary.json").is_file()
    images = tmp_path / "mixed"
    images.mkdir()
    for record in records[: len(bad) + 1]:
        record.image_path.rename(images / record.image_path.name)
    done = run_entry_point(
        "infer", tmp_path, f"checkpoint={run}/checkpoints/best.ckpt", f"slides={images}", "output=out"
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert sorted(row["slide_id"] for row in table(tmp_path / "out/failures.csv")) == sorted(bad)
    assert [row["slide_id"] for row in table(tmp_path / "out/quantification.csv")] == [slide_name(len(bad))]
