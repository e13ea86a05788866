"""Feature files: our own and those of other programs, each as that program really writes it, and their faults."""

import dataclasses
import json
import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from panda.data.feature_files import (
    FeatureFile,
    FeatureFormat,
    FeatureOrigin,
    find_feature_files,
    name_feature_file,
    read_feature_file,
    read_features,
    read_origin,
    write_feature_file,
)
from panda.errors import ManifestError
from panda.wsi.slide import Slide
from tests.pyramids import write_pyramid

FEATURES = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
COORDS = np.array([[0, 0], [505, 0], [1010, 0], [0, 505], [505, 505], [70001, 90003]], np.int64)
FORMATS: tuple[FeatureFormat, ...] = ("panda", "trident", "stamp", "clam", "slideflow")


def make(**stated: Any) -> FeatureFile:
    origin = {"encoder": "uni2_h", "tile_px0": 505.3, "tile_um": 114.688, "tile_size": 256, "mpp": 0.448}
    origin |= {"overlap": 3, "weights": "ab" * 32, "pooling": "cls", "fingerprint": "cd" * 32, "normalize": "macenko"}
    made = FeatureOrigin.model_validate(origin | {"format": "panda", "dim": 5} | stated)
    return FeatureFile("s.1", FEATURES, COORDS, made, (80000, 100000))


def write_hdf5(path: Path, arrays: dict[str, Any], of_arrays: dict[str, dict[str, Any]], **of_file: Any) -> Path:
    """Write HDF5 in rows of chunks that can grow, as TRIDENT and CLAM do."""
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            stored = file.create_dataset(
                name, values.shape, values.dtype, maxshape=(None, *values.shape[1:]), chunks=(1, *values.shape[1:])
            )
            stored[:] = values
            stored.attrs.update(of_arrays.get(name, {}))
        file.attrs.update(of_file)
    return path


def write_trident(path: Path, dtype: str = "float32", **changed: Any) -> Path:
    of_coords: dict[str, Any] = {
        "patch_size": 256,
        "patch_size_level0": 512,
        "level0_magnification": 40,
        "target_magnification": 20,
    }
    of_coords |= {"overlap": 0, "name": "s", "savetodir": "out", "level0_width": 9, "level0_height": 9}
    of_features = {"name": "s", "savetodir": "out/features_uni_v2", "encoder": "uni_v2"}
    arrays = {"features": FEATURES.astype(dtype), "coords": COORDS} | changed
    return write_hdf5(path, arrays, {"features": of_features, "coords": of_coords})


@pytest.mark.parametrize("format", FORMATS)
def test_feature_file_of_each_format_is_read_as_it_was(tmp_path: Path, format: FeatureFormat) -> None:
    path = name_feature_file(tmp_path, "s.1", format)
    written = make()
    write_feature_file(path, written, format)
    found = read_feature_file(path)
    np.testing.assert_array_equal(found.features, FEATURES)
    np.testing.assert_array_equal(read_features(path), FEATURES)
    np.testing.assert_array_equal(found.coords, COORDS)
    assert found.slide_id == "s.1"
    own: dict[FeatureFormat, FeatureFormat] = {"trident": "panda", "clam": "panda"}
    assert found.origin == written.origin.model_copy(update={"format": own.get(format, format)})
    assert read_origin(path) == (found.origin, 6)
    assert find_feature_files(tmp_path) == {"s.1": path}


def test_own_file_has_what_trident_reads(tmp_path: Path) -> None:
    write_feature_file(path := tmp_path / "s.h5", make())
    with h5py.File(path) as file:
        assert file["features"].chunks is None
        assert dict(file["coords"].attrs) | {"crc32": 0} == {
            "patch_size": 256,
            "patch_size_level0": 505,
            "level0_magnification": pytest.approx(505.3 / 11.4688),
            "target_magnification": pytest.approx(10 / 0.448),
            "overlap": 3,
            "name": "s.1",
            "savetodir": "",
            "level0_width": 80000,
            "level0_height": 100000,
            "crc32": 0,
        }
        assert {"encoder": "uni2_h", "name": "s.1", "weights": "ab" * 32}.items() <= dict(
            file["features"].attrs
        ).items()
        assert file["coords"].dtype == np.int64


