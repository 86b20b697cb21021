"""IResNet: the improved residual network used with ArcFace, and PocketNet's teacher (arXiv 2004.04989)."""

from torch import Tensor, nn

from backbones.prelu import PReLU
from config.base import Config

# depth -> number of blocks in each of the four stages
LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)


def _bn(c: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(c, eps=1e-5)


class IBasicBlock(nn.Module):
    """Residual block: batch norm, 3×3, batch norm, PReLU, 3×3 (strided), batch norm, plus the shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = _bn(c_in)
        self.conv1 = _conv(c_in, c_out, 3)
        self.bn2 = _bn(c_out)
        self.prelu = PReLU(c_out)
        self.conv2 = _conv(c_out, c_out, 3, stride)
        self.bn3 = _bn(c_out)
        # The first block of each stage has stride 2, so its shortcut is a projection.
        self.downsample = nn.Sequential(_conv(c_in, c_out, 1, stride), _bn(c_out)) if stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        return out + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """IResNet of depth 18, 34, 50 or 100. Maps images (B, 3, 112, 112) to embeddings (B, emb).

    Has no dropout, like the published teachers.
    """

    def __init__(self, depth: int = 100, emb: int = 128) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, 3)
        self.bn1 = _bn(64)
        self.prelu = PReLU(64)
        c_in = 64
        for stage, (blocks, c) in enumerate(zip(LAYERS[depth], (64, 128, 256, 512), strict=True), start=1):
            layer = [IBasicBlock(c_in if b == 0 else c, c, 2 if b == 0 else 1) for b in range(blocks)]
            self.add_module(f"layer{stage}", nn.Sequential(*layer))
            c_in = c
        self.bn2 = _bn(512)
        self.fc = nn.Linear(512 * 7 * 7, emb)
        self.features = nn.BatchNorm1d(emb, eps=1e-5)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)
        # As published: the scale of the embedding's batch norm stays 1.
        self.features.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:  # (B, 3, 112, 112) -> (B, emb)
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)  # type: ignore[operator]  # finally (B, 512, 7, 7)
        return self.features(self.fc(self.bn2(x).flatten(1)))


# The functions of the table BACKBONES in utils/registry.py.


def iresnet18(config: Config) -> IResNet:
    """Builds an IResNet-18 of the config's embedding_size."""
    return IResNet(18, config.embedding_size)


def iresnet34(config: Config) -> IResNet:
    """Builds an IResNet-34 of the config's embedding_size."""
    return IResNet(34, config.embedding_size)


def iresnet50(config: Config) -> IResNet:
    """Builds an IResNet-50 of the config's embedding_size."""
    return IResNet(50, config.embedding_size)


def iresnet100(config: Config) -> IResNet:
    """Builds an IResNet-100 of the config's embedding_size."""
    return IResNet(100, config.embedding_size)
