"""Training data: image and label folders, procedural scenes, and random crops of them."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from crispseg.errors import InputError
from crispseg.fit.options import FitOptions
from crispseg.fit.pairs import CACHE_BYTES, Cache, Entry, Pair, Pairs

IGNORE = 255
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
Batch = tuple[np.ndarray, np.ndarray]


def read_pairs(images: Path, labels: Path, num_classes: int, cache: Cache | None = None) -> Pairs:
    """Opens a folder of images and the label maps of the same stem.

    Every label map is read and checked here, and every image while the cache has room; of the other images the size
    alone, and they are read each time they are drawn.

    Args:
        images: folder of RGB images.
        labels: folder of 8-bit label PNGs; ids of ``num_classes`` and above are refused except 255. The id
            ``num_classes`` itself is read as ignore: CamVid stores "unlabelled" so.
        num_classes: number of classes.
        cache: room for what is decoded; None = ``CACHE_BYTES`` of its own.

    Returns:
        (image uint8 [H, W, 3], labels uint8 [H, W]) in name order.

    Raises:
        InputError: nothing there, a label is missing, unreadable, of another size or beyond the classes. So does
            reading a pair later.
    """
    files = sorted(p for p in Path(images).glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"{images}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none")
    pairs = Pairs([], cache or Cache(CACHE_BYTES))
    for file in files:
        label_file = Path(labels) / f"{file.stem}.png"
        if not label_file.is_file():
            raise InputError(f"{label_file}: expected the label map of {file.name}, found nothing")
        label = read_labels(file, label_file, num_classes)
        entry = Entry(partial(read_pair, file, label_file, num_classes))
        entry.count(label)
        if pairs.cache.take(4 * label.size):
            entry.kept = read_image(file, label_file, label.shape), label
        else:
            with readable(file), Image.open(file) as image:
                height, width = label.shape
                if image.size not in ((width, height), (height, width)):  # EXIF may turn it
                    found = image.size[::-1]
                    raise InputError(f"{label_file}: expected the image's size {found}, found {label.shape}")
        pairs.entries.append(entry)
    return pairs


@contextlib.contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turns what Pillow raises for a damaged file into InputError."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{file}: cannot be read as image and label: {error}") from None


def read_pair(file: Path, label_file: Path, num_classes: int) -> Pair:
    """One pair of ``read_pairs``. Raises InputError."""
    label = read_labels(file, label_file, num_classes)
    return read_image(file, label_file, label.shape), label


def read_image(file: Path, label_file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An image uint8 [H, W, 3] of the shape (H, W) of its labels. Raises InputError."""
    with readable(file), Image.open(file) as stored:
        # Upright, as the pipeline reads it.
        image = np.array(ImageOps.exif_transpose(stored).convert("RGB"))
    if image.shape[:2] != shape:
        raise InputError(f"{label_file}: expected the image's size {image.shape[:2]}, found {shape}")
    return image


def read_labels(file: Path, label_file: Path, num_classes: int) -> np.ndarray:
    """The label map of the image ``file``, uint8 [H, W]. Raises InputError."""
    with readable(file), Image.open(label_file) as stored:
        label = np.array(stored)
    if label.ndim != 2 or label.dtype != np.uint8:
        raise InputError(f"{label_file}: expected 8-bit label ids in one channel, found {label.dtype} {label.shape}")
    label[label == num_classes] = IGNORE
    beyond = label[(label > num_classes) & (label != IGNORE)]
    if beyond.size:
        raise InputError(f"{label_file}: expected ids below {num_classes} or 255, found {int(beyond.max())}")
    return label


def render_scenes(count: int, height: int, width: int, seed: int, cache: Cache | None = None) -> Pairs:
    """``count`` independent procedural scenes of ``height`` x ``width`` px, each rendered when it is drawn."""
    from crispseg import scenes

    entries = [Entry(partial(scenes.render, seed + i, 0, height, width)) for i in range(count)]
    return Pairs(entries, cache or Cache(CACHE_BYTES))


