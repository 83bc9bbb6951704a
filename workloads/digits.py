"""The `digits` workload: a small residual network on 8 x 8 images of handwritten digits.

The data are the 1,797 test images of the Optical Recognition of Handwritten Digits data set (E. Alpaydin and
C. Kaynak, UCI Machine Learning Repository, 1998, doi:10.24432/C50P49), which scikit-learn brings along.
Training takes seconds, which makes this the workload for trying things out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workloads.network_blocks import ResidualBlock
from workloads.splits import make_splits
from workloads.trained import trained_network
from workloads.workload import Workload


def load(
    seed: int,
    calibrate: int,
    search: int,
    certify: int,
    test: int,
    epochs: int,
    cache_dir: str,
    batch_size: int,
) -> Workload:
    """Make the workload, training its model unless the cache has it.

    Args:
        seed: Fixes the splits and the training.
        calibrate: Samples of this split.
        search: Samples of this split.
        certify: Samples of this split.
        test: Samples of this split; what remains of the 1,797 is trained on.
        epochs: Passes over the training samples.
        cache_dir: Folder that keeps trained weights.
        batch_size: Samples a batch when the model is evaluated.

    Raises:
        DataError: If the splits do not fit into the data.
        OutputError: If the trained weights cannot be kept.
    """
    images, labels = read_digits()
    sizes = {"calibrate": calibrate, "search": search, "certify": certify, "test": test}
    splits = make_splits(images, labels, sizes, seed)
    return Workload(
        name="digits",
        model=trained_network(
            DigitsNet, splits["train"], cache_dir,
            epochs=epochs, batch_size=32, learning_rate=0.1, weight_decay=5e-4, shift_pixels=1, seed=seed,
        ),
        splits=splits,
        classes=tuple(str(digit) for digit in range(10)),
        batch_size=batch_size,
        description="residual network (11 layers, 22 k parameters) on 8 x 8 handwritten digits",
    )  # fmt: skip


def read_digits() -> tuple[Tensor, Tensor]:
    """The images, float32 from -0.8 to 1.9, shape (1797, 1, 8, 8), and their labels, shape (1797,)."""
    # Imported here, so that other workloads need no scikit-learn.
    from sklearn.datasets import load_digits

    data = load_digits()
    # Pixels are 0 to 16; their mean is 4.9 and their standard deviation 6.0.
    images = (torch.tensor(data.images, dtype=torch.float32) - 4.9) / 6.0
    return images.unsqueeze(1), torch.tensor(data.target, dtype=torch.int64)


class SeparableBlock(nn.Module):
    """A depthwise 3 x 3 and a pointwise convolution beside an identity shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, h, w) to the same shape."""
        y = self.relu1(self.bn1(self.depthwise(x)))
        y = self.bn2(self.pointwise(y))
        output: Tensor = self.relu2(x + y)
        return output


class Stage(nn.Module):
    """A residual block, then a separable block."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.block1 = ResidualBlock(in_channels, out_channels, stride)
        self.block2 = SeparableBlock(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, h, w) to (batch, out_channels, h / stride, w / stride)."""
        output: Tensor = self.block2(self.block1(x))
        return output


class DigitsNet(nn.Module):
    """Eleven layers: a stem, two stages of 16 and 32 channels, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(16)
        self.stem_relu = nn.ReLU()
        self.stage1 = Stage(16, 16, stride=1)
        self.stage2 = Stage(16, 32, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 1, 8, 8) to logits (batch, 10)."""
        x = self.stem_relu(self.stem_bn(self.stem(x)))
        x = self.stage2(self.stage1(x))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits
