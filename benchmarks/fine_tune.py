"""Trains what the delta benchmark compares: a ResNet-18 (He et al., CVPR 2016) on rendered labels, then four ways to change it.

    base          from random weights, AdamW 1e-3 with a cosine, 6 epochs over 6,000 printed characters
    lr1e-5        one epoch over 3,000 characters of a second camera (other fonts, light, blur, noise), AdamW 1e-5
    lr1e-4        the same with AdamW 1e-4
    contiguous    2 % of all weights, one unbroken run, moved by a quarter of their spread

Needs torch (``pip install torch==2.13.0``), which jetfleet itself does not. Each state is written as one .npz of the convolutions and
the last product with batch norms folded in, as an export for inference has them; a state that is there is not trained again.

    python benchmarks/fine_tune.py FOLDER [--quick]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SIZE = 64
BATCH = 64
STATES = ("base", "lr1e-5", "lr1e-4", "contiguous")


def characters(count: int, seed: int, *, second_camera: bool) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """`count` pictures of single printed characters, uint8 (count, 3, 64, 64), and their class numbers."""
    import cv2

    rng = np.random.default_rng(seed)
    fonts = (cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX) if second_camera else (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_TRIPLEX)
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    labels = rng.integers(0, len(CHARACTERS), count)
    for index, label in enumerate(labels):
        paper = rng.integers(120, 256, 3)
        image = np.full((SIZE, SIZE, 3), paper, np.uint8)
        scale, thick = rng.uniform(1.1, 1.7), int(rng.integers(2, 5))
        text, font = CHARACTERS[label], fonts[int(rng.integers(len(fonts)))]
        (width, height), _ = cv2.getTextSize(text, font, scale, thick)
        ink = [int(v) for v in rng.integers(0, 90, 3)]
        cv2.putText(image, text, ((SIZE - width) // 2, (SIZE + height) // 2), font, scale, ink, thick, cv2.LINE_AA)
        turn = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), rng.uniform(-15, 15), rng.uniform(0.8, 1.1))
        turn[:, 2] += rng.uniform(-5, 5, 2)
        image = cv2.warpAffine(image, turn, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.8, 2.0) if second_camera else rng.uniform(0.2, 1.0))
        light = np.linspace(rng.uniform(0.5, 1.0), rng.uniform(0.5, 1.0), SIZE)[:, None, None] if second_camera else 1.0
        noisy = image * light + rng.normal(0, 14 if second_camera else 6, image.shape)
        images[index] = np.clip(noisy, 0, 255).astype(np.uint8).transpose(2, 0, 1)
    return images, labels.astype(np.int64)


def resnet18(classes: int) -> Any:
    """The torch module: 7x7 stem, four stages of two basic blocks, 11.2 M weights."""
    import torch
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, inside: int, outside: int, stride: int) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside))
            self.b = nn.Sequential(nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside))
            self.down = None
            if stride != 1 or inside != outside:
                self.down = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

        def forward(self, x: Any) -> Any:
            skip = x if self.down is None else self.down(x)
            return torch.relu(self.b(torch.relu(self.a(x))) + skip)

    layers: list[tuple[str, Any]] = [("stem", nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)))]
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            layers.append((f"s{stage}b{block}", Block(channels, width, 2 if stage and not block else 1)))
            channels = width

    class Net(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for name, layer in layers:
                self.add_module(name, layer)
            self.fc = nn.Linear(512, classes)

        def forward(self, x: Any) -> Any:
            x = torch.max_pool2d(torch.relu(self.stem(x)), 3, 2, 1)
            for name, _ in layers[1:]:
                x = getattr(self, name)(x)
            return self.fc(x.mean((2, 3)))

    net = Net()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def batches(images: Any, labels: Any, rng: Any) -> Iterator[tuple[Any, Any]]:
    """One epoch in random order."""
    import torch

    order = rng.permutation(len(images))
    for at in range(0, len(order) - BATCH + 1, BATCH):
        picked = order[at:at + BATCH]
        yield torch.from_numpy(images[picked]).float().sub_(127.5).div_(64.0), torch.from_numpy(labels[picked])


def train(net: Any, data: tuple[Any, Any], epochs: int, rate: float, seed: int, *, cosine: bool) -> None:
    """AdamW with torch's defaults; batch norms learn their statistics on, as in ordinary training."""
    import torch

    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate)
    steps = epochs * (len(data[0]) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps) if cosine else None
    net.train()
    for epoch in range(epochs):
        total = 0.0
        for inputs, labels in batches(*data, rng):
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(inputs), labels)
            loss.backward()
            optimiser.step()
            if schedule is not None:
                schedule.step()
            total += float(loss)
        print(f"  epoch {epoch + 1} of {epochs}: loss {total / (len(data[0]) // BATCH):.4f}", file=sys.stderr, flush=True)


