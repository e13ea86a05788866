"""Find the map of a slide from the folder with its result, and refuse a map that is not the one of the result."""

from __future__ import annotations

from pathlib import Path

from panda.errors import CheckpointError
from panda.inference.canvas_store import Canvas

CANVAS = "canvas.zarr"


def open_result_canvas(folder: Path, fingerprint: str | None) -> Canvas:
    """Open the canvas from which a result was made.

    Args:
        folder: The folder of the slide. A canvas that the jobs of a multirun share is in the folder of the slide
            beside those of the jobs.
        fingerprint: Fingerprint of the canvas in the result; None in older results, which have only a canvas of
            their own.

    Raises:
        CheckpointError: If there is no canvas, it is broken, or it was replaced after the result was written.
    """
    own, shared = folder / CANVAS, folder.parent.parent / folder.name / CANVAS
    path = shared if shared.exists() and not own.exists() else own
    if not path.exists():
        raise CheckpointError(f"{own}: there is no such map; run the slide again")
    canvas = Canvas.open(path)
    if canvas.fingerprint != fingerprint and (fingerprint or path == shared):
        raise CheckpointError(
            f"{path}: the map is not the one of the result in {folder}, or that is not known: a job with other "
            "settings replaces it; map the slide again with the settings of the result, into an output of its own"
        )
    return canvas
