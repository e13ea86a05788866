"""Write the whole folder of a mapped slide: its files, and the page that shows them."""

from __future__ import annotations

from panda.files import hold_lock, sync_folders_once
from panda.inference.slide_files import SlideFiles
from panda.inference.slide_result import SlideResult
from panda.report.attention_tiles import draw_attention_tiles
from panda.report.slide_page import PAGE, write_slide_page


def write_slide_folder(files: SlideFiles) -> SlideResult:
    """Write everything that follows the canvas of a slide, and return the result; another run on the slide waits."""
    with hold_lock(files.folder / PAGE):
        result = files.write()
        with sync_folders_once():
            draw_attention_tiles(files.grade, files.folder / "attention_tiles.png")
            write_slide_page(files.folder)
    return result
