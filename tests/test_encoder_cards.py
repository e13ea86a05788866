"""The published encoders: weights by name and shape, features against a transformer written out, their transforms."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision import transforms

from panda.app.encoder_choice import find_card, find_encoder
from panda.choices import find_files
from panda.errors import CheckpointError, ConfigError
from panda.inference.compute import EngineSettings
from panda.inference.grader import GradingPredictor
from panda.models.encoder_cards import EncoderCard
from panda.models.mil import MILNet
from panda.wsi.slide import Slide
from tests.checkpoints import grading_checkpoint
from tests.conftest import SHARED
from tests.test_config_check import compose_settings, find_faults

NAMES = list(find_files("encoders"))


@dataclass(frozen=True)
class Vit:
    """Facts of a vision transformer, from its paper, its model card or the shapes of its published weights.

    Attributes:
        dim: Width of a token.
        depth: Number of blocks.
        patch: Side of a patch in px.
        heads: Attention heads.
        mlp: Outputs of the first and inputs of the second layer of the feed-forward part.
        positions: Tokens that have a position.
        registers: Register tokens.
        layer_scale: Whether each branch has a scale.
        published: Parameters in million as published, or None.
    """

    dim: int
    depth: int
    patch: int
    heads: int
    mlp: tuple[int, int]
    positions: int
    registers: int = 0
    layer_scale: bool = True
    published: float | None = None


SMALL: dict[str, Any] = {"dim": 384, "depth": 12, "heads": 6, "mlp": (1536, 1536), "layer_scale": False}
HUGE: dict[str, Any] = {"dim": 1280, "depth": 32, "patch": 14, "heads": 16, "mlp": (6832, 3416), "published": 631.2}
GIANT: dict[str, Any] = {"dim": 1536, "depth": 40, "heads": 24, "mlp": (8192, 4096), "published": 1135}
VITS = {
    "uni": Vit(1024, 24, 16, 16, (4096, 4096), 197, published=303.4),
    "uni2_h": Vit(1536, 24, 14, 24, (8192, 4096), 256, registers=8, published=681.4),
    "virchow": Vit(**HUGE, positions=257),
    "virchow2": Vit(**HUGE, positions=261, registers=4),
    "h_optimus_0": Vit(**GIANT, patch=14, positions=256, registers=4),
    "h_optimus_1": Vit(**GIANT, patch=14, positions=256, registers=4),
    "h0_mini": Vit(768, 12, 14, 12, (4096, 2048), 256, registers=4, published=85.7),
    "gigapath": Vit(**GIANT, patch=16, positions=197),
    "kaiko_s16": Vit(**SMALL, patch=16, positions=197, published=21.7),
    "kaiko_b16": Vit(768, 12, 16, 12, (3072, 3072), 197, layer_scale=False, published=85.8),
    "kaiko_l14": Vit(1024, 24, 14, 16, (4096, 4096), 1369, registers=4, published=304.4),
    "lunit_s8": Vit(**SMALL, patch=8, positions=785, published=21.7),
    "lunit_s16": Vit(**SMALL, patch=16, positions=197, published=21.7),
    "phikon_v2": Vit(1024, 24, 16, 16, (4096, 4096), 197, published=303.4),
    "midnight": Vit(1536, 40, 14, 24, (8192, 4096), 257, published=1136),
    "hibou_b": Vit(768, 12, 14, 12, (4096, 2048), 256, registers=4, published=85.7),
    "hibou_l": Vit(1024, 24, 14, 16, (5472, 2736), 256, registers=4, published=303.7),
}
DIMS = {name: vit.dim for name, vit in VITS.items()} | {
    **{"virchow": 2560, "virchow2": 2560, "h0_mini": 1536, "midnight": 3072},
    "conch_v1_5": 768,
    **{"dinov3_s16": 384, "dinov3_b16": 768, "dinov3_l16": 1024, "resnet50": 2048},
}
STORED_MB = {
    "h_optimus_0": 4540,
    "phikon_v2": 1210,
    "midnight": 4550,
    "kaiko_s16": 86.7,
    "kaiko_b16": 343,
    "kaiko_l14": 1220,
    "lunit_s8": 86.7,
    "lunit_s16": 86.7,
    "dinov3_s16": 86.4,
    "dinov3_l16": 1210,
}
"""Size of the file of weights on the hub; each weight has four bytes."""


def list_shapes(vit: Vit) -> dict[str, tuple[int, ...]]:
    d, (up, down) = vit.dim, vit.mlp
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, vit.positions, d),
        "patch_embed.proj.weight": (d, 3, vit.patch, vit.patch),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    if vit.registers:
        shapes["reg_token"] = (1, vit.registers, d)
    for block in range(vit.depth):
        layers = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (up, d), "mlp.fc2": (d, down)}
        for name, shape in layers.items():
            shapes |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{name}.weight": (d,), f"blocks.{block}.{name}.bias": (d,)}
        if vit.layer_scale:
            shapes |= {f"blocks.{block}.ls1.gamma": (d,), f"blocks.{block}.ls2.gamma": (d,)}
    return shapes


def read_card(name: str) -> EncoderCard:
    return EncoderCard.parse(find_encoder(name))


def make_shallow(name: str) -> tuple[EncoderCard, nn.Module]:
    """Build an encoder of one block with random weights, also of layer scales and tokens."""
    card = read_card(name)
    card = card.model_copy(update={"options": card.options.model_copy(update={"depth": 1})})
    torch.manual_seed(0)
    encoder = card.build().eval()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.normal_(std=0.05)
    return card, encoder


def run_vit(w: dict[str, Tensor], vit: Vit, image: Tensor) -> Tensor:
    """Return the tokens of a vision transformer of one block, written out."""

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (vit.dim,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = functional.conv2d(image, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=vit.patch)
    x = x.flatten(2).transpose(1, 2)
    first = torch.cat([w[name].expand(len(x), -1, -1) for name in ("cls_token", "reg_token") if name in w], 1)
    all_have_positions = w["pos_embed"].shape[1] > x.shape[1]
    x = x if all_have_positions else x + w["pos_embed"]
    x = torch.cat([first, x], 1)
    x = x + w["pos_embed"] if all_have_positions else x
    for block in ("blocks.0",):
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.reshape(*qkv.shape[:2], 3, vit.heads, -1).permute(2, 0, 3, 1, 4)
        attention = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        out = linear(attention.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + out * w.get(f"{block}.ls1.gamma", torch.tensor(1.0))
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        if vit.mlp[0] == vit.mlp[1]:
            hidden = functional.gelu(hidden)
        else:
            gate, value = hidden.chunk(2, -1)
            hidden = gate * gate.sigmoid() * value
        x = x + linear(hidden, f"{block}.mlp.fc2") * w.get(f"{block}.ls2.gamma", torch.tensor(1.0))
    return norm(x, "norm")


def test_encoder_facts_cover_all_files() -> None:
    assert set(NAMES) == set(DIMS)
    assert len(NAMES) == 22


@pytest.mark.parametrize("name", VITS)
def test_encoder_weights_have_published_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        encoder = read_card(name).build()
    found = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    assert found == list_shapes(VITS[name])
    parameters = sum(int(np.prod(shape)) for shape in found.values())
    assert parameters / 1e6 == pytest.approx(VITS[name].published, rel=0.005)


@pytest.mark.parametrize(("name", "size"), STORED_MB.items())
def test_encoder_weights_have_the_size_of_the_file(name: str, size: float) -> None:
    with torch.device("meta"):
        encoder = read_card(name).build()
    stored = 4 * sum(value.numel() for value in encoder.state_dict().values()) / 1e6
    assert stored == pytest.approx(size, rel=0.005)


@pytest.mark.parametrize("name", [name for name in VITS if name != "kaiko_l14"])
@torch.no_grad()
def test_encoder_features_match_written_out_transformer(name: str) -> None:
    card, encoder = make_shallow(name)
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    tokens, prefix = run_vit(dict(encoder.state_dict()), VITS[name], image), 1 + VITS[name].registers
    expected = tokens[:, 0]
    if name in ("virchow", "virchow2", "h0_mini", "midnight"):
        expected = torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], 1)
    features = card.embed(encoder, image)
    assert features.shape == (1, DIMS[name])
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_encoder_kaiko_l14_interpolates_its_positions() -> None:
    """Stored for 37 × 37 patches, used with 16 × 16."""
    card, encoder = make_shallow("kaiko_l14")
    image = torch.rand(1, 3, 224, 224)
    w = dict(encoder.state_dict())
    grid = w["pos_embed"].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    small = functional.interpolate(grid, (16, 16), mode="bicubic", antialias=True)
    w["pos_embed"] = small.permute(0, 2, 3, 1).flatten(1, 2)
    expected = run_vit(w, VITS["kaiko_l14"], image)[:, 0]
    torch.testing.assert_close(card.embed(encoder, image), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_encoder_of_natural_images_pools_as_its_file_says() -> None:
    card, encoder = make_shallow("dinov3_s16")
    image = torch.rand(2, 3, 256, 256)
    torch.testing.assert_close(card.embed(encoder, image), encoder.forward_features(image)[:, 0])  # type: ignore[operator]
    card = read_card("resnet50")
    encoder = card.build().eval()
    theirs = torchvision.models.resnet50(weights=None).eval()
    theirs.load_state_dict(encoder.state_dict(), strict=False)  # it has a classifier too
    theirs.fc = nn.Identity()
    torch.testing.assert_close(card.embed(encoder, image), theirs(image), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_encoder_mean_leaves_class_and_registers_out() -> None:
    card, encoder = make_shallow("virchow2")
    card = card.model_copy(update={"pooling": "mean", "dim": 1280})
    image = torch.rand(2, 3, 224, 224)
    tokens = run_vit(dict(encoder.state_dict()), VITS["virchow2"], image)
    torch.testing.assert_close(card.embed(encoder, image), tokens[:, 5:].mean(1), rtol=1e-3, atol=1e-3)


NORMALIZATION: dict[str, tuple[Any, Any]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "h_optimus": ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)),
    "kaiko": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "hibou": ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)),
    "lunit": ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)),
}
TRANSFORMS = {
    "uni": (224, 224, "BILINEAR", "imagenet"),
    "uni2_h": (224, 224, "BILINEAR", "imagenet"),
    "virchow": (224, 224, "BICUBIC", "imagenet"),
    "virchow2": (224, 224, "BICUBIC", "imagenet"),
    "h_optimus_0": (224, 224, "BICUBIC", "h_optimus"),
    "h_optimus_1": (224, 224, "BICUBIC", "h_optimus"),
    "h0_mini": (224, 224, "BICUBIC", "h_optimus"),
    "gigapath": (256, 224, "BICUBIC", "imagenet"),
    "kaiko_s16": (224, 224, "BILINEAR", "kaiko"),
    "kaiko_b16": (224, 224, "BILINEAR", "kaiko"),
    "kaiko_l14": (224, 224, "BILINEAR", "kaiko"),
    "lunit_s8": (248, 224, "BICUBIC", "lunit"),
    "lunit_s16": (248, 224, "BICUBIC", "lunit"),
    "conch_v1_5": (448, 448, "BILINEAR", "imagenet"),
    "phikon_v2": (224, 224, "BICUBIC", "imagenet"),
    "midnight": (224, 224, "BILINEAR", "kaiko"),
    "hibou_b": (224, 224, "BICUBIC", "hibou"),
    "hibou_l": (224, 224, "BICUBIC", "hibou"),
    "dinov3_s16": (256, 256, "BICUBIC", "imagenet"),
    "dinov3_b16": (256, 256, "BICUBIC", "imagenet"),
    "dinov3_l16": (256, 256, "BICUBIC", "imagenet"),
}


def draw_tiles() -> list[Image.Image]:
    """Return smooth blots with sharp edges, so that bicubic scaling overshoots."""
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(3)]
    return [tile.resize((256, 256), Image.Resampling.NEAREST) for tile in coarse]


def read_real_tiles() -> list[Image.Image]:
    tiles = []
    for path in sorted((SHARED / "prostate" / "train_images").glob("*.tif*"))[:3]:
        with Slide.open(path) as slide:
            view = slide.choose_resolution(level=0)
            corner = (slide.dimensions[0] // 2, slide.dimensions[1] // 2)
            tiles.append(Image.fromarray(slide.read(view, corner, (256, 256))))
    return tiles


def assert_transform_is_published(name: str, tiles: list[Image.Image]) -> None:
    """Compare with torchvision's transforms of images: at most two grey values apart, and hardly any px."""
    resize, crop, mode, normalization = TRANSFORMS[name]
    mean, std = NORMALIZATION[normalization]
    published = transforms.Compose(
        [
            transforms.Resize(resize, interpolation=transforms.InterpolationMode[mode]),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
        ]
    )
    card = read_card(name)
    expected = torch.stack([published(tile) for tile in tiles])
    found = card.fit(torch.stack([transforms.ToTensor()(tile) for tile in tiles]))
    apart = (found - expected).abs() * 255
    assert found.shape[-2:] == (crop, crop)
    assert float(apart.max()) < 2.01
    assert float(apart.mean()) < 0.1
    assert (card.mean, card.std) == (mean, std)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_encoder_transform_is_published_one(name: str) -> None:
    assert_transform_is_published(name, draw_tiles())


