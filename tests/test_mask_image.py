"""Masks in every coding give the codes that they store, from the file to the patch and to the score of a canvas."""

from __future__ import annotations

import logging
import pickle
import shlex
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panda.data.extraction import extract_store
from panda.data.manifest import find_one_tumor_example, read_manifest
from panda.data.patch_manifests import write_patch_manifests
from panda.data.patchset import PatchSet
from panda.data.settings import PatchSettings, StoreKind
from panda.errors import MaskError
from panda.inference.evaluate import score_canvas
from panda.tasks.metrics import score_threshold
from panda.wsi.classes import BINARY
from panda.wsi.geometry import Resolution
from panda.wsi.label_maps import find_label_map, get_label_maps
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide
from panda.wsi.tissue import find_tissue
from tests.panda_folder import CANCER, HEIGHT, WIDTH, codes, picture
from tests.pyramids import write_levels, write_pyramid

Codes = NDArray[np.uint8]


def write_tiff(path: Path, values: NDArray[Any], **how: Any) -> Path:
    options: dict[str, Any] = {"compression": "adobe_deflate", "metadata": None, **how}
    tifffile.imwrite(path, values, **options)
    return path


def write_png(path: Path, values: NDArray[Any], palette: bool = False) -> Path:
    image = PIL.Image.fromarray(values)
    if palette:
        image.putpalette(list(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes()))
        assert image.mode == "P"
    image.save(path)
    return path


def in_channel(values: Codes, channel: int, others: Codes | None = None) -> Codes:
    """Return RGB with codes in one channel; the others hold 0 or what is given."""
    out = np.zeros((*values.shape, 3), np.uint8) if others is None else np.repeat(others[..., None], 3, axis=2)
    out[..., channel] = values
    return out


def write_grey_png(path: Path, values: Codes, bits: int) -> Path:
    """Write a grey PNG of 2 or 4 bits, which Pillow cannot write."""
    per_byte = 8 // bits
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % per_byte)))
    parts = [padded[:, at::per_byte] << (8 - bits * (at + 1)) for at in range(per_byte)]
    packed = np.asarray(np.sum(parts, axis=0), np.uint8)
    rows = np.pad(packed, ((0, 0), (1, 0))).tobytes()
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


CODINGS: dict[str, tuple[str, Callable[[Path, Codes], Path]]] = {
    "red of three": ("radboud", lambda path, c: write_pyramid(path / "m.tiff", c, (1, 2, 4))),
    "one channel": ("radboud", lambda path, c: write_levels(path / "m.tiff", [c], 64, photometric="minisblack")),
    "green of a tiff": ("anywhere", lambda path, c: write_tiff(path / "m.tif", in_channel(c, 1), tile=(64, 64))),
    "blue beside rubbish": (
        "anywhere",
        lambda path, c: write_tiff(path / "m.tif", in_channel(c, 2, c * 40 + 9), rowsperstrip=32),
    ),
    "grey stored as rgb": ("anywhere", lambda path, c: write_tiff(path / "m.tif", np.dstack([c, c, c]))),
    "ome-tiff": ("radboud", lambda path, c: write_tiff(path / "m.ome.tiff", c, tile=(64, 64), metadata={"axes": "YX"})),
    "ome-tiff with sub-ifds": ("radboud", lambda path, c: write_pyramid(path / "m.ome.tiff", c, (1, 2), subifds=True)),
    "uint16": ("radboud", lambda path, c: write_tiff(path / "m.tiff", c.astype(np.uint16), tile=(64, 64))),
    "int32": ("radboud", lambda path, c: write_tiff(path / "m.tiff", c.astype(np.int32))),
    "lzma": ("radboud", lambda path, c: write_tiff(path / "m.tiff", c, compression="lzma")),
    "4 bits of a tiff": ("radboud", lambda path, c: write_tiff(path / "m.tiff", c, compression=None, bitspersample=4)),
    "bits of a tiff": ("binary", lambda path, c: write_tiff(path / "m.tiff", c > 1)),
    "0 and 255": ("binary_255", lambda path, c: write_tiff(path / "m.tiff", (c > 1).astype(np.uint8) * 255)),
    "palette tiff": (
        "radboud",
        lambda path, c: write_tiff(
            path / "m.tiff", c, photometric="palette", colormap=np.full((3, 256), 7, np.uint16), tile=(64, 64)
        ),
    ),
    "palette png": ("radboud", lambda path, c: write_png(path / "m.png", c, palette=True)),
    "grey png": ("radboud", lambda path, c: write_png(path / "m.png", c)),
    "grey png of 4 bits": ("radboud", lambda path, c: write_grey_png(path / "m.png", c, 4)),
    "grey png of 2 bits": ("karolinska", lambda path, c: write_grey_png(path / "m.png", np.minimum(c, 2), 2)),
    "bits of a png": ("binary", lambda path, c: write_png(path / "m.png", c > 1)),
    "uint16 png": ("radboud", lambda path, c: write_png(path / "m.png", c.astype(np.uint16))),
    "red of a png": ("radboud", lambda path, c: write_png(path / "m.png", in_channel(c, 0))),
    "green of a png with alpha": (
        "anywhere",
        lambda path, c: write_png(path / "m.png", np.dstack([in_channel(c, 1), np.full_like(c, 255)])),
    ),
}


