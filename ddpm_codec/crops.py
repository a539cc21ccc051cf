"""Crops of photographs to train on: cut at random, flipped at random, enlarged at random."""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_codec.data import Pixels, list_images, read_image
from ddpm_codec.errors import DataError

_MOST_ENLARGED = 2.0


class Crops(Protocol):
    """Where crops come from; `skipped` says which pictures were left out, and why."""

    @property
    def skipped(self) -> list[str]: ...

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,3,side,side) uint8; all randomness comes from `generator`."""
        ...


class PhotoCrops:
    """Random square crops from a folder of photographs of any size, flipped at random.

    A photograph is drawn uniformly, then a position. Decoded photographs are kept, the oldest
    dropped beyond `cache_bytes`. Damaged pictures and ones smaller than the crop are left out, the
    next one takes their turn; `skipped` names them with the reason (found when first drawn).
    """

    def __init__(self, folder: Path, side: int, cache_bytes: int = 1 << 31) -> None:
        self.paths = list_images(folder)
        self.side = side
        self.skipped: list[str] = []
        self._unusable: set[Path] = set()
        self._cache: dict[Path, Pixels] = {}
        self._room = cache_bytes
        self._folder = folder

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,3,side,side) uint8; all randomness comes from `generator`."""
        crops = [self._crop(generator) for _ in range(count)]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()

    def _crop(self, generator: torch.Generator) -> Pixels:
        u = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        image = self._from(int(u[0] * len(self.paths)))
        y = int(u[1] * (image.shape[0] - self.side + 1))
        x = int(u[2] * (image.shape[1] - self.side + 1))
        crop = image[y : y + self.side, x : x + self.side]
        return crop[:, ::-1] if u[3] < 0.5 else crop

    def _from(self, first: int) -> Pixels:
        """(H,W,3) the first usable photograph from this one on, so that what has been drawn before,
        in this process or in another, has no influence. DataError if there is none."""
        for number in range(len(self.paths)):
            path = self.paths[(first + number) % len(self.paths)]
            image = None if path in self._unusable else self._photo(path)
            if image is not None:
                return image
            self._unusable.add(path)
        raise DataError(
            f"{self._folder}: no picture of at least {self.side}x{self.side} can be read; "
            f"the last: {self.skipped[-1]}"
        )

    def _photo(self, path: Path) -> Pixels | None:
        if path in self._cache:
            return self._cache[path]
        try:
            image = read_image(path)
        except DataError as error:
            self.skipped.append(str(error))
            return None
        if min(image.shape[:2]) < self.side:
            self.skipped.append(f"{path}: smaller than {self.side}x{self.side}")
            return None
        self._cache[path] = image
        self._room -= image.nbytes
        while self._room < 0 and len(self._cache) > 1:
            oldest = next(iter(self._cache))
            self._room += self._cache.pop(oldest).nbytes
        return image


class ArrayCrops:
    """Random square crops of pictures (N,H,W,3), flipped at random. DataError for a crop larger
    than they are."""

    def __init__(self, pictures: Pixels, side: int) -> None:
        height, width = pictures.shape[1:3]
        if min(height, width) < side:
            raise DataError(f"pictures of {width}x{height}: too small for crops of {side}")
        self.pictures, self.side = pictures, side
        self.skipped: list[str] = []

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,3,side,side) uint8; all randomness comes from `generator`."""
        _, height, width, _ = self.pictures.shape
        u = torch.rand(4, count, generator=generator, dtype=torch.float64).numpy()
        image = (u[0] * len(self.pictures)).astype(int)
        y = (u[1] * (height - self.side + 1)).astype(int)
        x = (u[2] * (width - self.side + 1)).astype(int)
        crops = [
            self.pictures[i, a : a + self.side, b : b + self.side][:, :: -1 if mirror else 1]
            for i, a, b, mirror in zip(image, y, x, u[3] < 0.5, strict=True)
        ]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


class VariedCrops:
    """Crops of `source`, random shares of which are made more like what cameras give.

    `enlarged`: a square of the crop made as large as it, by a factor whose logarithm is uniform,
    from 1 to 2, bicubic: the finest detail is soft, where photographs of the source are reduced
    ones. `subsampled`: Cb and Cr at half the resolution, as in most JPEGs, and back. Both befall a
    crop independently of each other.
    """

    def __init__(self, source: Crops, enlarged: float = 0.0, subsampled: float = 0.0) -> None:
        self.source, self.enlarged, self.subsampled = source, enlarged, subsampled

    @property
    def skipped(self) -> list[str]:
        """The pictures that `source` left out."""
        return self.source.skipped

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,3,side,side) uint8; all randomness comes from `generator`."""
        crops = self.source.draw(count, generator)
        u = torch.rand(5, count, generator=generator, dtype=torch.float64)
        for i, (enlarge, factor, x, y, subsample) in enumerate(u.T.tolist()):
            picture = Image.fromarray(crops[i].permute(1, 2, 0).contiguous().numpy())
            if enlarge < self.enlarged:
                picture = _enlarged(picture, _MOST_ENLARGED**factor, (x, y))
            if subsample < self.subsampled:
                picture = _subsampled(picture)
            crops[i] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return crops


def _enlarged(crop: Image.Image, factor: float, corner: tuple[float, float]) -> Image.Image:
    """A part of `crop` smaller by `factor`, made as large as it; `corner` (x, y) in [0, 1) says
    where it lies."""
    width, height = crop.size
    x, y = corner[0] * (width - width / factor), corner[1] * (height - height / factor)
    box = (x, y, x + width / factor, y + height / factor)
    return crop.resize(crop.size, Image.Resampling.BICUBIC, box=box)


def _subsampled(crop: Image.Image) -> Image.Image:
    luma, *chroma = crop.convert("YCbCr").split()
    half = [max(1, side // 2) for side in crop.size]
    chroma = [
        plane.resize(half, Image.Resampling.BOX).resize(crop.size, Image.Resampling.BILINEAR)
        for plane in chroma
    ]
    return Image.merge("YCbCr", (luma, *chroma)).convert("RGB")
