"""Which files of a folder are one slide, and which are none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from panda.app.inference_slides import find_slides
from panda.data.slide_files import sort_slide_files
from panda.errors import ConfigError
from panda.wsi.slide import Slide
from tests.dicoms import write_dicom_series

PIXELS = np.full((64, 96, 3), 200, np.uint8)


def name_all(paths: object) -> list[str]:
    return [path.name for path in paths]  # type: ignore[attr-defined]


def test_sort_slide_files_dicom_series_is_one_slide(tmp_path: Path) -> None:
    for uid in ("1.2.3", "1.2.4"):
        write_dicom_series(tmp_path, [PIXELS, PIXELS[::2, ::2].copy()], uid=uid)
    (tmp_path / "broken.dcm").write_bytes(b"no DICOM")
    files = sort_slide_files(tmp_path.iterdir())
    assert name_all(files.slides) == ["1_2_3_0.dcm", "1_2_4_0.dcm", "broken.dcm"]
    assert files.describe_passed_over() == "2 further files of the same slides (2 .dcm)"


def test_sort_slide_files_dicom_label_and_thumbnail_are_members(tmp_path: Path) -> None:
    write_dicom_series(tmp_path, [PIXELS, PIXELS[::2, ::2].copy()])
    for flavor in ("LABEL", "OVERVIEW", "THUMBNAIL"):
        write_dicom_series(tmp_path, [PIXELS[:32, :32].copy()], flavor=flavor)
    files = sort_slide_files(tmp_path.iterdir())
    assert len(files.slides) == 1
    assert files.describe_passed_over() == "4 further files of the same slides (4 .dcm)"
    for path in (*files.slides, *files.members):  # each of them opens the slide, and none its own picture
        assert Slide.open(path).level_dimensions == ((96, 64), (48, 32))


def test_find_slides_counts_files_that_are_no_slides(tmp_path: Path) -> None:
    for name in ("a.tiff", "b.SVS", "._a.tiff", ".DS_Store", "notes.txt", "more.txt", "README"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "c.mrxs").mkdir()
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "gone.ome.tiff").symlink_to(tmp_path / "nowhere")
    for given in (tmp_path, tmp_path / "*"):
        found = find_slides(str(given))
        # what cannot be opened is a failure of its own and not passed over
        assert name_all(found.paths) == ["a.tiff", "b.SVS", "c.mrxs", "gone.ome.tiff", "pipe.dcm"]
        dots = "2 hidden, " * (given == tmp_path)
        assert found.passed_over == f"{5 if dots else 3} files that are no slides ({dots}2 .txt, 1 no suffix)"
    with pytest.raises(ConfigError, match=r"no slide found \(passed over: 2 files that are no slides \(2 \.txt\)\)"):
        find_slides(str(tmp_path / "*.txt"))


def test_find_slides_list_has_all_faults_and_is_not_empty() -> None:
    with pytest.raises(ConfigError, match=r"slides=\[\] names no slide; give"):
        find_slides([])
    with pytest.raises(ConfigError) as refused:
        find_slides(["a", "b"])
    assert [fault.partition(";")[0] for fault in refused.value.faults] == [
        f"slides={name}: no slide found" for name in "ab"
    ]
    assert str(refused.value).endswith("quote a path that has commas: 'slides=\"a,b\"'")


def test_find_slides_several_texts_count_a_slide_once(tmp_path: Path) -> None:
    for name in ("a/x.tiff", "b/y.svs", "b/x.tiff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    given = [str(tmp_path / "a"), str(tmp_path / "b" / "y.svs"), str(tmp_path / "a" / "x.tiff")]
    assert name_all(find_slides(given).paths) == ["x.tiff", "y.svs"]
    (tmp_path / "s.csv").write_text("slide_id\ny\n")
    assert find_slides(str(tmp_path / "s.csv")).paths == [tmp_path / "y.tiff"]
    with pytest.raises(ConfigError, match="several slides are named 'x'"):
        find_slides([str(tmp_path / "a"), str(tmp_path / "b")])


def test_find_slides_table_of_dicom_instances_is_one_slide(tmp_path: Path) -> None:
    files = write_dicom_series(tmp_path, [PIXELS, PIXELS[::2, ::2].copy()])
    (tmp_path / "s.csv").write_text("path\nabsent.tiff\n" + "".join(f"{path.name}\n" for path in reversed(files)))
    found = find_slides(str(tmp_path / "s.csv"))
    assert name_all(found.paths) == ["absent.tiff", "1_2_3_0.dcm"]


@pytest.mark.parametrize("companion", [False, True])
def test_sort_slide_files_ome_set_is_one_slide(tmp_path: Path, companion: bool) -> None:
    names = [f"z_{number}.ome.tif" for number in (1, 0)]
    data = "".join(
        f'<TiffData FirstC="{n}"><UUID FileName="{name}">x</UUID></TiffData>' for n, name in enumerate(names)
    )
    whole = f"<OME><Image><Pixels>{data}</Pixels></Image></OME>"
    (tmp_path / "z.companion.ome").write_text(whole)
    text = '<OME><BinaryOnly MetadataFile="z.companion.ome" UUID="x"/></OME>' if companion else whole
    for name in names:
        tifffile.imwrite(tmp_path / name, PIXELS, photometric="rgb", description=text, metadata=None)
    tifffile.imwrite(tmp_path / "alone.ome.tiff", PIXELS, photometric="rgb")
    files = sort_slide_files(tmp_path.iterdir())
    assert name_all(files.slides) == ["alone.ome.tiff", "z_1.ome.tif"]
    assert name_all(files.members) == ["z.companion.ome"] * companion + ["z_0.ome.tif"]
    assert name_all(files.others) == ["z.companion.ome"] * (not companion)


def test_sort_slide_files_vms_set_is_one_slide(tmp_path: Path) -> None:
    listed = "NoLayers=1\nImageFile=s.jpg\nImageFile(1,0)=s(1,0).jpg\nMapFile=s_map2.jpg\nOptimisationFile=s.opt\n"
    (tmp_path / "s.vms").write_text(f"[Virtual Microscope Specimen]\n{listed}")
    for name in ("s.jpg", "s(1,0).jpg", "s_map2.jpg", "s.opt", "other.jpg"):
        (tmp_path / name).write_bytes(b"x")
    files = sort_slide_files(tmp_path.iterdir())
    assert name_all(files.slides) == ["s.vms"]
    assert (
        files.describe_passed_over()
        == "4 further files of the same slides (3 .jpg, 1 .opt), 1 files that are no slides (1 .jpg)"
    )
