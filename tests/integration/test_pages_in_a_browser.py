"""The pages of an inference in Chromium, opened from disk and clicked through."""

import io
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from panda.app.hydra_job import register_resolvers
from panda.app.infer import infer
from panda.inference.canvas import Canvas
from panda.inference.quantify import QuantifySettings, slide_quantification
from panda.report.run_page import write_run_page
from panda.report.runs import main as write_all_runs
from panda.report.slide_page import write_slide_page
from panda.report.sweep_page import write_sweep
from panda.tables import write_table
from panda.view.server import ViewServer
from panda.view.slide_list import find_slides
from panda.wsi.classes import find_classes
from panda.wsi.slide import Slide
from panda.wsi.tissue import find_tissue
from tests.checkpoints import grading_checkpoint, segmentation_checkpoint
from tests.summaries import fill_summary
from tests.test_compare import make_rows
from tests.test_infer import CONF, draw
from tests.test_infer_classes import run as run_with_classes
from tests.test_page_heads import SUMMARY, make_run
from tests.test_run_list import add_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium"),
]
EVIL = "<script>alert(1)<"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    for name in ("a", "b", EVIL):
        draw(folder / "slides" / f"{name}.tiff")
    segmentation = segmentation_checkpoint(folder / "best.ckpt")
    grading = grading_checkpoint(folder / "grade.ckpt")
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "infer",
            overrides=[
                f"checkpoint={segmentation}",
                f"grading_checkpoint={grading}",
                f"slides={folder / 'slides'}",
                f"output={folder / 'out'}",
                f"run_dir={folder / 'out'}",
                "engine.device=cpu",
                "threshold=0.45",
                "quantify.min_region_um2=40",
            ],
        )
    infer(cfg)
    return folder / "out"


@pytest.fixture
def allowed() -> list[str]:
    """Return the beginnings of addresses that a page may request; a test can add the viewer's."""
    return ["file://"]


@pytest.fixture
def page(allowed: list[str]) -> Iterator[Page]:
    """Return a page that must request nothing but what is allowed and log no error."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 2200})
        messages: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: messages.append(dialog.message))
        page.on("request", lambda asked: None if asked.url.startswith(tuple(allowed)) else messages.append(asked.url))
        yield page
        browser.close()
        assert messages == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_narrow_window_in_light_and_dark(page: Page, out: Path, tmp_path: Path, scheme: Any) -> None:
    run = make_run(tmp_path / "0")
    rows = [{"slide_id": f"{number:032}", "provider": "radboud", "dice": number / 500} for number in range(500)]
    write_table(run / "test_slides.csv", rows)
    (run / "summary.json").write_text(json.dumps(fill_summary(SUMMARY)))
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 800, "height": 1000})
    whole = [out / "report.html", out / "a" / "slide.html", write_run_page(run), write_sweep(tmp_path)]
    for path in whole:
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 800, path
        assert page.locator(".was").is_visible()
    page.goto(whole[2].as_uri())
    assert page.locator(".folded").is_visible()
    assert not page.locator(".side").is_visible()
    assert page.locator(".scroll.long").first.evaluate("(box) => box.clientHeight < box.scrollHeight / 5")
    paper = page.locator("body").evaluate("(body) => getComputedStyle(body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    page.set_viewport_size({"width": 1400, "height": 1000})
    link = page.locator(".side a").last
    link.click()
    assert page.evaluate("decodeURIComponent(location.hash)") == link.get_attribute("href")


def open_slide(page: Page, out: Path, name: str) -> None:
    page.goto((out / name / "slide.html").as_uri())
    page.wait_for_selector("#viewer.ready")


def measure_pane(page: Page, pane: str) -> tuple[bytes, int]:
    """Return the screenshot of a pane and its number of px in the colour of a highlighted region."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    data = page.locator(f"#viewer .{pane}").screenshot()
    with Image.open(io.BytesIO(data)) as image:
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")), 2, 0)
    return data, int(((red < 40) & (green > 150) & (blue > 230)).sum())


def test_slider_recolors_map_and_shows_quantification(page: Page, out: Path) -> None:
    open_slide(page, out, "a")
    slider, percent, mm2 = (page.locator(f"#viewer .{name}") for name in ("threshold", "percent", "mm2"))
    pictures = set()
    with Slide.open(out.parent / "slides" / "a.tiff") as slide:
        canvas = Canvas.open(out / "a" / "canvas.zarr")
        for step in (0, 400, 450, 473, 1000):
            slider.evaluate("(it, step) => { it.value = step; it.dispatchEvent(new Event('input')); }", step)
            found = slide_quantification(
                canvas, slide, canvas.resolution, step / 1000,
                settings=QuantifySettings(min_region_um2=0, min_hole_um2=0, min_region_px=0, min_hole_px=0),
                tissue=find_tissue(slide),
            )  # fmt: skip
            assert percent.inner_text() == f"{found.tumor_percent_of_tissue:.2f}"
            assert mm2.inner_text() == f"{found.tumor_mm2:.3f}"
            pictures.add(measure_pane(page, "right")[0])
    assert len(pictures) >= 4, "the map is drawn again"
    exact, back = page.locator("#viewer .exact"), page.locator("#viewer .reset")
    exact.fill("0.25")
    exact.press("Enter")
    assert slider.input_value() == "250"
    back.click()
    assert slider.input_value() == "450"
    assert exact.input_value() == "0.450"
    assert back.is_disabled()


