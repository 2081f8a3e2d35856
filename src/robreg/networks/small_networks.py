"""Small networks of other families than the paper's, for images of 8x8 pixels and more: does AR act on them alike?"""

from torch import nn
from torchvision.models import MobileNetV2, VisionTransformer


def vgg(num_classes: int, channels: int = 1, width: int = 16) -> nn.Module:
    """Build a VGG with batch normalisation: two, two and two 3x3 convolutions with a maximum pooling between the pairs.

    channels: of the images; width: channels of the first pair, doubled after each pooling.
    Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2015.
    """
    layers: list[nn.Module] = []
    inputs = channels
    for stage in range(3):
        outputs = width * 2**stage
        for before in (inputs, outputs):
            convolution = nn.Conv2d(before, outputs, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(2) if stage < 2 else nn.AdaptiveAvgPool2d(1))
        inputs = outputs
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, num_classes))


def vision_transformer(num_classes: int, channels: int = 1, image_size: int = 8, patch_size: int = 2) -> nn.Module:
    """Build a vision transformer of three encoder layers, of torchvision's parts.

    channels, image_size: of the images; patch_size: pixels of a token's side.
    Dosovitskiy et al., "An image is worth 16x16 words", 2021.
    """
    network = VisionTransformer(image_size, patch_size, 3, 4, 32, 64, num_classes=num_classes)
    network.conv_proj = nn.Conv2d(channels, network.hidden_dim, patch_size, patch_size)
    return network


def mobilenet(num_classes: int, channels: int = 1) -> nn.Module:
    """Build a small MobileNetV2 of torchvision's parts: depthwise convolutions in inverted residual blocks.

    channels: of the images, which are halved twice only. Sandler et al., "MobileNetV2", 2018.
    """
    blocks = [[1, 16, 1, 1], [4, 24, 2, 2], [4, 32, 2, 2]]  # expansion, channels, blocks, stride of the first
    network = MobileNetV2(num_classes, inverted_residual_setting=blocks, dropout=0)
    first = network.features[0][0]
    network.features[0][0] = nn.Conv2d(channels, first.out_channels, 3, padding=1, bias=False)
    last = network.features[-1][0]
    network.features[-1][0] = nn.Conv2d(last.in_channels, 64, 1, bias=False)
    network.features[-1][1] = nn.BatchNorm2d(64)
    network.classifier[1] = nn.Linear(64, num_classes)
    return network