def accuracy(net: Any, data: tuple[Any, Any]) -> float:
    """Share of right answers, 0..1."""
    import torch

    net.eval()
    right = 0
    with torch.no_grad():
        for inputs, labels in batches(*data, np.random.default_rng(0)):
            right += int((net(inputs).argmax(1) == labels).sum())
    return right / (len(data[0]) // BATCH * BATCH)


def folded(net: Any) -> dict[str, Any]:
    """Weights and biases by layer name, each batch norm multiplied into the convolution before it (as torch.onnx and we export)."""
    from torch import nn

    arrays: dict[str, Any] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Sequential):
            conv, norm = module[0], module[1]
            gain = norm.weight / (norm.running_var + norm.eps).sqrt()
            arrays[f"{name}.w"] = (conv.weight * gain.reshape(-1, 1, 1, 1)).detach().numpy()
            arrays[f"{name}.b"] = (norm.bias - norm.running_mean * gain).detach().numpy()
    arrays["fc.w"], arrays["fc.b"] = net.fc.weight.detach().numpy(), net.fc.bias.detach().numpy()
    return arrays


def contiguous(arrays: dict[str, Any]) -> dict[str, Any]:
    """2 % of the weights as one run inside the largest layer (and on into its neighbours where it is shorter)."""
    rng = np.random.default_rng(2)
    left = int(0.02 * sum(array.size for array in arrays.values()))
    changed = {name: array.copy() for name, array in arrays.items()}
    names = [name for name in arrays if name.endswith(".w")]
    for name in names[names.index("s3b0.a.w"):]:
        flat = changed[name].reshape(-1)
        run = flat[flat.size // 3:flat.size // 3 + left] if left == int(0.02 * sum(a.size for a in arrays.values())) else flat[:left]
        run += rng.normal(0, flat.std() / 4, run.size).astype(np.float32)
        left -= run.size
        if left <= 0:
            break
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="a tenth of the pictures, one epoch: for a look, not for the record")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if all((folder / f"{state}.npz").exists() for state in STATES):
        return
    import torch

    torch.manual_seed(18)
    shrink = 10 if arguments.quick else 1
    first, held = characters(6000 // shrink, 1, second_camera=False), characters(640, 3, second_camera=True)
    second = characters(3000 // shrink, 2, second_camera=True)
    net = resnet18(len(CHARACTERS))
    train(net, first, 1 if arguments.quick else 6, 1e-3, 1, cosine=True)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    np.savez(folder / "base.npz", **folded(net))
    print(f"base: {accuracy(net, held):.3f} on the second camera", file=sys.stderr)
    np.savez(folder / "contiguous.npz", **contiguous(folded(net)))
    for rate in (1e-5, 1e-4):
        net.load_state_dict(start)
        train(net, second, 1, rate, 2, cosine=False)
        state = f"lr{rate:.0e}".replace("e-0", "e-")
        print(f"{state}: {accuracy(net, held):.3f} on the second camera", file=sys.stderr)
        np.savez(folder / f"{state}.npz", **folded(net))
    np.savez(folder / "pictures.npz", images=first[0][:64])


if __name__ == "__main__":
    main()