@pytest.mark.real_data
@pytest.mark.parametrize("name", TRANSFORMS)
def test_encoder_transform_is_published_one_on_real_tiles(name: str) -> None:
    tiles = read_real_tiles()
    if not tiles:
        pytest.skip("the real slides are not there")
    assert_transform_is_published(name, tiles)


def write_card(path: Path, **changes: Any) -> Path:
    lines = {"architecture": "vit_tiny_patch16_224", "pooling": "cls", "dim": 192, "resize": 224} | changes
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items() if value is not None))
    return path


def test_own_encoder_file_makes_a_network_that_rebuilds(tmp_path: Path) -> None:
    own = write_card(tmp_path / "mine.yaml", pooling="cls_mean", dim=384, mean="[0.7, 0.6, 0.7]", input_size=224)
    network = MILNet(find_encoder(str(own)), freeze_encoder=True, hidden=8).eval()
    assert network.feature_dim == 384
    assert network.options["mean"] == [0.7, 0.6, 0.7]
    twin = MILNet(**network.options).eval()
    twin.load_state_dict(network.state_dict())
    bag = torch.rand(2, 3, 100, 100)
    network.check_tile_size(100)
    with torch.no_grad():
        torch.testing.assert_close(twin(bag), network(bag))
    assert twin.options == network.options


