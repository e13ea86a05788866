"""The viewer of slides: what its tiles hold, and what its server refuses."""

from __future__ import annotations

import http.client
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import imagecodecs
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray

from panda.app.hydra_job import register_resolvers
from panda.app.infer import infer
from panda.errors import PandaError
from panda.inference.canvas import Canvas
from panda.view.command import main
from panda.view.open_slides import OpenSlides
from panda.view.opened_slide import OpenedSlide
from panda.view.server import HOST, ViewServer
from panda.view.slide_list import find_slides
from panda.view.tiles import SIDE, list_slide_levels
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide
from panda.wsi.tissue import find_tissue
from tests.checkpoints import segmentation_checkpoint
from tests.pyramids import write_pyramid
from tests.test_infer import CONF

WIDTH, HEIGHT = 1301, 1003  # level 1 is 325 x 250, level 0 px per px not quite 4
MARK = (1204, 900, 40, 50)  # x, y, width, height of a dark square near the far corner, which is labelled cancer


def draw(folder: Path) -> Path:
    """Write two slides in PANDA's layout, one with a label."""
    image = np.full((HEIGHT, WIDTH, 3), 244, np.uint8)
    rows, columns = np.mgrid[: HEIGHT - 200, :700]
    image[100:-100, 100:800] = np.stack([200 + columns // 60, 110 + rows // 30, 180 + columns // 80], axis=-1)
    x, y, width, height = MARK
    image[y : y + height, x : x + width] = (60, 20, 90)
    codes = np.zeros((HEIGHT, WIDTH), np.uint8)
    codes[100:-100, 100:800] = 1
    codes[y : y + height, x : x + width] = 4
    write_pyramid(folder / "train_images" / "a.tiff", image, mpp=0.5)
    write_pyramid(folder / "train_images" / "b<i>.tiff", image[::-1].copy(), mpp=0.5)
    write_pyramid(folder / "train_label_masks" / "a_mask.tiff", codes)
    table = "image_id,data_provider,isup_grade,gleason_score\na,radboud,4,4+4\nb<i>,radboud,0,negative\n"
    (folder / "train.csv").write_text(table)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("view"))


@pytest.fixture(scope="module")
def out(root: Path) -> Path:
    checkpoint = segmentation_checkpoint(root / "best.ckpt")
    return map_slides(checkpoint, root / "out", root / "out", f"slides={root / 'train_images'}", f"labels={root}")


def map_slides(checkpoint: Path, output: Path, job: Path, *overrides: str) -> Path:
    given = [f"output={output}", f"run_dir={job}", "engine.device=cpu", "engine.post_workers=0", "threshold=0.45"]
    given += [f"checkpoint={checkpoint}", *overrides]
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        infer(compose("infer", overrides=given))
    return job


@contextmanager
def serve(server: ViewServer) -> Iterator[ViewServer]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.close()


@pytest.fixture
def server(out: Path) -> Iterator[ViewServer]:
    with serve(ViewServer(find_slides(out))) as running:
        yield running


def ask(server: ViewServer, address: str, host: str = "", method: str = "GET") -> tuple[int, bytes, dict[str, str]]:
    """Return status, data and headers of a path below the key, or of a whole path that begins with a slash."""
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=20)
    path = address if address.startswith(("/", "*")) else f"/{server.key}/{address}"
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"{HOST}:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


def read_slide(server: ViewServer, number: int = 0) -> dict[str, Any]:
    status, data, _ = ask(server, f"{number}/slide.json")
    assert status == 200
    content: dict[str, Any] = json.loads(data)
    return content


def read_tile(server: ViewServer, address: str) -> NDArray[np.uint8]:
    status, data, headers = ask(server, address)
    assert status == 200, data
    jpeg = headers["Content-Type"] == "image/jpeg"
    return np.asarray(imagecodecs.jpeg8_decode(data) if jpeg else imagecodecs.png_decode(data), np.uint8)


def test_slide_tiles_show_pixels_of_the_reader(server: ViewServer, root: Path) -> None:
    found = read_slide(server)
    assert found["size"] == [WIDTH, HEIGHT]
    assert found["mpp"] == [0.5, 0.5]
    assert [level[0] for level in found["slide"]] == pytest.approx([1, 2, 4, 8, 16], rel=0.01)
    with Slide.open(root / "train_images" / "a.tiff") as slide:
        for level, (downsample, width, height) in enumerate(found["slide"]):
            column, row = (width - 1) // SIDE, (height - 1) // SIDE
            tile = read_tile(server, f"0/slide/{level}/{column}_{row}")
            corner = round(column * SIDE * downsample), round(row * SIDE * downsample)
            resolution = slide.choose_resolution(downsample=downsample)
            truth = slide.read(resolution, corner, (width - column * SIDE, height - row * SIDE))
            assert tile.shape == truth.shape
            assert np.abs(tile.astype(int) - truth).mean() < 1.5
            x, y = (MARK[0] + 20 - corner[0]) / downsample, (MARK[1] + 25 - corner[1]) / downsample
            assert np.abs(tile[int(y), int(x)].astype(int) - (60, 20, 90)).max() < 20, "the mark is at its place"
    assert ask(server, f"0/slide/0/{column + 9}_{row}")[0] == 404