ANYWHERE = find_label_map("radboud").model_copy(update={"channel": None})


class TrueCanvas:
    """A map that is 1 on cancer and 0 elsewhere."""

    classes = BINARY

    def __init__(self, truth: NDArray[np.bool_], resolution: Resolution) -> None:
        self.truth, self.resolution, self.shape = truth, resolution, truth.shape

    def read(self, left: int, top: int, width: int, height: int) -> NDArray[np.float32]:
        return self.truth[top : top + height, left : left + width].astype(np.float32)


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a label map of Radboud's codes that names no channel."""
    known = {**get_label_maps(), "anywhere": ANYWHERE}
    for module in ("panda.wsi.label_maps", "panda.data.slide_rows"):
        monkeypatch.setattr(f"{module}.get_label_maps", lambda: known)


@pytest.mark.usefixtures("maps")
@pytest.mark.parametrize("coding", CODINGS)
def test_mask_coding_gives_true_patches_and_score(tmp_path: Path, coding: str) -> None:
    provider, write = CODINGS[coding]
    write_pyramid(tmp_path / "s.tiff", picture(1), (1, 2, 4), mpp=2.0)
    mask = write(tmp_path, codes("radboud", True))
    (tmp_path / "my.csv").write_text(f"path,mask,provider\ns.tiff,{mask.name},{provider}\n")
    (record,) = read_manifest(tmp_path / "my.csv")
    assert find_one_tumor_example(tmp_path / "my.csv") == record
    truth = np.zeros((HEIGHT, WIDTH), bool)
    truth[CANCER] = True
    stores: tuple[tuple[int, StoreKind], ...] = ((0, "png"), (1, "slide"))
    for level, kind in stores:
        cut = PatchSettings(level=level, patch_size=64, store=kind)
        result = extract_store([record], cut, tmp_path / "stores", tmp_path, progress=False)
        patches = PatchSet(write_patch_manifests(result, {"s": "train"})["train"])
        step = 2**level
        assert len(patches) > 10
        for number, row in enumerate(patches.rows):
            expected = truth[row.y : row.y + 64 * step : step, row.x : row.x + 64 * step : step]
            assert torch.equal(patches[number][1][0] > 0, torch.from_numpy(expected.copy()))
    with Slide.open(record.image_path) as slide, LabelMask.open(mask, slide, provider) as label:
        for level in (0, 1):
            canvas: Any = TrueCanvas(truth[:: 2**level, :: 2**level], slide.choose_resolution(level=level))
            at = score_threshold(score_canvas(canvas, slide, label, find_tissue(slide), record).histogram, 0.5)
            assert (at.fp, at.fn, at.tp) == (0, 0, int(canvas.truth.sum()))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(coding=st.sampled_from(sorted(CODINGS)), seed=st.integers(0, 99), data=st.data())