def test_own_encoder_weights_come_from_a_local_file(tmp_path: Path) -> None:
    own = write_card(tmp_path / "mine.yaml")
    source = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    torch.save({f"backbone.{key}": value for key, value in source.state_dict().items()}, tmp_path / "w.bin")
    network = MILNet(find_encoder(str(own)), str(tmp_path / "w.bin"))
    torch.testing.assert_close(network.encoder.state_dict()["norm.weight"], source.state_dict()["norm.weight"])
    with pytest.raises(ConfigError, match="encoder_weights=cached: the file of vit_tiny_patch16_224 names no hub"):
        MILNet(find_encoder(str(own)), "cached")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "vit_tinny_patch16_224"}, "timm has no such model (did you mean vit_tiny_patch16_224"),
        ({"architecture": None}, "architecture is missing"),
        ({"pooling": "max"}, "pooling is 'max', but must be 'own', 'cls', 'cls_mean', 'mean' or 'attention'"),
        ({"dim": 200}, "encoder.dim=200: vit_tiny_patch16_224 with pooling cls gives 192"),
        ({"options": "{checkpoint_path: evil.bin}"}, "options.checkpoint_path is 'evil.bin', but there is no such key"),
        ({"options": "{init_values: 1e-5}"}, "options.init_values is '1e-5', but must be a valid number"),
        ({"architecture": "resnet10t"}, "encoder.pooling=cls: resnet10t has no class token; give mean"),
        ({"input_size": 300}, "input_size is above resize"),
        ({"tile_size": 224}, "tile_size is given without mpp"),
        ({"mean": "[0.5, 0.5]"}, "mean"),
    ],
)
def test_own_encoder_file_faults_are_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    own = write_card(tmp_path / "mine.yaml", **changes)
    with pytest.raises(ConfigError) as caught:
        MILNet(find_encoder(str(own)))
    assert words in str(caught.value)


