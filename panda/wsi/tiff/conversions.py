"""Why no reader shows a picture, and the command that converts it, to paste into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path

_PYRAMID = "[tile,pyramid,compression=jpeg,Q=90,bigtiff]"
_CODE_PYRAMID = "[tile,pyramid,compression=deflate,region-shrink=mode]"


def suggest_vips(path: Path, operation: str, *arguments: str) -> str:
    """Return how to write a slide with an operation of libvips' command line, as a tiled pyramid."""
    return f"convert it: vips {operation} {shlex.quote(str(path))} {_name_target(path)} {' '.join(arguments)}".rstrip()


def suggest_vips_codes(operation: str, path: Path, arguments: str = "", page: int | None = None) -> str:
    """Return a command of libvips that makes a mask as it is read best: tiles, a pyramid of codes, deflate."""
    source = shlex.quote(f"{path}" if page is None else f"{path}[page={page}]")
    target = shlex.quote(f"{path.with_name(path.stem + '_codes.tiff')}{_CODE_PYRAMID}")
    return f"vips {operation} {source} {target} {arguments}".rstrip()


def describe_orientation(orientation: int, path: Path, *, has_codes: bool = False) -> str:
    """Return why a page with an Orientation tag other than 1 is refused, with the remedy for a slide or a mask."""
    command = suggest_vips_codes("autorot", path) if has_codes else suggest_vips(path, "autorot")
    return (
        f"its Orientation tag is {orientation}, by which OpenSlide turns each tile and not the picture; store it as it "
        f"is shown, with Orientation 1: {command}"
    )


def describe_long_values(dtype: str, bits: int, path: Path) -> str:
    """Return why px of floats or of more than 16 bits are refused, with the remedy."""
    return (
        f"its pixels are {dtype} of {bits} bits, which no reader shows as colours; store uint8: "
        f"{suggest_vips(path, 'linear', '255 0 --uchar')} (for values of 0 to 1; '1 0' for 0 to 255)"
    )


def describe_grey_channels(count: int, path: Path) -> str:
    """Return why channels that are stored as grey are refused, with the remedy."""
    joined = shlex.quote(str(path.with_name(f"{path.stem}_joined.v")))
    return (
        f"its {count} channels are stored as grey, and readers show the first; store red, green and blue. If the first "
        f"three are these, convert it: vips extract_band {shlex.quote(str(path))} {joined} 0 --n 3 && "
        f"vips copy {joined} {_name_target(path)} --interpretation srgb"
    )


def describe_channel_pages(count: int, path: Path) -> str:
    """Return why a TIFF with a page for each channel is refused, with the remedy."""
    pages = " ".join(f"{path}[page={page}]" for page in range(min(count, 3)))
    joined = shlex.quote(str(path.with_name(f"{path.stem}_joined.v")))
    return (
        f"it has {count} pages of one channel at full size, of which readers show the first in grey; store one page "
        f"with all channels. If the first are red, green and blue, convert it: vips bandjoin {shlex.quote(pages)} "
        f"{joined} && vips copy {joined} {_name_target(path)} --interpretation srgb"
    )


def suggest_bioformats(path: Path) -> str:
    """Return how to write a slide as an OME-TIFF with Bio-Formats, which reads most formats."""
    target = shlex.quote(str(path.with_name(f"{path.stem}_converted.ome.tiff")))
    tiles = "-bigtiff -compression LZW -tilex 512 -tiley 512 -pyramid-resolutions 4 -pyramid-scale 2"
    return f"convert it: bfconvert {tiles} {shlex.quote(str(path))} {target}"


def _name_target(path: Path) -> str:
    return shlex.quote(f"{path.with_name(f'{path.stem}_converted.tiff')}{_PYRAMID}")