def test_map_tiles_have_values_of_canvas_on_tissue(server: ViewServer, out: Path) -> None:
    view = read_slide(server)["map"]
    canvas = Canvas.open(out / "a" / "canvas.zarr")
    height, width = canvas.shape
    assert view["levels"] == [[canvas.resolution.downsample, width, height]]
    assert view["threshold"] == 0.45
    planes = read_tile(server, "0/map/0/0_0")
    with Slide.open(out.parent / "train_images" / "a.tiff") as slide:
        tissue = find_tissue(slide).crop(canvas.resolution, (0, 0), canvas.resolution.size)
    scored = (canvas.read_codes(0, 0, width, height) > 0) & tissue
    assert 0 < scored.mean() < 1
    np.testing.assert_array_equal(planes[..., 1], 255 * scored)
    prob = ((planes[..., 0].astype(int) << 8 | planes[..., 2]) / 65534).astype(np.float32)
    np.testing.assert_array_equal(prob, canvas.read(0, 0, width, height))
    for step in range(1001):
        assert (prob[scored] >= np.float64(step / 1000)).sum() == view["counts"][step]


def test_map_that_another_job_replaced_is_refused(out: Path, root: Path, tmp_path: Path) -> None:
    given = f"slides={root / 'train_images' / 'a.tiff'}"
    best, modes = root / "best.ckpt", ("none", "flip")
    jobs = [map_slides(best, tmp_path, tmp_path / f"job-{tta}", given, f"engine.tta={tta}") for tta in modes]
    replaced, last = (OpenedSlide(find_slides(job).slides[0], None, None) for job in jobs)
    assert replaced.canvas is None
    assert "the map is not the one of the result in" in replaced.faults[0]
    assert last.canvas is not None
    assert not last.faults
    for opened in (replaced, last):
        opened.close()


def test_label_has_the_codes_of_its_checkpoint(root: Path, tmp_path: Path) -> None:
    own = {"names": {0: "glass", 1: "benign", 4: "tumour"}, "cancer": [4], "unlabelled": [0]}
    checkpoint = segmentation_checkpoint(tmp_path / "own.ckpt", label_maps={"mylab": own})
    image, mask = root / "train_images" / "a.tiff", root / "train_label_masks" / "a_mask.tiff"
    table = tmp_path / "labels.csv"
    table.write_text(f"path,mask\n{image},{mask}\n")
    out = tmp_path / "out"
    map_slides(checkpoint, out, out, f"slides={image}", f"labels={table}")
    for labels in (None, table):
        listed = find_slides(out, labels)
        opened = OpenedSlide(listed.slides[0], None, listed.labels.get("a"))
        assert not opened.faults
        assert opened.label is not None
        assert (opened.label.provider, opened.codes) == ("mylab", (4,))
        opened.close()


def test_label_tiles_have_codes_of_label_at_their_place(server: ViewServer, root: Path) -> None:
    found = read_slide(server)["label"]
    assert [entry["name"] for entry in found["legend"]] == [f"Gleason pattern {n}" for n in (3, 4, 5)]
    x, y, width, height = MARK
    assert ask(server, "0/label/0/0_0")[:2] == (200, b""), "it has no cancer"
    tile = read_tile(server, "0/label/0/2_1")
    inside = np.zeros_like(tile)
    inside[y - SIDE : y - SIDE + height, x - 2 * SIDE : x - 2 * SIDE + width] = 2
    np.testing.assert_array_equal(tile, inside)
    with Slide.open(root / "train_images" / "a.tiff") as slide:
        mask = LabelMask.open(root / "train_label_masks" / "a_mask.tiff", slide, "radboud")
        level = slide.choose_resolution(downsample=found["levels"][1][0])
        np.testing.assert_array_equal(
            read_tile(server, "0/label/1/1_0") == 2, mask.read_tumor(level, (1024, 0), (139, 502))
        )
        mask.close()
    assert read_slide(server, 1)["label"] is None


def test_list_has_figures_of_the_table(server: ViewServer) -> None:
    found = json.loads(ask(server, "slides.json")[1])
    assert found["title"] == "out"
    assert [head["label"] + head["unit"] for head in found["heads"]][:2] == ["Tumour%", "Tumourmm²"]
    assert [slide["name"] for slide in found["slides"]] == ["a", "b<i>"]
    assert found["slides"][0]["cells"][0][1] == pytest.approx(float(found["slides"][0]["cells"][0][0]), abs=0.06)
    cards = {card["label"]: card["text"] for card in read_slide(server)["cards"]}
    assert cards["Tumour, share of tissue"] == found["slides"][0]["cells"][0][0]