def test_find_encoder_unknown_name_lists_encoders() -> None:
    assert find_encoder("resnet18") == "resnet18"
    with pytest.raises(ConfigError) as caught:
        find_encoder("uni3")
    for words in ("model.encoder=uni3", "did you mean uni", "virchow2", "PATH.yaml"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "mpp", "tile_size", "fits"),
    [
        ("uni", 0.5, 256, True),
        ("uni", 0.54, 256, True),
        ("uni", 0.56, 256, False),
        ("uni", 1.0, 128, True),  # the same side in µm; a tile is scaled to 224 px in any case
        ("uni", 0.5, 512, False),
        ("virchow2", 1.0, 224, True),
        ("virchow2", 0.75, 224, False),
        ("virchow", 1.0, 224, False),
        ("resnet50", 3.0, 77, True),
    ],
)
def test_encoder_scale_ten_percent_apart_is_a_fault(name: str, mpp: float, tile_size: int, fits: bool) -> None:
    fault = read_card(name).describe_scale_fault(mpp, tile_size)
    assert (fault is None) == fits
    if fault is not None:
        assert f"tiles of {tile_size} px at {mpp:g} µm/px" in fault


GRADING = ("task=grading", "tiles=tissue", "model.encoder=lunit_s16")


def test_grading_scale_of_encoder_is_asked_for() -> None:
    faults = find_faults(*GRADING, "tiles.tile_size=224")
    assert "tiles.level=1: a level has other µm/px on other slides, but model.encoder=lunit_s16" in faults
    assert "give tiles.level=null tiles.mpp=0.5, to which the slides are resampled" in faults
    faults = find_faults(*GRADING, "tiles.level=null", "tiles.mpp=2.0", "tiles.tile_size=256")
    faults += find_faults(*GRADING, "tiles.level=null", "tiles.mpp=2.0", "model.encoder_weights=none.bin")
    for words in (
        "model.encoder_weights=none.bin: no such file",
        "tiles of 256 px at 2 µm/px, but",
        "0.25 or 0.5 µm",
        "tiles.mpp=0.5 tiles.tile_size=224",
    ):
        assert words in faults