def test_stamp_file_has_what_stamp_reads(tmp_path: Path) -> None:
    write_feature_file(path := tmp_path / "s.h5", make(), "stamp")
    with h5py.File(path) as file:
        assert {"feats", "coords"} == set(file)
        np.testing.assert_allclose(file["coords"][:], COORDS * (114.688 / 505.3), rtol=1e-6)
        of_file = {"extractor": "uni2_h", "unit": "um", "tile_size_um": 114.688, "tile_size_px": 256}
        assert dict(file.attrs) == of_file | {"feat_type": "tile", "panda_features": 1}


def test_stamp_file_without_mpp_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"s\.h5: STAMP needs coordinates in µm.*give mpp_override"):
        write_feature_file(tmp_path / "s.h5", make(tile_um=None, mpp=None), "stamp")
    assert not list(tmp_path.iterdir())


def test_clam_folder_has_what_clam_reads(tmp_path: Path) -> None:
    write_feature_file(name_feature_file(tmp_path, "s", "clam"), make(), "clam")
    torch.testing.assert_close(torch.load(tmp_path / "pt_files/s.pt"), torch.from_numpy(FEATURES))
    with h5py.File(tmp_path / "h5_files/s.h5") as file:
        assert (file["coords"].dtype, file["features"].dtype) == (np.int32, np.float32)
        np.testing.assert_array_equal(file["coords"][:], COORDS)
    os.remove(tmp_path / "h5_files/s.h5")
    alone = read_feature_file(find_feature_files(tmp_path)["s"])
    np.testing.assert_array_equal(alone.features, FEATURES)
    assert alone.coords is None
    assert alone.origin == FeatureOrigin(format="clam", dim=5)


def test_slideflow_folder_has_what_slideflow_reads(tmp_path: Path) -> None:
    write_feature_file(name_feature_file(tmp_path, "s", "slideflow"), make(), "slideflow")
    torch.testing.assert_close(torch.load(tmp_path / "s.pt"), torch.from_numpy(FEATURES))
    with np.load(tmp_path / "s.index.npz") as index:
        np.testing.assert_array_equal(index["arr_0"], COORDS + 252)
    config = json.loads((tmp_path / "bags_config.json").read_text())
    assert (config["tile_px"], config["tile_um"], config["num_features"]) == (256, 115, 5)
    assert config["extractor"]["class"].split(".")[-1] == "uni2_h"
    with pytest.raises(ManifestError, match=r"bags_config\.json: is of features by another encoder"):
        write_feature_file(tmp_path / "t.pt", make(encoder="uni"), "slideflow")


def test_trident_file_is_read(tmp_path: Path) -> None:
    found = read_feature_file(write_trident(tmp_path / "s.h5"))
    origin = {"encoder": "uni_v2", "tile_px0": 512, "tile_size": 256, "mpp": 0.5, "tile_um": 128, "overlap": 0}
    assert found.origin == FeatureOrigin.model_validate(origin | {"format": "trident", "dim": 5})
    np.testing.assert_array_equal(found.coords, COORDS)
    np.testing.assert_array_equal(found.features, FEATURES)


def test_clam_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "h5_files").mkdir()
    path = write_hdf5(tmp_path / "h5_files/s.h5", {"features": FEATURES, "coords": COORDS.astype(np.int32)}, {})
    found = read_feature_file(path)
    assert found.origin == FeatureOrigin(format="clam", dim=5)
    np.testing.assert_array_equal(found.coords, COORDS)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = np.full((640, 640, 3), 255, np.uint8)
    return write_pyramid(tmp_path_factory.mktemp("slide") / "s.tiff", image, mpp=0.25)


@pytest.mark.parametrize("version", ["2.5.0", "2.0.0"])
def test_stamp_file_is_read_and_placed_on_its_slide(tmp_path: Path, slide: Path, version: str) -> None:
    side = {"tile_size_um": 128.0, "tile_size_px": 256} if version == "2.5.0" else {"tile_size": 128.0}
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["coords"] = (COORDS[:5] * 0.25).astype(np.float32)
        file["feats"] = FEATURES[:5].astype(np.float16)
        file.attrs.update({"stamp_version": version, "extractor": "uni2", "unit": "um", "feat_type": "tile"} | side)
    found = read_feature_file(tmp_path / "s.h5")
    known: dict[str, Any] = {"tile_size": 256, "mpp": 0.5} if version == "2.5.0" else {}
    assert found.origin == FeatureOrigin(format="stamp", dim=5, encoder="uni2", tile_um=128, **known)
    np.testing.assert_array_equal(found.features, FEATURES[:5].astype(np.float16).astype(np.float32))
    assert found.coords is None, "level-0 px need µm/px of the slide"
    with Slide.open(slide) as opened:
        placed = found.locate_tiles(opened)
    assert placed is not None
    np.testing.assert_array_equal(placed[0], COORDS[:5])
    assert placed[1] == 512


