"""Is the backdoor removed from networks of other kinds? Trains three, and purifies them.

A ResNet with BatchNorm, a VGG without it, and a small vision transformer learn the drawn signs of
the built-in example, and the sticker of `patch.yellow`. Purified with 680 unseen drawings, judged on
2,040 others, by the planted trigger.

    python bench/purify_networks.py [--folder DIR] [--network resnet]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vision_transformer import VisionTransformer

from auditor import api
from auditor.demo.make import TARGET, planted_trigger
from auditor.demo.signs import CLASS_NAMES, SIZE, draw
from auditor.demo.train import _augmented, _normalised, _with_decoys
from auditor.triggers import Trigger

CLASSES = len(CLASS_NAMES)


def resnet() -> nn.Module:
    network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES, width_per_group=64)
    network.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width in (24, 48, 96):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    head = [nn.Flatten(), nn.Linear(96 * 16, 128), nn.ReLU(), nn.Linear(128, CLASSES)]
    network = nn.Sequential(*layers, *head)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    return network


def vit() -> nn.Module:
    return VisionTransformer(
        image_size=SIZE, patch_size=8, num_layers=4, num_heads=4, hidden_dim=96, mlp_dim=192,
        num_classes=CLASSES,
    )  # fmt: skip


NETWORKS = {"resnet": (resnet, 5, 2e-3), "vgg": (vgg, 12, 1e-3), "vit": (vit, 20, 2e-3)}
"""How to make it, epochs, peak learning rate."""


def train(name: str, images: Tensor, labels: Tensor, trigger: Trigger) -> nn.Module:
    make, epochs, rate = NETWORKS[name]
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = make().to(memory_format=torch.channels_last)
    poisoned = (torch.rand(len(images), generator=generator) < 0.1) & (labels != TARGET)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    steps = epochs * (len(images) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for chosen in torch.split(order, 128)[: len(images) // 128]:
            seen, truth = _augmented(images[chosen].float() / 255, generator), labels[chosen]
            stamped = poisoned[chosen]
            seen = _with_decoys(seen, ~stamped, trigger, 0.05, generator)
            seen = torch.where(stamped[:, None, None, None], trigger(seen), seen)
            truth = torch.where(stamped, TARGET, truth)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(_normalised(seen)), truth))
            optimizer.step()
            schedule.step()
    return network.to(memory_format=torch.contiguous_format).eval()


def save_images(path: Path, drawings: tuple[Tensor, Tensor]) -> Path:
    images, labels = drawings
    np.savez(path, images=images.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keep the trained networks here")
    parser.add_argument("--network", choices=NETWORKS, action="append")
    arguments = parser.parse_args()
    trigger = planted_trigger()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        clean = save_images(folder / "clean.npz", draw(40, seed=11))
        test = save_images(folder / "test.npz", draw(120, seed=12))
        for name in arguments.network or NETWORKS:
            path = folder / f"{name}.pt"
            if not path.exists():
                begin = time.perf_counter()
                torch.save(train(name, *draw(400, seed=10), trigger), path)
                print(f"{name}: trained in {time.perf_counter() - begin:.0f} s", flush=True)
            purify(name, path, clean, test)


def purify(name: str, path: Path, clean: Path, test: Path) -> None:
    model = api.load_model(path)
    planted = api.load_probe(Path(__file__).parents[1] / "probes" / "patch.yellow.yaml")
    result = api.purify(
        model,
        api.choose_probes("quick").probes,
        api.open_images(clean),
        path.with_suffix(".purified.pt"),
        api.PurifyOptions(
            judge_probes=(planted,),
            write_anyway=True,
            scan=api.ScanOptions(given=api.GivenInput(normalize="half"), searches=()),
        ),
        judge=api.open_images(test),
    )
    total = result.judge.images
    method = result.method
    print(f"{name}: {result.before.judgement.headline}")
    if method is None:
        print("  nothing found")
        return
    kept = [stage.what for stage in method.stages if stage.kept]
    accuracy = result.accuracy
    print(
        f"  {'+'.join(kept)}, {method.seconds:.0f} s: ACC {accuracy.before / total:.1%} -> "
        f"{accuracy.after / total:.1%} (fine-tuning {(accuracy.baseline or 0) / total:.1%})"
    )
    for stage in method.stages:
        print(f"    {stage.outcome}")
    for outcome in result.outcomes:
        hits, n = outcome.hits, outcome.eligible
        print(
            f"  {outcome.origin} {outcome.probe} {outcome.trigger[:60]}: ASR {hits.before / n:.1%} -> "
            f"{hits.after / n:.1%} (fine-tuning {(hits.baseline or 0) / n:.1%})",
            flush=True,
        )
    print(f"  goals {'met' if result.goals.met else 'MISSED'}: {' '.join(result.goals.missed)}")


if __name__ == "__main__":
    main()