def test_grading_encoder_at_its_scale_passes() -> None:
    config = compose_settings(*GRADING, "tiles.level=null", "tiles.mpp=0.26", "tiles.tile_size=224")
    assert config.network.card.hub == "1aurent/vit_small_patch16_224.lunit_dino"
    assert config.network.options["mean"] == [0.70322989, 0.53606487, 0.66096631]


def test_grading_cached_weights_absent_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    own = write_card(tmp_path / "mine.yaml", hub="OWNER/NAME", gated="true")
    faults = find_faults(
        *GRADING[:2], f"model.encoder={own}", "model.encoder_weights=cached", "model.hidden=0", "model.dropout=2"
    )
    for words in ("model.hidden=0: must be at least 1", "model.dropout=2"):
        assert words in faults
    faults = find_faults(*GRADING[:2], f"model.encoder={own}", "model.encoder_weights=cached")
    for words in (
        f"model.encoder_weights=cached: the local cache of the hub ({tmp_path}) has no weights of OWNER/NAME",
        "get model.safetensors, pytorch_model.bin or pytorch_model_vision.bin from https://huggingface.co/OWNER/NAME",
        "accept the terms there, then run `hf auth login`",
        "give model.encoder_weights=PATH of that file, or give model.encoder_weights=download",
    ):
        assert words in faults


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kaiko_s16", "give model.encoder=vit_small_patch16_224"),  # the same mean and std, other weights
        ("lunit_s8", "those of 1aurent/vit_small_patch8_224.lunit_dino, and imagenet are timm's for vit_small_patch8"),
        ("uni", "vit_large_patch16_224 has options here; give cached, download or a file"),
        ("dinov3_s16", None),
        ("resnet50", None),
        ("vit_tiny_patch16_224", None),
    ],
)
def test_grading_imagenet_weights_of_other_encoders_are_refused(name: str, words: str | None) -> None:
    fault = find_card(name, "imagenet").describe_weights_fault("imagenet")
    assert (fault is None) == (words is None)
    if words is not None:
        faults = find_faults(*GRADING[:2], f"model.encoder={name}", "model.encoder_weights=imagenet")
        assert "model.encoder_weights=imagenet: " in faults
        assert words in faults


