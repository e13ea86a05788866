"""Run the commands of a user: train.py and infer.py on small drawn slides."""

import gc
import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from panda.files import hold_lock
from panda.inference.slide_mapper import SlideMapper
from panda.report.job_end import JobEnd
from panda.report.run_summary import parse_summary
from panda.tasks.checkpoint import read_checkpoint
from panda.tasks.metadata import SegmentationMetadata
from panda.tasks.segmentation import SegmentationTask
from panda.tasks.threshold import ThresholdChoice
from tests.integration.entry_points import REPOSITORY, run_entry_point, table
from tests.wandb_log import OfflineRun

TINY = (
    "data.draw.slides=10",
    "data.draw.width=1024",
    "data.draw.height=768",
    "data.patch_size=64",
    "data.batch_size=8",
    "data.num_workers=0",
    "model.encoder_name=resnet18",
    "model.decoder_channels=[16,16,8,8,8]",
    "task.overlap=0.25",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "task.panels=2",
    "task.views_every=0",
)
DEEPLAB = ("model=deeplabv3", "model.decoder_channels=16")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def trained_run(home: Path) -> Path:
    by_provider = ("criterion=cost", "cost_ratio=4", "threshold_per_provider=true")
    shown = ("task.views_every=1", "task.views=2", "logger.tags=[mine]")
    done = run_entry_point("train", home, *TINY, *by_provider, *shown, "name=first")
    assert done.returncode == 0, done.stderr[-3000:]
    return home / "runs" / "segmentation" / "first"


@pytest.fixture
def offline_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise OSError("the network is away")

    monkeypatch.setattr("timm.models._builder.load_pretrained", away)
    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", away)


def list_slides(home: Path) -> list[Path]:
    return sorted((home / "data" / "synthetic" / "train_images").glob("*.tiff"))


def test_train_run_folder_holds_documented_files(trained_run: Path) -> None:
    assert "epoch 1 of 1: train/dice" in (trained_run / "run.log").read_text()
    for name in (
        "config.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "metrics.csv",
        "summary.json",
        "threshold_curve.csv",
        "threshold_curve.png",
        "calibration.csv",
        "calibration.png",
        "panels",
        "views/epoch_000_fixed.png",
        "views/epoch_000_telling.png",
        "test_slides.csv",
        "errors.csv",
        "failures.csv",
        "report.html",
        "wandb",
    ):
        assert (trained_run / name).exists(), name
    summary = json.loads((trained_run / "summary.json").read_text())
    assert summary["task"] == "segmentation"
    assert 0 <= summary["threshold"] < 1
    assert parse_summary(summary)[1] == []
    assert summary["val"]["slides"] > 0
    assert list((trained_run / "panels").glob("patches*.png"))
    header = table(trained_run / "metrics.csv")[0].keys()
    assert {"train/loss", "train/dice", "val/loss", "val/dice"} <= {key.removesuffix("_epoch") for key in header}
    assert "slides/" in (trained_run / "report.html").read_text().partition('id="errors"')[2].partition("#x=")[0]
    for row in table(trained_run / "test_slides.csv"):
        left = {path.name for path in (trained_run / "slides" / row["slide_id"]).iterdir()}
        assert {"canvas.zarr", "heatmap.png", "overlay.png", "quantification.json", "regions.geojson"} <= left