def class_weights(pairs: Pairs, num_classes: int, power: float) -> torch.Tensor:
    """Weights (1 / frequency) ** power, scaled so that the frequency-weighted mean is 1; float32 [num_classes]."""
    counts = pairs.label_counts()[:num_classes].astype(np.float64)
    share = np.maximum(counts / max(1, counts.sum()), 1e-4)
    weights = share**-power
    return torch.from_numpy((weights / (weights * share).sum()).astype(np.float32))


def random_crop(pair: Pair, scale: float, size: tuple[int, int], rng: np.random.Generator) -> Pair:
    """Scales (antialiased), crops or pads to ``size``, flips and shifts colours. Padding is ignored by the loss."""
    image, label = pair
    h, w = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
    if (h, w) != label.shape:
        image = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
        label = np.asarray(Image.fromarray(label).resize((w, h), Image.Resampling.NEAREST))
    height, width = size
    top, left = (int(rng.integers(0, max(0, extra) + 1)) for extra in (h - height, w - width))
    image, label = image[top : top + height, left : left + width], label[top : top + height, left : left + width]
    if label.shape != size:
        pad = ((0, height - label.shape[0]), (0, width - label.shape[1]))
        label = np.pad(label, pad, constant_values=IGNORE)
        image = np.pad(image, (*pad, (0, 0)), constant_values=124)
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return jitter(image, rng), np.ascontiguousarray(label)


def jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random brightness, contrast, saturation and white balance; uint8 [H, W, 3] in and out."""
    x = image.astype(np.float32)
    gain = rng.uniform(0.75, 1.3) * rng.uniform(0.92, 1.08, 3).astype(np.float32)
    grey = x.mean(2, keepdims=True)
    x = grey + (x - grey) * np.float32(rng.uniform(0.6, 1.4))
    mean = x.mean()
    x = (x - mean) * np.float32(rng.uniform(0.8, 1.25)) + mean
    return np.clip(x * gain.astype(np.float32) + np.float32(rng.uniform(-15, 15)), 0, 255).astype(np.uint8)


def batches(
    groups: list[tuple[float, Pairs]],
    options: FitOptions,
    size: tuple[int, int],
    scales: tuple[float, float],
    start: int,
) -> Iterator[Batch]:
    """Endless batches (images uint8 [B, h, w, 3], labels uint8 [B, h, w]), made by one thread beside the training.

    ``scales`` is the range of random scaling unless the options name one.

    Batch ``i`` depends on the seed and ``i`` alone, so a resumed run sees the data that an unbroken one would.
    Raises what goes wrong in that thread.
    """
    share = np.array([weight for weight, _ in groups])
    share = share / share.sum()
    ready: queue.Queue = queue.Queue(6)
    stop = threading.Event()

    def make(step: int) -> Batch:
        rng = np.random.default_rng([options.seed, step])
        images, labels = [], []
        for _ in range(options.batch):
            pairs = groups[int(rng.choice(len(groups), p=share))][1]
            low, high = np.log(options.scale_range or scales)
            scale = float(np.exp(rng.uniform(low, high)))
            image, label = random_crop(pairs[int(rng.integers(len(pairs)))], scale, size, rng)
            images.append(image)
            labels.append(label)
        return np.stack(images), np.stack(labels)

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def work() -> None:
        step = start
        try:
            while not stop.is_set():
                put(make(step))
                step += 1
        except Exception as error:  # handed to the consumer, which raises it
            put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stop.set()


def normalise(images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...], device: str) -> torch.Tensor:
    """uint8 [B, h, w, 3] RGB -> float32 [B, 3, h, w] (channels last in memory), (x - mean) / std in 0..255 units."""
    x = torch.tensor(images, device=device).float()
    x = (x - torch.tensor(mean, device=device)) / torch.tensor(std, device=device)
    return x.permute(0, 3, 1, 2)
