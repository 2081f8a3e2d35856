"""The 50-layer wide bottleneck ResNet (paper, D.2)."""

from torch import nn


def wide_resnet50(channels: int, classes: int, width: int) -> nn.Module:
    """Build the 50-layer wide bottleneck ResNet for small images (B, channels, H, W) (paper, D.2).

    This is torchvision's network with a 3x3 stem of stride 1, no max pooling, and Xavier-uniform initialisation of the
    convolutions (Glorot and Bengio 2010); batch normalisation is kept. width: 64 gives 3x3 convolutions of 2 x 64,
    2 x 128, 2 x 256 and 2 x 512 channels.
    """
    from torchvision.models.resnet import Bottleneck, ResNet  # noqa: PLC0415 - takes three seconds

    network = ResNet(Bottleneck, [3, 4, 6, 3], num_classes=classes, width_per_group=2 * width)
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
    return network