def test_train_wandb_dashboard_shows_run(trained_run: Path) -> None:
    run = OfflineRun(trained_run)
    assert {"model=unet", "loss=bce_dice", "data=synthetic", "mine"} <= set(run.about.tags)
    assert run.config["model/encoder_name"] == "resnet18"
    assert run.config["data/draw/slides"] == 10
    assert run.config["software/torch"] == version("torch")
    assert not any(isinstance(value, dict) for key, value in run.config.items() if key != "_wandb")
    assert run.steps == {"*": "epoch", "train/loss_step": "trainer/global_step", "trainer/global_step": ""}
    epochs = [row for row in table(trained_run / "metrics.csv") if row["val/dice"]]
    for key in ("train/loss", "val/dice", "lr-AdamW"):
        logged = {item["epoch"]: item[key] for item in run.find_logged(key)}
        assert logged.keys() == {int(row["epoch"]) for row in epochs}, key
    for key in ("views/fixed_patches", "views/telling_patches"):
        for item in run.find_logged(key):
            assert item["epoch"] in logged
            for masks in item[key]["all_masks"]:
                assert masks.keys() == {"prediction", "ground_truth"}
                assert all((run.folder / "files" / mask["path"]).is_file() for mask in masks.values())
    labels = run.config["_wandb"]["mask/class_labels"]
    assert labels["views/fixed_patches_wandb_delimeter_prediction"]["value"] == {"0": "no cancer", "1": "cancer"}
    assert run.config["_wandb"]["visualize"]["threshold_curve"]["panel_config"]["panelDefId"] == "wandb/lineseries/v0"
    slides, rows = run.table("test_slides"), table(trained_run / "test_slides.csv")
    assert [row[0] for row in slides["data"]] == [row["slide_id"] for row in rows]
    for row in slides["data"]:
        shown = dict(zip(slides["columns"], row, strict=True))
        assert all(max(shown[name]["width"], shown[name]["height"]) == 192 for name in ("thumbnail", "heatmap"))
        assert isinstance(shown["tumor_mm2"], float)
    models = {alias: a for a in run.artifacts if a.type == "model" for alias in a.aliases}
    for alias in ("best", "last"):
        (content,) = models[alias].manifest.contents
        assert Path(content.local_path) == trained_run / "checkpoints" / f"{alias}.ckpt"
    size = (trained_run / "checkpoints" / "best.ckpt").stat().st_size
    assert sum(path.stat().st_size for path in (trained_run / "wandb").rglob("*") if path.is_file()) < size / 2


def test_train_checkpoint_holds_choices(trained_run: Path) -> None:
    summary = json.loads((trained_run / "summary.json").read_text())
    metadata = read_checkpoint(trained_run / "checkpoints" / "best.ckpt", SegmentationMetadata).metadata
    assert metadata.threshold == ThresholdChoice.model_validate(summary["threshold_choice"])
    assert metadata.calibration is not None
    calibration = metadata.calibration.model_dump()
    assert {key: summary["calibration"][key] for key in calibration} == calibration
    choice = metadata.threshold
    assert (choice.criterion, choice.cost_ratio) == ("cost", 4)
    assert choice.by_provider
    rows = table(trained_run / "test_slides.csv")
    for row in rows:
        facts = json.loads((trained_run / "slides" / row["slide_id"] / "quantification.json").read_text())
        assert facts["threshold"] == choice.value_for(row["provider"])
    assert {"cost", *(f"cost_{name}" for name in choice.by_provider)} <= set(
        table(trained_run / "threshold_curve.csv")[0]
    )
    for heading in ("By provider", "By grade", "Choice of threshold", "Calibration"):
        assert f">{heading}</h2>" in (trained_run / "report.html").read_text()