def test_stamp_file_without_attributes_has_no_places(tmp_path: Path, slide: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["coords"], file["feats"] = COORDS.astype(np.float32), FEATURES
    found = read_feature_file(tmp_path / "s.h5")
    with Slide.open(slide) as opened:
        assert (found.coords, found.places, found.locate_tiles(opened)) == (None, None, None)
    assert found.origin == FeatureOrigin(format="stamp", dim=5)


@pytest.mark.parametrize(("tile_um", "mpp"), [(128, 0.5), ("20x", 0.5), (None, None)])
def test_slideflow_bag_is_read_and_placed(tmp_path: Path, slide: Path, tile_um: Any, mpp: float | None) -> None:
    torch.save(torch.from_numpy(FEATURES), tmp_path / "s.pt")
    np.savez(tmp_path / "s.index", arr_0=COORDS + 256)
    extractor = {"class": "slideflow.model.extractors.uni.UNIFeatures", "kwargs": {}}
    config = {"extractor": extractor, "normalizer": None, "num_features": 5, "tile_px": 256, "tile_um": tile_um}
    (tmp_path / "bags_config.json").write_text(json.dumps(config))
    found = read_feature_file(tmp_path / "s.pt")
    origin = {"encoder": "UNIFeatures", "tile_size": 256, "mpp": mpp, "tile_um": mpp and 128.0}
    assert found.origin == FeatureOrigin.model_validate(origin | {"format": "slideflow", "dim": 5})
    with Slide.open(slide) as opened:
        placed = found.locate_tiles(opened)
    if mpp is None:
        assert placed is None
    else:
        assert placed is not None
        np.testing.assert_array_equal(placed[0], COORDS)


def test_feature_file_is_placed_on_the_part_that_is_the_slide(slide: Path) -> None:
    with Slide.open(slide) as opened:
        opened.level_origins = ((100, 20), *opened.level_origins[1:])
        placed = make().locate_tiles(opened)
    assert placed is not None
    np.testing.assert_array_equal(placed[0], COORDS - [100, 20])


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_feature_file_any_floating_point_is_read(tmp_path: Path, dtype: str) -> None:
    features = read_features(write_trident(tmp_path / "s.h5", dtype))
    np.testing.assert_array_equal(features, FEATURES.astype(dtype).astype(np.float32))
    assert features.dtype == np.float32
    torch.save(torch.from_numpy(FEATURES).bfloat16(), tmp_path / "s.pt")
    np.testing.assert_allclose(read_features(tmp_path / "s.pt"), FEATURES, rtol=1e-2)


def test_feature_file_leading_axis_of_one_is_dropped(tmp_path: Path) -> None:
    path = write_trident(tmp_path / "s.h5", features=FEATURES[None], coords=COORDS[None])
    found = read_feature_file(path)
    np.testing.assert_array_equal(found.features, FEATURES)
    np.testing.assert_array_equal(found.coords, COORDS)
    assert read_origin(path)[1] == 6


def spoil(value: float) -> Any:
    features = FEATURES.copy()
    features[3, 1] = value
    return features


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"features": spoil(np.nan)}, "feature 1 of tile 3 is nan; encode the slide again, in fp32"),
    "inf": ({"features": spoil(np.inf).astype(np.float16)}, "feature 1 of tile 3 is inf"),
    "integers": ({"features": np.ones((6, 5), np.int64)}, "features are int64, but must be floating point"),
    "one vector": ({"features": FEATURES[0]}, r"features are \(5,\), but must be \(tiles, features of a tile\)"),
    "two bags": ({"features": np.stack([FEATURES, FEATURES])}, r"features are \(2, 6, 5\), but must be"),
    "no tiles": ({"features": FEATURES[:0]}, r"features are \(0, 5\): the slide has no tiles; leave it out"),
    "short coords": ({"coords": COORDS[:5]}, r"coords are \(5, 2\), but must be \(6, 2\) for 6 tiles"),
    "nan coords": ({"coords": np.where(COORDS == 505, np.nan, COORDS)}, "coords are not finite"),
    "large coords": ({"coords": np.where(COORDS == 505, 1e300, COORDS)}, "coords are not finite, or too large"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_feature_file_with_a_fault_is_refused(tmp_path: Path, fault: str) -> None:
    changed, message = FAULTS[fault]
    with pytest.raises(ManifestError, match=rf"s\.h5: {message}"):
        read_feature_file(write_trident(tmp_path / "s.h5", **changed))


def test_feature_file_not_finite_is_not_written(tmp_path: Path) -> None:
    content = make()
    with pytest.raises(ManifestError, match="feature 1 of tile 3 is nan"):
        write_feature_file(tmp_path / "s.h5", FeatureFile("s", spoil(np.nan), COORDS, content.origin))
    assert not list(tmp_path.iterdir())


def test_feature_file_of_a_whole_slide_is_refused(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "s.h5", {"feats": FEATURES[:1]}, {}, feat_type="patient", encoder="cobra")
    with pytest.raises(ManifestError, match=r"s\.h5: has features of a patient \(feat_type\)"):
        read_feature_file(path)


def test_feature_file_impossible_attribute_is_refused(tmp_path: Path) -> None:
    path = write_trident(tmp_path / "s.h5")
    with h5py.File(path, "a") as file:
        file["coords"].attrs["patch_size_level0"] = -512
    with pytest.raises(
        ManifestError, match=r"s\.h5: tile_px0 is -512, but must be greater than 0; make the file again"
    ):
        read_origin(path)


def test_feature_file_of_another_version_is_refused(tmp_path: Path) -> None:
    write_feature_file(tmp_path / "s.h5", make())
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file.attrs["panda_features"] = 2
    for read in (read_origin, read_feature_file):
        with pytest.raises(ManifestError, match=r"s\.h5: panda_features is 2, but this program reads 1"):
            read(tmp_path / "s.h5")


@pytest.mark.parametrize(
    ("name", "value"), [("target_magnification", 0), ("target_magnification", "20x"), ("patch_size", np.inf)]
)
def test_trident_file_impossible_scale_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    path = write_trident(tmp_path / "s.h5")
    with h5py.File(path, "a") as file:
        file["coords"].attrs[name] = value
    with pytest.raises(ManifestError, match=r"s\.h5: "):
        read_origin(path)


@pytest.mark.parametrize("size", [0, np.inf, np.nan])
def test_stamp_file_impossible_size_is_refused(tmp_path: Path, size: float) -> None:
    path = write_hdf5(tmp_path / "s.h5", {"feats": FEATURES}, {}, tile_size_um=256.0, tile_size_px=size)
    with pytest.raises(ManifestError, match=r"s\.h5: features cannot be read"):
        read_origin(path)


def test_feature_file_attribute_with_several_values_is_left_out(tmp_path: Path) -> None:
    path = write_trident(tmp_path / "s.h5")
    with h5py.File(path, "a") as file:
        file["coords"].attrs["level_dim"] = [40000, 20000]  # as CLAM's files of coordinates have it
    assert read_origin(path)[0].tile_size == 256


@pytest.mark.parametrize("name", ["features", "coords"])
def test_feature_file_with_texts_in_an_array_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s.h5"
    with h5py.File(path, "w") as file:
        for each, values in (("features", FEATURES), ("coords", COORDS)):
            texts = values.astype(str).astype(object)
            file.create_dataset(
                each, data=texts if each == name else values, dtype=h5py.string_dtype() if each == name else None
            )
    with pytest.raises(ManifestError, match=r"s\.h5: features cannot be read .*holds texts or references"):
        read_feature_file(path)


@pytest.mark.parametrize("tensor", [torch.from_numpy(FEATURES.T.copy()).T, torch.nn.Parameter(torch.tensor(FEATURES))])
def test_feature_tensor_of_any_layout_is_read(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save(tensor, tmp_path / "s.pt")
    np.testing.assert_array_equal(read_features(tmp_path / "s.pt"), FEATURES)


def test_slideflow_bag_texts_as_coordinates_are_refused(tmp_path: Path) -> None:
    write_feature_file(tmp_path / "s.pt", make(), "slideflow")
    np.savez(tmp_path / "s.index.npz", arr_0=np.full((6, 2), "a"))
    with pytest.raises(ManifestError, match=r"s\.pt: features cannot be read .*; make the file again"):
        read_feature_file(tmp_path / "s.pt")


def write_text(path: Path) -> None:
    path.write_text("no features")


def write_other_hdf5(path: Path) -> None:
    write_hdf5(path, {"coords": COORDS}, {})


def write_truncated(path: Path) -> None:
    write_trident(path)
    os.truncate(path, path.stat().st_size // 2)


def write_unfinished(path: Path) -> None:
    """Write arrays without their values, as a program leaves them that is killed in between."""
    with h5py.File(path, "w") as file:
        file.create_dataset("features", (6, 5), "float32", chunks=(1, 5))
        file["coords"] = COORDS


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_text, "features cannot be read"),
        (write_other_hdf5, "has neither `features` nor `feats`"),
        (write_truncated, "features cannot be read .*truncated file"),
        (write_unfinished, "features cannot be read .*not written to its end"),
        (lambda _: None, "there is no such file"),
    ],
)
def test_feature_file_unreadable_hdf5_is_refused(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    write(path := tmp_path / "s.h5")
    with pytest.raises(ManifestError, match=rf"s\.h5: {message}"):
        read_features(path)


ODD_BAGS: dict[str, tuple[bytes | dict[str, Any], Any]] = {
    "truncated index": (b"PK\x03\x04 and no more", None),
    "list as origin": ({"origin": np.array("[1]")}, None),
    "two origins": ({"origin": np.array(["{}", "{}"])}, None),
    "text as side": ({"arr_0": COORDS}, {"tile_px": 256, "tile_um": "large"}),
    "side of 0": ({"arr_0": COORDS}, {"tile_px": 256, "tile_um": "0x"}),
    "no px": ({"arr_0": COORDS}, {"tile_px": 0, "tile_um": 128}),
}


@pytest.mark.parametrize("fault", ODD_BAGS)
def test_slideflow_bag_with_a_fault_is_refused(tmp_path: Path, fault: str) -> None:
    index, config = ODD_BAGS[fault]
    torch.save(torch.from_numpy(FEATURES), path := tmp_path / "s.pt")
    if isinstance(index, bytes):
        (tmp_path / "s.index.npz").write_bytes(index)
    else:
        np.savez(tmp_path / "s.index", **index)
    if config:
        (tmp_path / "bags_config.json").write_text(json.dumps(config))
    with pytest.raises(ManifestError, match=r"s\.pt: "):
        read_origin(path)


class Trap:
    """A pickled object that would make a file when it is read."""

    def __reduce__(self) -> Any:
        return open, ("trapped", "w")


@pytest.mark.parametrize("content", [FEATURES, Trap(), {"features": torch.zeros(2, 2)}, b"no features"])
def test_feature_tensor_other_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path("s.pt").write_bytes(content)
    else:
        torch.save(content, "s.pt")
    with pytest.raises(ManifestError, match=r"s\.pt: (holds pickled objects|holds a dict|features cannot be read)"):
        read_features(tmp_path / "s.pt")
    Path("s.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(ManifestError, match=r"s\.pt: (holds pickled objects|features cannot be read)"):
        read_origin(tmp_path / "s.pt")
    assert not Path("trapped").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_feature_file_changed_byte_is_found(tmp_path: Path, format: FeatureFormat) -> None:
    write_feature_file(path := name_feature_file(tmp_path, "s", format), make(), format)
    np.testing.assert_array_equal(read_features(path), FEATURES)
    data = path.read_bytes()
    place = data.index(FEATURES[2].tobytes())
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(ManifestError, match="checksum"):
        read_features(path)


def test_feature_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    """The same process reads a file of another length and one of another program under the same name."""
    path, content = tmp_path / "s.h5", make()
    write_feature_file(path, content)
    for _ in range(2):
        np.testing.assert_array_equal(read_features(path), FEATURES)
    for count in (4, 6):  # of which one begins as the other
        write_feature_file(path, FeatureFile("s.1", FEATURES[:count], COORDS[:count], content.origin))
        for _ in range(2):
            np.testing.assert_array_equal(read_features(path), FEATURES[:count])
    write_trident(path, features=2 * FEATURES)
    for _ in range(2):
        np.testing.assert_array_equal(read_features(path), 2 * FEATURES)
    path.unlink()
    with pytest.raises(ManifestError, match="there is no such file"):
        read_features(path)


def test_feature_file_in_folder_without_write_permission(tmp_path: Path) -> None:
    write_feature_file(path := tmp_path / "s.h5", make())
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        before = path.stat()
        np.testing.assert_array_equal(read_features(path), FEATURES)
        assert path.stat().st_mtime_ns == before.st_mtime_ns
    finally:
        tmp_path.chmod(0o755)


def test_feature_files_of_one_slide_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "features_uni").mkdir()
    (tmp_path / "features_virchow").mkdir()
    write_trident(tmp_path / "features_uni/s.h5")
    write_trident(tmp_path / "features_virchow/s.h5")
    with pytest.raises(ManifestError, match=r"such as s: features_uni/s\.h5 and features_virchow/s\.h5\. Give the"):
        find_feature_files(tmp_path)
    torch.save(torch.zeros(2, 2), tmp_path / "features_uni/s.pt")
    with pytest.raises(ManifestError, match="1 slides have two files"):
        find_feature_files(tmp_path / "features_uni")


def test_feature_files_are_found_in_folders_of_each_program(tmp_path: Path) -> None:
    for name in ("job/20x/features_uni/a.h5", "job/20x/patches/a_patches.h5", "stamp/uni/case/b.h5", "stamp/uni/c.h5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_trident(tmp_path / name)
    assert find_feature_files(tmp_path / "job") == {"a": tmp_path / "job/20x/features_uni/a.h5"}
    assert find_feature_files(tmp_path / "stamp") == {
        "b": tmp_path / "stamp/uni/case/b.h5",
        "c": tmp_path / "stamp/uni/c.h5",
    }
    for folder in ("absent", "job/20x/patches/empty"):
        with pytest.raises(ManifestError, match=r"there is no such folder"):
            find_feature_files(tmp_path / folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"empty: has no feature files \(\*\.h5 or \*\.pt\)"):
        find_feature_files(tmp_path / "empty")


def test_feature_origins_of_one_encoder_by_other_names_fit() -> None:
    own, other = make().origin, FeatureOrigin(format="trident", dim=5, encoder="uni_v2", mpp=0.46)
    assert own.describe_difference(other) == []
    assert own.describe_difference(other.model_copy(update={"encoder": "uni_v1", "dim": 6, "mpp": 0.25})) == [
        "dim is 5, but 6 in the other",
        "encoder is uni2_h, but uni_v1 in the other",
        "mpp is 0.448 µm/px, but 0.25 µm/px in the other",
    ]
    assert own.describe_difference(make(normalize=None).origin) == [
        "normalize is macenko, but none in the other",
    ]


def test_feature_files_are_read_in_forked_processes(tmp_path: Path) -> None:
    """Files are read by processes that were forked after their parent had read one."""
    paths = []
    for number in range(4):
        write_feature_file(path := tmp_path / f"{number}.h5", make())
        paths.append(path)
    read_features(paths[0])
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for features in pool.map(read_features, paths):
            np.testing.assert_array_equal(features, FEATURES)


def test_feature_file_on_a_full_disk_raises_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("panda.files.os.fsync", full)
    for format in FORMATS:
        with pytest.raises(OSError, match="No space left on device"):
            write_feature_file(name_feature_file(tmp_path, "s", format), make(), format)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("how", ["external", "soft", "virtual"])
def test_feature_file_array_elsewhere_is_refused(tmp_path: Path, how: str) -> None:
    """An array of another file changes without notice, and one behind a link may be anything."""
    with h5py.File(tmp_path / "real.h5", "w") as file:
        file["features"] = file["own"] = FEATURES
    with h5py.File(tmp_path / "s.h5", "w") as file:
        if how == "external":
            file["features"] = h5py.ExternalLink("real.h5", "/features")
        elif how == "soft":
            file["own"], file["features"] = FEATURES, h5py.SoftLink("/own")
        else:
            layout = h5py.VirtualLayout(FEATURES.shape, np.float32)
            layout[:] = h5py.VirtualSource(tmp_path / "real.h5", "features", FEATURES.shape)
            file.create_virtual_dataset("features", layout)
    with pytest.raises(
        ManifestError, match=r"s\.h5: .*features is a link or in another file; copy the array into this"
    ):
        read_features(tmp_path / "s.h5")


def test_feature_files_of_linked_folders_are_found_once(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for folder, slide_id in ((own, "a"), (other, "b")):
        folder.mkdir()
        write_feature_file(folder / f"{slide_id}.h5", dataclasses.replace(make(), slide_id=slide_id))
    (own / "linked").symlink_to(other)
    (own / "twice").symlink_to(other)
    (own / "itself").symlink_to(own)
    assert find_feature_files(own) == {"a": own / "a.h5", "b": own / "linked" / "b.h5"}