def test_own_encoder_with_imagenet_weights_needs_their_mean(tmp_path: Path) -> None:
    own = write_card(tmp_path / "mine.yaml")
    faults = find_faults(*GRADING[:2], f"model.encoder={own}", "model.encoder_weights=imagenet")
    assert "were trained with mean [0.5, 0.5, 0.5] and std [0.5, 0.5, 0.5]; give these in the file" in faults
    own = write_card(tmp_path / "mine.yaml", mean="[0.5, 0.5, 0.5]", std="[0.5, 0.5, 0.5]")
    assert find_card(own).describe_weights_fault("imagenet") is None


def test_grading_published_weights_without_hub_are_refused(tmp_path: Path) -> None:
    own = write_card(tmp_path / "mine.yaml")
    faults = find_faults(*GRADING[:2], f"model.encoder={own}", "model.encoder_weights=download")
    assert "model.encoder_weights=download: the file of vit_tiny_patch16_224 names no hub" in faults


def test_grading_wrong_encoder_hides_no_other_fault() -> None:
    faults = find_faults(*GRADING[:2], "model.encoder=virchow3", "model.hidden=0")
    assert "model.encoder=virchow3: timm has no such model" in faults
    assert "did you mean virchow" in faults
    assert "model.hidden=0: must be at least 1" in faults


def test_grading_checkpoint_of_a_timm_name_stays_readable(tmp_path: Path) -> None:
    """Older checkpoints hold a name; newer ones the whole card, so that no file of `conf` is read."""
    old = grading_checkpoint(tmp_path / "old.ckpt", MILNet("resnet10t", hidden=8))
    network = GradingPredictor.from_checkpoint(old, EngineSettings(device="cpu")).network
    assert (network.options["encoder"], network.card.pooling) == ("resnet10t", "own")
    own = write_card(tmp_path / "mine.yaml", options="{depth: 1, init_values: 1.0e-5}")
    new = grading_checkpoint(tmp_path / "new.ckpt", MILNet(find_encoder(str(own)), hidden=8))
    own.unlink()
    network = GradingPredictor.from_checkpoint(new, EngineSettings(device="cpu")).network
    assert (network.card.pooling, network.card.options.init_values) == ("cls", 1e-5)


def test_grading_checkpoint_with_other_options_is_refused(tmp_path: Path) -> None:
    network = MILNet("resnet10t", hidden=8)
    network.options["encoder"] = {"architecture": "resnet10t", "options": {"checkpoint_path": "evil.bin"}}
    with pytest.raises(CheckpointError, match=r"options\.checkpoint_path is 'evil\.bin', but there is no such key"):
        GradingPredictor.from_checkpoint(grading_checkpoint(tmp_path / "a.ckpt", network), EngineSettings(device="cpu"))