def test_server_answers_to_its_own_name_and_key_alone(server: ViewServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "")[0] == ask(server, "", host="localhost:8000")[0] == 200
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1.evil.example", "[::1]", "localhost:"):
        assert ask(server, "", host=host)[:2] == (403, b"the viewer answers to 127.0.0.1 and localhost alone")
    for path in ("/", "/slides.json", "/wrong/slides.json", f"/{server.key}", f"/{server.key}x/", "/%00/", "*"):
        assert ask(server, path)[:2] == (404, b"give the whole address that the terminal shows")
    assert ask(server, "slides.json", method="POST")[0] == 501
    headers = ask(server, "")[2]
    assert "Access-Control-Allow-Origin" not in headers
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "address",
    [
        *("2/slide.json", "-1/slide.json", "x/slide.json", "a/slide.json", "1/canvas.zarr/zarr.json"),
        *("../train.csv", "0/../../train.csv", "0/%2e%2e/train.csv", "..%2f..%2ftrain.csv", "view.html/../server.py"),
        *("0/slide/9/0_0", "0/slide/0/9_9", "0/map/1/0_0", "0/other/0/0_0", "0/slide/0/0_-1", "0/slide/0/0_0/"),
        *("1/label/0/0_0", "assets/", "9" * 12 + "/view.jpg", "0/slide/0/%D9%A3_0"),
    ],
)  # fmt: skip
def test_unknown_addresses_are_not_found(server: ViewServer, address: str) -> None:
    status, data, _ = ask(server, address)
    assert status == 404
    assert b"there is no " in data


def test_damaged_tile_is_named_and_others_are_served(
    out: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (root / "train_images" / "a.tiff").read_bytes()
    with Slide.open(root / "train_images" / "a.tiff") as slide:
        assert slide.tiff is not None
        level = slide.tiff.levels[0]
        start = int(level.offsets[0])
    damaged = whole[:start] + bytes(200) + whole[start + 200 :]
    (tmp_path / "a.tiff").write_bytes(damaged)
    (tmp_path / "c.tiff").write_bytes(b"no slide")
    (tmp_path / "b.tiff").write_bytes(whole)
    with serve(ViewServer(find_slides(tmp_path))) as server:
        status, said, headers = ask(server, "0/slide/0/0_0")
        assert status == 422
        assert headers["Cache-Control"] == "no-store"
        assert b"a.tiff: cannot read" in said
        assert b"fetch it again" in said
        assert ask(server, "0/slide/0/2_1")[0] == ask(server, "1/slide/0/0_0")[0] == 200
        found = read_slide(server, 2)
        assert found["size"] is None
        assert "c.tiff" in found["notes"][0]
        ask(server, "0/slide/0/0_0")
    assert capsys.readouterr().err.count("a.tiff: cannot read") == 1, "the terminal says it once"


def test_moved_slide_is_named_and_found_by_option(out: Path, root: Path, tmp_path: Path) -> None:
    images = root / "train_images"
    moved = images.rename(tmp_path / "moved")
    try:
        with serve(ViewServer(find_slides(out))) as server:
            found = read_slide(server)
            assert found["notes"][0].endswith(
                "a.tiff: the slide is not there any more; if it has moved, add --slides FOLDER"
            )
            assert found["slide"] == []
            assert found["size"] == pytest.approx([WIDTH, HEIGHT], abs=4)
            assert ask(server, "0/view.jpg")[0] == 200
            assert read_tile(server, "0/map/0/0_0")[..., 1].any(), "the map is there"
        with serve(ViewServer(find_slides(out), moved)) as server:
            assert read_slide(server)["notes"] == []
            assert read_tile(server, "0/slide/0/0_0").shape == (SIDE, SIDE, 3)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "a.tiff").write_bytes(b"another slide of this name")
        with serve(ViewServer(find_slides(out), tmp_path)) as server:
            assert f"--slides {tmp_path}: it has several: " in read_slide(server)["notes"][0]
            assert read_slide(server, 1)["notes"] == []
        with serve(ViewServer(find_slides(out), tmp_path / "other")) as server:
            assert "a.tiff: it has 26 bytes, and the slide that was mapped had " in read_slide(server)["notes"][0]
    finally:
        moved.rename(images)