def test_infer_continues_past_bad_slide(home: Path, trained_run: Path) -> None:
    folder = home / "mixed"
    folder.mkdir()
    good = list_slides(home)[0]
    (folder / good.name).symlink_to(good)
    (folder / "broken.tiff").write_bytes(b"II*\0 this is no slide")
    done = run_entry_point(
        "infer", home, f"checkpoint={trained_run}/checkpoints/best.ckpt", f"slides={folder}", "output=out/mixed"
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert [row["slide_id"] for row in table(home / "out/mixed/failures.csv")] == ["broken"]
    assert [row["slide_id"] for row in table(home / "out/mixed/quantification.csv")] == [good.stem]
    left = {path.name for path in (home / "out/mixed" / good.stem).iterdir()}
    assert {
        "canvas.zarr",
        "heatmap.png",
        "overlay.png",
        "quantification.json",
        "regions.geojson",
        "probability.ome.tiff",
        "slide.html",
    } <= left
    assert (home / "out/mixed/report.html").is_file()


def test_infer_threshold_sweep_maps_each_slide_once(home: Path, trained_run: Path) -> None:
    slide = list_slides(home)[1]
    arguments = (f"checkpoint={trained_run}/checkpoints/best.ckpt", f"slides={slide}", "output=out/sweep")
    done = run_entry_point("infer", home, "-m", "threshold=0.001,0.999", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    canvases = list((home / "out/sweep").rglob("canvas.zarr"))
    assert canvases == [home / "out/sweep" / slide.stem / "canvas.zarr"]
    found = {
        folder.name: float(table(folder / "quantification.csv")[0]["tumor_px"])
        for folder in (home / "out/sweep").glob("threshold=*")
    }
    assert set(found) == {"threshold=0.001", "threshold=0.999"}
    assert found["threshold=0.001"] > found["threshold=0.999"]
    assert (home / "out/sweep/sweep.html").is_file()
    first, last = table(home / "out/sweep/sweep.csv")
    assert float(first["median_tumor_percent_of_tissue"]) > float(last["median_tumor_percent_of_tissue"])
    assert len(table(home / "out/sweep/sweep_slides.csv")) == 2


def test_train_interrupted_run_resumes_in_its_folder(home: Path, trained_run: Path) -> None:
    before = table(trained_run / "metrics.csv")
    done = run_entry_point("train", home, f"resume={trained_run}/checkpoints/last.ckpt", "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr[-3000:]
    after = table(trained_run / "metrics.csv")
    epochs = {row["epoch"] for row in after if row["epoch"]}
    assert epochs == {"0", "1"}
    assert len(after) > len(before)
    assert json.loads((trained_run / "summary.json").read_text())["epochs"] == 2
    # the last epoch, whether or not it was the best
    assert torch.load(trained_run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1
    done = run_entry_point("train", home, f"resume={trained_run}/checkpoints/last.ckpt", "data.seed=1")
    assert done.returncode == 1
    assert "data.seed=1" in done.stderr


def test_train_grading_on_guided_tiles_then_infer_grades(
    home: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mappers: list[weakref.ref[SlideMapper]] = []

    def make_mapper(*given: Any) -> SlideMapper:
        mapper = SlideMapper(*given)
        mappers.append(weakref.ref(mapper))
        return mapper

    monkeypatch.setattr("panda.app.slide_grading.SlideMapper", make_mapper)
    shutil.copytree(home / "data" / "synthetic", home / "to_grade")
    broken = table(trained_run / "test_slides.csv")[0]["slide_id"]
    (home / "to_grade" / "train_images" / f"{broken}.tiff").write_bytes(b"II*\0 this is no slide")
    done = run_entry_point(
        "train",
        home,
        *(o for o in TINY if not o.startswith(("model.", "task.", "data.batch_size", "data.draw"))),
        "data=panda",
        "data.root=to_grade",
        "task=grading",
        "name=first",
        f"segmentation_checkpoint={trained_run}/checkpoints/best.ckpt",
        "tiles.k=4",
        "model.encoder_weights=segmentation",
    )
    assert done.returncode == 1, done.stderr[-3000:]
    gc.collect()
    assert {mapper() for mapper in mappers} == {None}, "a finished job keeps its networks"
    run = home / "runs" / "grading" / "first"
    assert [row["slide_id"] for row in table(run / "failures.csv")] == [broken]
    assert len(list((home / "patches").glob("canvases-*/*.zarr"))) == 9
    summary = json.loads((run / "summary.json").read_text())
    assert parse_summary(summary)[1] == []
    learnt = summary["data"]["slides"]["train"]
    said = (
        f"trained on {learnt} of the {learnt} training slides or on others of their groups: their tiles are in-sample"
    )
    assert said in (run / "report.html").read_text()
    shown = OfflineRun(run)
    assert {"task=grading", "model=mil_gated", "tiles=guided"} <= set(shown.about.tags)
    assert shown.config["tiles/k"] == 4
    assert [item["epoch"] for item in shown.find_logged("val/loss")] == [0]
    assert len(shown.table("test_slides")["data"]) == summary["test"]["slides"]
    aliases = [set(a.aliases) & {"best", "last"} for a in shown.artifacts if a.type == "model"]
    assert aliases == [{"last"}, {"best"}]
    slide = list_slides(home)[2]
    done = run_entry_point(
        "infer",
        home,
        f"checkpoint={trained_run}/checkpoints/best.ckpt",
        f"grading_checkpoint={run}/checkpoints/best.ckpt",
        f"slides={slide}",
        "output=out/graded",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads((home / "out/graded" / slide.stem / "quantification.json").read_text())
    assert sum(facts["grade"]["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert sum(tile["attention"] for tile in facts["grade"]["tiles"]) == pytest.approx(1, abs=1e-5)
    assert "isup_predicted" in table(home / "out/graded/quantification.csv")[0]


def test_train_one_slide_notes_lack_of_generalization(home: Path, trained_run: Path) -> None:
    done = run_entry_point("train", home, *TINY, "data=one_slide", "name=one", "logger=csv")
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((home / "runs/segmentation/one/summary.json").read_text())
    assert "test" not in summary
    assert parse_summary(summary)[1] == []
    assert any("generalizes" in note for note in summary["notes"])
    assert not (home / "runs/segmentation/one/wandb").exists()
    assert len(table(home / "runs/segmentation/one/slides.csv")) == 1
    assert not (home / "runs/segmentation/one/test_slides.csv").exists()


def test_train_sweep_failed_job_is_a_row(home: Path, trained_run: Path) -> None:
    sizes = [o for o in TINY if not o.startswith(("data.patch_size", "model.decoder"))]
    done = run_entry_point("train", home, "-m", *sizes, *DEEPLAB, "data.patch_size=64,100", "name=sizes", "logger=csv")
    assert done.returncode == 1
    rows = table(home / "runs/segmentation/sweep-sizes/sweep.csv")
    assert [(row["data.patch_size"], row["state"]) for row in rows] == [("64", "done"), ("100", "failed")]
    assert (home / "runs/segmentation/sweep-sizes/sweep.html").is_file()
    assert JobEnd.read(home / "runs/segmentation/sweep-sizes/1")


def test_train_sweep_ctrl_c_keeps_finished_jobs(home: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = SegmentationTask.training_step

    def interrupted_in_job_1(task: SegmentationTask, batch: Any, batch_idx: int) -> torch.Tensor:
        if "/1/" in task.trainer.default_root_dir and task.current_epoch == 1:
            raise KeyboardInterrupt
        return step(task, batch, batch_idx)

    monkeypatch.setattr(SegmentationTask, "training_step", interrupted_in_job_1)
    command = ("-m", *TINY, "trainer.max_epochs=2", "seed=1,2,3", "logger=csv", "test_slides=false")
    done = run_entry_point("train", home, *command, "name=stopped")
    assert done.returncode == 130
    sweep = home / "runs/segmentation/sweep-stopped"
    assert "the same command with name=stopped continues the sweep" in done.stderr
    rows = table(sweep / "sweep.csv")
    assert [row["state"] for row in rows] == ["done", "interrupted"]
    assert rows[1]["error"].startswith("interrupted; the same command with name=stopped")
    assert (sweep / "sweep.html").is_file()
    assert not (sweep / "2").exists()

    monkeypatch.setattr(SegmentationTask, "training_step", step)
    finished = (sweep / "0" / "summary.json").stat().st_mtime_ns
    done = run_entry_point("train", home, *command, "name=stopped")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (sweep / "0" / "summary.json").stat().st_mtime_ns == finished
    assert [row["epoch"] for row in table(sweep / "1" / "metrics.csv") if row["val/loss"]] == ["0", "1"]
    rows = table(sweep / "sweep.csv")
    assert [(row["seed"], row["state"]) for row in rows] == [("1", "done"), ("2", "done"), ("3", "done")]
    done = run_entry_point("train", home, *command, "name=stopped", "threshold=0.2")
    assert done.returncode == 1
    assert done.stderr.count("is a run with threshold=auto, not 0.2") == 3


def test_train_diverging_loss_is_refused(home: Path, trained_run: Path) -> None:
    wild = ("optim.lr=1e30", "trainer.gradient_clip_val=null", "name=wild", "logger=csv")
    done = run_entry_point("train", home, *TINY, *wild)
    assert done.returncode == 1
    assert "lower optim.lr=1e+30" in done.stderr
    assert "Traceback" not in done.stderr


def test_train_run_folder_in_use_is_refused(home: Path, trained_run: Path) -> None:
    (home / "runs/segmentation/shared").mkdir()
    with hold_lock(home / "runs/segmentation/shared/run", wait=False):
        done = run_entry_point("train", home, *TINY, "name=shared", "logger=csv")
    assert done.returncode == 1
    assert "another process works in runs/segmentation/shared" in done.stderr


@pytest.mark.parametrize("content", ["{", "", "[1"])
def test_train_resume_with_damaged_config_is_refused(home: Path, trained_run: Path, content: str) -> None:
    shutil.copytree(trained_run / "checkpoints", home / "damaged" / "checkpoints", dirs_exist_ok=True)
    (home / "damaged" / "config.yaml").write_text(content)
    done = run_entry_point("train", home, "resume=damaged/checkpoints/last.ckpt")
    assert done.returncode == 1
    assert "damaged/config.yaml cannot be read" in done.stderr or "damaged/config.yaml holds no keys" in done.stderr
    assert "start a new run" in done.stderr


def test_train_split_of_bad_slides_ends_run_and_lists_them(home: Path, trained_run: Path) -> None:
    shutil.copytree(home / "data" / "synthetic", home / "bad")
    for path in (home / "bad" / "train_images").iterdir():
        path.write_bytes(b"II*\0 this is no slide")
    overrides = (*(o for o in TINY if not o.startswith("data.draw")), "data=panda", "data.root=bad")
    done = run_entry_point("train", home, *overrides, "name=bad", "logger=csv")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    failures = table(home / "runs/segmentation/bad/failures.csv")
    assert len(failures) > 1
    assert all(row["message"] for row in failures)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("data=panda", "data.root=nowhere"), "nowhere"),
        (("model.encoder_name=resnet19", "loss=focal", "loss.alpha=2"), "- loss.alpha=2: must be above 0"),
        (
            ("model.encoder_name=resnet19",),
            "- model.encoder_name=resnet19: there is no such encoder (did you mean resnet1",
        ),
        (("data.patch_size=100", "model=deeplabv3"), "- data.patch_size=100: DeepLabV3 over resnet50"),
        (("data.provider=uppsala",), "karolinska"),
        (("task=grading",), "segmentation_checkpoint"),
        (("name=../evil",), "../evil"),
        (("test_slides=perhaps",), "test_slides=perhaps"),
        (("loss=cross_entropy",), "no gradient"),
        (("loss=coral", "data.ignore_background=true"), "CumulativeLoss does not fit the task: logits are (B, C)"),
        (("model=mil_gated",), "derived from Segmenter"),
        (
            ("task=grading", "data.batch_size=4", "data.sampler=hard", "criterion=dice_pooled"),
            "data.batch_size=4, data.sampler=hard, criterion=dice_pooled are not used with task=grading: remove them",
        ),
        (
            ("task=grading", "tiles=tissue", "model=mil_max", "model.hidden=64"),
            "model.hidden=64 is not used with model.pooling=max",
        ),
        (("task=grading", "tiles=tissue", "model.encoder=vit_tiny_patch16_224"), "- tiles.tile_size=128: vit_"),
        (
            ("task=grading", "tiles=tissue", "model=mil_transformer", "model.hidden=18"),
            "- model.hidden=18: must be a multiple of 4 for pooling=transformer",
        ),
        (
            ("task=grading", "tiles=tissue", "model=mil_dsmil", "model.dropout=0.2"),
            "model.dropout=0.2 is not used with model.pooling=dsmil, which has no head: remove it",
        ),
        (
            ("task=grading", "tiles=tissue", "model=torchmil", "model.pooling_options.name=GTP"),
            "- model.pooling_options.name=GTP: this model of torchmil needs the adjacency of tiles",
        ),
        (
            ("task=grading", "tiles=tissue", "model=torchmil", "+model.pooling_options._target_=os.system"),
            "model.pooling_options._target_=os.system is not allowed",
        ),
        (
            ("task=grading", "tiles=tissue", "model.encoder_weights=nowhere.pt"),
            "- model.encoder_weights=nowhere.pt: no",
        ),
        (("task=grading", "tiles=all", "tiles.k=9"), "tiles.k=9 is not used with tiles=all (tiles=tissue takes"),
        (
            ("task=grading", "tiles=all", "tiles.random_fraction=0.5"),
            "tiles.random_fraction=0.5 is not used with tiles=",
        ),
        (("task.gleason_rule.min_percent=3",), "task.gleason_rule.min_percent=3 is not used with task.classes=binary"),
        (("task.views_every=0", "task.views=8"), "task.views=8 is not used with task.views_every=0"),
        (("data=one_slide", "data.test_fraction=0.1"), "data.test_fraction=0.1 is not used"),
        (("data=one_slide", "threshold_per_provider=true"), "threshold_per_provider=true is not used"),
        (("criterion=cost", "seed=1"), "criterion=cost needs cost_ratio="),
        (("cost_ratio=5", "seed=1"), "cost_ratio is not used with criterion=dice_pooled: remove it"),
        (("data=one_slide", "data.stride=64"), "data.stride=64: with data.split=patches"),
        (("model=deeplabv3", "data.batch_size=1"), "at least 2"),
        (("task=grading", "segmentation_checkpoint=nothing.ckpt"), "nothing.ckpt"),
        (("trainer.max_epochs=0", "seed=one"), "2 faults"),
        (("+trainer.enable_checkpointing=false",), "enable_checkpointing=false: there is no such key"),
        (("modle=unet",), "did you mean model?"),
        (("name=a=b",), "'name=\"a=b\"'"),
    ],
)
def test_entry_point_refusal_is_one_message_and_leaves_nothing(
    tmp_path: Path, overrides: Sequence[str], named: str
) -> None:
    done = run_entry_point("train", tmp_path, *overrides)
    assert done.returncode == 1
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


PRETRAINED = "model.encoder_weights=imagenet"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (
            ("experiment=panda_grading", "data.root=nowhere"),
            ("2 faults", "segmentation_checkpoint is not given", "nowhere"),
        ),
        (("task=grading", PRETRAINED, "segmentation_checkpoint=nothing.ckpt"), ("nothing.ckpt does not exist",)),
        (("task=grading", "tiles=tissue", PRETRAINED, "model.hidden=0"), ("- model.hidden=0",)),
        (("task=grading", "tiles=tissue", PRETRAINED, "data=panda", "data.root=bad"), ("train.csv", "image_id")),
        ((PRETRAINED, "optim.lr=-1"), ("- optim.lr=-1",)),
    ],
)
@pytest.mark.usefixtures("offline_run")
def test_train_refused_settings_download_nothing(
    tmp_path: Path, overrides: Sequence[str], named: Sequence[str]
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train.csv").write_text("no,such,table\n")
    done = run_entry_point("train", tmp_path, *overrides)
    assert done.returncode == 1
    assert "network is away" not in done.stderr
    for part in named:
        assert part in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("task", [(), ("task=grading", "tiles=tissue")])
@pytest.mark.usefixtures("offline_run")
def test_train_failed_download_is_refused(tmp_path: Path, task: Sequence[str]) -> None:
    done = run_entry_point("train", tmp_path, *task, PRETRAINED)
    assert done.returncode == 1
    assert "- model.encoder_weights=imagenet: the weights of resnet" in done.stderr
    assert "network is away" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_infer_invalid_checkpoint_is_refused_by_process(tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").write_bytes(b"PK nothing")
    (tmp_path / "slide.tiff").write_bytes(b"II*\0")
    command = [sys.executable, str(REPOSITORY / "infer.py"), "checkpoint=best.ckpt", "slides=slide.tiff"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1
    assert "best.ckpt" in done.stderr
    assert "Traceback" not in done.stderr
