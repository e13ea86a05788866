"""Read the files of a run's folder for its page, which names what is missing or broken and shows the rest."""

from __future__ import annotations

import base64
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import cv2
import numpy as np
import yaml  # type: ignore[import-untyped]
from pydantic import JsonValue
from pydantic_core import from_json

from panda.errors import PandaError
from panda.inference.picture_file import find_image

Row = Mapping[str, Any]
T = TypeVar("T")


def read_json(path: Path) -> tuple[dict[str, JsonValue], str]:
    """Read a JSON object: the object and an empty text, or an empty object and the reason as a sentence."""
    try:
        content = from_json(path.read_bytes())
    except FileNotFoundError:
        return {}, f"{path.name} is not in the folder."
    except (OSError, ValueError) as error:
        return {}, f"{path.name} could not be read: {error}"
    if not isinstance(content, dict):
        return {}, f"{path.name} holds no JSON object."
    return content, ""


def read_text(path: Path) -> str:
    """Read a text file; an empty text if it is missing or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_config(path: Path) -> dict[str, Any]:
    """Read the `config.yaml` of a run; empty if it is missing or holds no keys."""
    try:
        content = yaml.load(read_text(path), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def try_read(read: Callable[[Path], T], folder: Path, name: str) -> tuple[T | None, str]:
    """Read a file of a folder: its content and an empty text, or None and the reason as a sentence."""
    try:
        return read(folder), ""
    except FileNotFoundError:
        return None, f"{name} is not in the folder."
    except (OSError, PandaError) as error:
        return None, f"{name} could not be read: {error}"


def parse_number(value: Any) -> float | None:
    """Read a number or its text from JSON or CSV; None for anything else, NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        result = float(value)
    except ValueError:
        return None
    return result if math.isfinite(result) else None


def make_natural_key(text: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts `job2` before `job10`."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def make_link(*parts: str) -> str:
    """Make a relative address of names of folders and a file.

    No name becomes a scheme, a query or a path out of the folder.
    """
    return "/".join(quote(part, safe="") for part in parts)


def make_address(path: Path, start: Path) -> str:
    """Return the address of a path relative to a folder, which is safe for any name."""
    parts = Path(os.path.relpath(path, start)).parts
    return "/".join(part if part == ".." else make_link(part) for part in parts)


def find_subfolder(folder: Path, name: str) -> Path | None:
    """Find the subfolder with a name from a table; None if there is none or the name leads out of `folder`."""
    plain = bool(name) and name not in {".", ".."} and "/" not in name and "\\" not in name and "\0" not in name
    # unlike Path.is_dir, it is False for a name that is too long
    return folder / name if plain and os.path.isdir(folder / name) else None


@dataclass(frozen=True)
class Picture:
    """A picture embedded in the page: its data URI and its size, px."""

    uri: str
    width: int
    height: int

    @property
    def wide(self) -> bool:
        """Return whether two of them are better placed one below the other."""
        return self.width > 1.9 * self.height


def read_picture(path: Path, max_side: int, quality: int = 88, *, bare: bool = False) -> Picture | None:
    """Read a picture for the page as JPEG; None if the file is missing or no picture.

    A picture whose longer side is over `max_side` px is reduced, and transparent pixels become white.
    If `bare` is true, the picture is cut to its image, because nobody can read a legend of a few px.
    """
    try:
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error):
        return None
    if image is None:
        return None
    if image.dtype != np.uint8:
        image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX, dtype=cv2.CV_8U)  # type: ignore[call-overload]
    if bare and (box := find_image(path)):
        image = image[box[1] : box[3], box[0] : box[2]]
    shrink = max_side / max(image.shape[:2])
    if shrink < 1:
        size = tuple(max(1, round(side * shrink)) for side in image.shape[1::-1])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if image.ndim == 3 and image.shape[2] == 4:
        alpha = image[..., 3:].astype(np.float32) / 255
        image = (image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    full_colour = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    options = (cv2.IMWRITE_JPEG_QUALITY, quality, *full_colour)
    _, data = cv2.imencode(".jpg", image, options)
    return Picture(make_data_uri(data.tobytes(), "jpeg"), image.shape[1], image.shape[0])


def make_data_uri(data: bytes, kind: str) -> str:
    """Return a picture of a kind, `jpeg` or `png`, as an address that holds its data."""
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")