def test_folder_of_slides_is_shown_with_labels_of_its_table(root: Path) -> None:
    with serve(ViewServer(find_slides(root))) as server:
        assert [slide["name"] for slide in json.loads(ask(server, "slides.json")[1])["slides"]] == ["a", "b<i>"]
        found = read_slide(server)
        assert (found["map"], found["cards"], found["notes"], found["view"]) == (None, [], [], None)
        assert (read_tile(server, "0/label/0/2_1") == 2).sum() == MARK[2] * MARK[3]
    none = root / "train_label_masks" / "none"
    none.mkdir()
    (none / "x.txt").write_text("")
    bare = find_slides(root / "train_images")
    assert not bare.labels
    assert find_slides(root / "train_images", root).labels["a"].mask_path is not None
    with pytest.raises(PandaError, match=r"no slide \(passed over: 1 files that are no slides"):
        find_slides(none)


def test_levels_are_at_most_twice_as_coarse_and_end_in_one_tile(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "s.tiff", np.full((4000, 2600, 3), 200, np.uint8), (1, 4.02, 8.09))
    with Slide.open(path) as slide:
        levels = list_slide_levels(slide)
        steps = [level.downsample for level in levels]
        assert {slide.level_downsamples[level] for level in slide.usable_levels} <= set(steps)
        assert all(1.3 < after / before < 3 for before, after in pairwise(steps))
        assert max(levels[-1].size) <= SIDE < max(levels[-2].size)


class Handle:
    def __init__(self, number: int) -> None:
        self.number, self.is_open = number, True

    def close(self) -> None:
        assert self.is_open
        self.is_open = False


def test_open_slides_close_the_oldest_that_no_thread_uses() -> None:
    made: list[Handle] = []

    def opener(number: int) -> Handle:
        made.append(Handle(number))
        return made[-1]

    slides = OpenSlides(opener, most=2)
    with slides.lease(0) as used:
        for number in (1, 2, 3, 1, 2):
            with slides.lease(number) as slide:
                assert slide.is_open
        assert used.is_open, "a thread uses it"
    with slides.lease(2) as slide:
        assert slide.is_open
    assert sum(handle.is_open for handle in made) == 2
    barrier = threading.Barrier(4)
    found: list[Handle] = []

    def lease() -> None:
        barrier.wait()
        with slides.lease(9) as slide:
            found.append(slide)

    threads = [threading.Thread(target=lease) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1, "it is opened once"
    slides.close()
    assert not any(handle.is_open for handle in made)


def test_viewer_refuses_what_it_cannot_show(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], server: ViewServer
) -> None:
    taken = str(server.server_port)
    for given, said in {
        (str(tmp_path / "absent"),): "there is no such folder or file; give the output of infer.py",
        (str(tmp_path),): "no slide; give the output of infer.py",
        (str(root), "--slides", str(tmp_path / "absent")): "there is no such folder; give the folder that holds",
        (str(root), "--labels", str(tmp_path)): "train.csv: no such file",
        (str(root), "--port", taken): f"127.0.0.1:{taken} cannot be used",
    }.items():
        assert main([*given, "--no-browser"]) == 1
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(root), "--port", "99999"])
    for job in ("t=0.5", "t=0.7"):
        (tmp_path / job / "a").mkdir(parents=True)
        (tmp_path / job / "a" / "quantification.json").touch()
    with pytest.raises(PandaError, match=r"it holds jobs of a multirun; give the folder of one job: t=0\.5, t=0\.7"):
        find_slides(tmp_path)


def test_browser_gets_the_key_from_a_private_file(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = queue.SimpleQueue[str]()
    pages = []

    def look(server: ViewServer, started: Callable[[], object]) -> None:
        started()
        given = opened.get(timeout=20)
        pages.append(Path(unquote(urlsplit(given).path)))
        assert server.key not in given
        assert server.address in pages[0].read_text()
        assert pages[0].parent.stat().st_mode & 0o077 == 0
        server.close()

    monkeypatch.setattr("webbrowser.open", opened.put)
    monkeypatch.setattr("panda.view.command.serve", look)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert main([str(out)]) == 0
    assert not pages[0].parent.exists()


def test_command_ends_at_ctrl_c_and_imports_no_torch(out: Path) -> None:
    code = (
        "import sys; from panda.view.command import main; status = main(sys.argv[1:]); "
        "print('torch' in sys.modules, status, flush=True)"
    )
    command = [sys.executable, "-c", code, str(out), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said.startswith(f"2 slides of {out}: http://127.0.0.1:")
            port, key = said.split("127.0.0.1:")[1].split("/")[:2]
            server: Any = SimpleNamespace(server_port=int(port), key=key)
            for address in ("", "0/slide.json", "0/slide/0/0_0", "0/map/0/0_0", "0/label/0/2_1"):
                assert ask(server, address)[0] == 200
            process.send_signal(signal.SIGINT)
            assert process.stdout.read() == "False 0\n"
            assert process.wait(20) == 0
        finally:
            process.kill()