def test_slide_page_opens_place_of_its_address(page: Page, out: Path) -> None:
    def find_mark() -> list[float]:
        """Return left, top, right and bottom of the marked box as shares of the pane; empty without one."""
        with Image.open(io.BytesIO(measure_pane(page, "left")[0])) as image:
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(int), 2, 0)
        y, x = np.nonzero((red > 190) & (green < 60) & (blue > 90) & (blue < 160))
        height, width = red.shape
        return [x.min() / width, y.min() / height, x.max() / width, y.max() / height] if len(x) else []

    open_slide(page, out, "a")
    assert find_mark() == []
    page.evaluate("window.location.hash = '#x=240&y=206&w=160&h=100'")
    left, top, right, bottom = find_mark()
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((0.5, 0.5), abs=0.02)
    page.goto("about:blank")
    page.goto(f"{(out / 'a' / 'slide.html').as_uri()}#x=240&y=206&w=160&h=100")
    page.wait_for_selector("#viewer.ready")
    assert find_mark() == pytest.approx([left, top, right, bottom], abs=0.02)


def test_panes_zoom_and_move_and_table_highlights_regions(page: Page, out: Path) -> None:
    open_slide(page, out, "a")
    text = page.locator("#viewer .scale span")
    bar = page.locator("#viewer .scale i")

    def um_per_px() -> float:
        box = bar.bounding_box()
        assert box is not None
        return float(text.inner_text().removesuffix(" µm")) / float(box["width"])

    whole, before = measure_pane(page, "left"), um_per_px()
    side = page.locator("#viewer .left").bounding_box()
    assert side is not None
    assert before == pytest.approx(640 * 0.5 / side["width"], rel=0.02), "640 px of 0.5 µm fill the pane"
    assert whole[1] == 0
    row = page.locator("#regions tbody tr").first
    row.hover()
    assert measure_pane(page, "left")[1] > 20, "the region is outlined"
    page.locator("h1").hover()
    assert measure_pane(page, "left") == whole
    row.locator("button").click()
    assert "chosen" in (row.get_attribute("class") or "")
    assert measure_pane(page, "right")[1] > 20
    page.locator("#viewer .fit").click()
    page.locator("#viewer .in").click()
    zoomed = measure_pane(page, "left")
    assert um_per_px() == pytest.approx(before / 1.5, rel=0.02)
    pane = page.locator("#viewer .left").bounding_box()
    assert pane is not None
    x, y = pane["x"] + pane["width"] / 2, pane["y"] + pane["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 80, y + 30, steps=4)
    page.mouse.up()
    assert measure_pane(page, "left") != zoomed
    # the wheel belongs to the page until the picture was clicked
    page.evaluate("document.activeElement.blur()")
    shown = um_per_px()
    page.mouse.wheel(0, -400)
    measure_pane(page, "left")
    assert um_per_px() == shown
    for mode in ("blend", "slide", "map", "pair"):
        page.locator(f"#viewer input[value={mode}]").check()
        assert page.locator("#viewer .right").is_visible() == (mode == "pair")
    page.locator("#viewer .colours").select_option("viridis")
    plain = measure_pane(page, "right")
    page.locator("#viewer .attention").check()
    assert measure_pane(page, "right") != plain


def test_slide_table_sorts_and_links_to_pages(page: Page, out: Path) -> None:
    page.goto((out / "report.html").as_uri())
    names = page.locator("table.sortable").first.locator("tbody tr td.id")
    head = page.locator("table.sortable").first.locator("th button", has_text="Slide").first
    head.click()
    first = names.all_inner_texts()
    head.click()
    assert names.all_inner_texts() == first[::-1]
    assert EVIL in first
    page.locator("td.id a", has_text=EVIL).click()
    page.wait_for_selector("#viewer.ready")
    assert page.locator("h1").inner_text() == EVIL


def test_page_of_graded_slide_shows_attention(page: Page, out: Path, tmp_path: Path) -> None:
    facts = json.loads((out / "a" / "quantification.json").read_text())
    kept = {key: facts[key] for key in ("slide_id", "mpp", "view_downsample", "grade")}
    (tmp_path / "quantification.json").write_text(json.dumps(kept))
    shutil.copy(out / "a" / "slide.jpg", tmp_path)
    write_slide_page(tmp_path)
    page.goto((tmp_path / "slide.html").as_uri())
    page.wait_for_selector("#viewer.ready")
    assert page.locator("#viewer .threshold").count() == 0
    attended = measure_pane(page, "left")
    page.locator("#viewer .attention").uncheck()
    assert measure_pane(page, "left") != attended
    assert not page.locator("#viewer .right").is_visible()


def test_viewer_shows_slides_at_full_resolution(page: Page, out: Path, allowed: list[str]) -> None:
    server = ViewServer(find_slides(out))
    allowed[:] = [server.address, f"blob:{server.address}"]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        page.goto(server.address)
        look_through(page)
    finally:
        server.shutdown()
        thread.join()
        server.close()


def look_through(page: Page) -> None:
    """Show slide a of the viewer, its map at thresholds and its attention, and the next slide."""
    expect(page.locator("#name")).to_have_text(EVIL)
    page.keyboard.press("n")
    expect(page.locator("#name")).to_have_text("a")

    def read_px(x: int, y: int) -> list[int]:
        """Return the colour at a place of the slide, level-0 px, when all tiles are there."""
        page.wait_for_function(
            "() => shown && !waiting && !loader.running.size && [...layers.slide.tiles.values()].some((t) => t.image)"
        )
        script = """([x, y]) => {
            const all = find("picture"), one = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
            const [left, top] = [[x - at.x, all.width], [y - at.y, all.height]].map(([v, n]) => n / 2 + v / at.per);
            one.drawImage(all, -Math.floor(left), -Math.floor(top));
            return [...one.getImageData(0, 0, 1, 1).data];
        }"""
        return list(page.evaluate(script, [x, y]))[:3]

    page.wait_for_function("() => shown && shown.name === 'a'")
    page.keyboard.press("t")
    whole = read_px(300, 250), read_px(50, 450)
    assert np.abs(np.subtract(whole, [(215, 120, 180), (244, 244, 244)])).max() <= 3
    page.keyboard.press("1")
    page.keyboard.press("+")
    assert np.abs(np.subtract(read_px(300, 250), (215, 120, 180))).max() <= 3
    assert page.locator("#scale span").inner_text().endswith(" · 0.33 µm/px, about 30×")
    page.keyboard.press("t")
    for step, share in ((0, "100.00 %"), (1000, "0.00 %")):
        page.evaluate("(step) => moveThreshold(step)", step)
        change = np.abs(np.subtract(read_px(300, 250), (215, 120, 180))).max()
        assert change > 30 if step == 0 else change < 15
        assert page.locator("#live").inner_text().startswith(f"{share} of tissue · ")
    page.keyboard.press("0")
    page.keyboard.press("a")
    assert page.locator("#attention").is_checked()
    assert page.evaluate("() => location.hash").startswith("#1/320/256/")
    page.keyboard.press("n")
    expect(page.locator("#name")).to_have_text("b")


def test_legend_of_classes_follows_the_threshold(page: Page, tmp_path: Path) -> None:
    run_with_classes(tmp_path, find_classes("gleason"))
    open_slide(page, tmp_path / "out", "a")
    texts = page.locator("#viewer .classes b")
    colours = page.locator("#viewer .colours")
    assert colours.input_value() == "by pattern"
    seen, pictures = set(), set()
    for step in (300, 700, 800, 1000):
        script = "(it, step) => { it.value = step; it.dispatchEvent(new Event('input')); }"
        page.locator("#viewer .threshold").evaluate(script, step)
        areas = [float(text.split(" mm²")[0]) for text in texts.all_inner_texts()]
        assert sum(areas) == pytest.approx(float(page.locator("#viewer .mm2").inner_text()), abs=0.0016)
        seen.add(tuple(areas))
        pictures.add(measure_pane(page, "right")[0])
    assert len(seen) > 1
    assert len(pictures) > 1
    by_class = measure_pane(page, "right")[0]
    colours.select_option("viridis")
    page.locator("#viewer .reset").click()
    assert measure_pane(page, "right")[0] != by_class


def test_runs_page_filters_by_words_and_by_choice(page: Page, tmp_path: Path) -> None:
    for model, dice in (("unet", 0.6), ("fpn", 0.7)):
        add_run(tmp_path / "runs" / model, make_rows(), dice, f"model={model}")
    assert write_all_runs([str(tmp_path / "runs")]) == 0
    page.goto((tmp_path / "runs" / "runs.html").as_uri())
    shown, group = page.locator("#shown"), page.locator("section")
    assert shown.inner_text() == "2 of 2 runs"
    page.set_viewport_size({"width": 800, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") == 800
    page.fill("#filter input", "model=unet seed=0")
    assert shown.inner_text() == "1 of 2 runs"
    assert group.locator("tbody tr:visible td.id").all_inner_texts() == ["unet"]
    page.locator("#filter select").select_option("model=fpn")
    assert (shown.inner_text(), group.is_visible()) == ("0 of 2 runs", False)
    page.locator("#filter button").click()
    expect(shown).to_have_text("2 of 2 runs")
    assert group.is_visible()