def test_label_mask_reads_any_coding(
    tmp_path_factory: pytest.TempPathFactory, coding: str, seed: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("any")
    provider, write = CODINGS[coding]
    height, width = data.draw(st.integers(20, 150)), data.draw(st.integers(20, 150))
    stored = np.random.default_rng(seed).integers(0, 6, (height, width), np.uint8)
    blank = np.full((height, width, 3), 255, np.uint8)
    expected = {
        "binary": (stored > 1).astype(np.uint8),
        "binary_255": (stored > 1).astype(np.uint8) * 255,
        "karolinska": np.minimum(stored, 2),
    }.get(provider, stored)
    with (
        Slide.open(write_levels(folder / "s.tiff", [blank], 64)) as slide,
        LabelMask.open(write(folder, stored), slide, provider, {"anywhere": ANYWHERE}) as mask,
    ):
        assert (mask.overview(slide.choose_resolution(level=0)) == expected).all()


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    return Slide.open(write_pyramid(tmp_path / "s.tiff", np.full((300, 500, 3), 255, np.uint8), (1,)))


GRID = np.tile(np.arange(6, dtype=np.uint8), (300, 84))[:, :500]


@pytest.mark.parametrize(
    ("write", "fault"),
    [
        (lambda p: write_tiff(p / "m.tiff", np.pad(GRID, ((0, 212), (0, 12)))), "vips crop .*m.tiff.* 0 0 500 300$"),
        (lambda p: write_tiff(p / "m.tiff", np.dstack([GRID] * 5), planarconfig="contig"), "vips extract_band .* 0$"),
        (
            lambda p: write_tiff(p / "m.tiff", np.stack([GRID] * 3), photometric="minisblack"),
            "3 pages .*argmax.*=0",
        ),
        (lambda p: write_tiff(p / "m.tiff", GRID.astype(np.float32)), "vips cast .*m.tiff .* uchar"),
        (lambda p: write_tiff(p / "m.tiff", GRID.astype(np.uint16) * 257), "codes times 257: vips msb"),
        (lambda p: write_tiff(p / "m.tiff", GRID.astype(np.uint16) + 300), "its values are 300 to 305.* up to 255"),
        (lambda p: write_tiff(p / "m.tiff", GRID, compression="jpeg", tile=(64, 64)), "JPEG, which alters label codes"),
        (lambda p: write_tiff(p / "m.tiff", GRID, compression="jpeg2000", tile=(64, 64)), "alters label codes|34712"),
        (lambda p: write_png(p / "m.jpg", GRID), "is a JPEG, which alters"),
        (lambda p: (p / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(18)) and p / "m.png", "damaged PNG|decoded"),
        (lambda p: (p / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(16)) and p / "m.png", "damaged PNG"),
        (
            lambda p: write_tiff(p / "m.tiff", GRID, extratags=[(274, "H", 1, 3, True)]),
            r"Orientation tag is 3.*vips autorot (?!.*jpeg).*region-shrink=mode\]'$",
        ),
        (
            lambda p: write_tiff(p / "m.tiff", np.zeros((8200, 8200), np.uint8), rowsperstrip=8200),
            r"take 67240000 bytes each.*vips copy (?!.*jpeg).*region-shrink=mode\]'$",
        ),
        (lambda p: (p / "m.bmp").write_bytes(b"BM" + bytes(30)) and p / "m.bmp", "neither a TIFF nor a PNG"),
        (lambda p: write_png(p / "m.png", np.dstack([GRID, GRID[:, ::-1], GRID])), "red .* and green .*channel: red"),
    ],
)
def test_label_mask_open_refuses_with_remedy(
    tmp_path: Path, slide: Slide, write: Callable[[Path], Path], fault: str
) -> None:
    with pytest.raises(MaskError, match=f"(?s)m\\.(tiff|png|jpg|bmp).*({fault})"):
        LabelMask.open(write(tmp_path), slide, "anywhere", {"anywhere": ANYWHERE})


def test_label_mask_open_large_png_is_refused_with_remedy(
    tmp_path: Path, slide: Slide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("panda.wsi.mask_image.MAX_PX", 100_000)
    path = write_png(tmp_path / "m.png", GRID, palette=True)
    with pytest.raises(MaskError, match=r"decoded whole, which ends at 100000 px.*python -c ") as caught:
        LabelMask.open(path, slide, "radboud")
    command = shlex.split(str(caught.value).split("in tiles: ")[1])
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=60)
    with LabelMask.open(tmp_path / "m_codes.tiff", slide, "radboud") as mask:
        assert (mask.overview(slide.choose_resolution(level=0)) == GRID).all()


def test_label_mask_open_one_hot_pages_become_codes(tmp_path: Path, slide: Slide) -> None:
    pages = np.stack([code == GRID for code in range(6)]).astype(np.uint8)
    with pytest.raises(MaskError, match="6 pages of full size") as caught:
        LabelMask.open(write_tiff(tmp_path / "m.tiff", pages, photometric="minisblack"), slide, "radboud")
    command = shlex.split(str(caught.value).split("codes: ")[1].split("; if one")[0])
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=60)
    with LabelMask.open(tmp_path / "m_codes.tiff", slide, "radboud") as mask:
        assert (mask.overview(slide.choose_resolution(level=0)) == GRID).all()


def test_label_mask_found_channel_is_logged(tmp_path: Path, slide: Slide, caplog: pytest.LogCaptureFixture) -> None:
    path = write_png(tmp_path / "m.png", in_channel(GRID, 1, GRID + 100))
    with caplog.at_level(logging.INFO), LabelMask.open(path, slide, "anywhere", {"anywhere": ANYWHERE}):
        assert "m.png: the label is in the green channel" in caplog.text
    blue = ANYWHERE.model_copy(update={"channel": "alpha"})
    with pytest.raises(MaskError, match="has 3 channels, and its label map says channel: alpha"):
        LabelMask.open(path, slide, "anywhere", {"anywhere": blue})


def test_label_mask_decoded_whole_survives_pickle(tmp_path: Path, slide: Slide) -> None:
    with LabelMask.open(write_png(tmp_path / "m.png", GRID, palette=True), slide, "radboud") as mask:
        copy = pickle.loads(pickle.dumps(mask))
        assert (copy.read(slide.choose_resolution(level=0), (10, 20), (50, 60)) == GRID[20:80, 10:60]).all()
