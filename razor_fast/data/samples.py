"""One image-caption pair, and a fixed sequence of them.

May call: images, extras. Knows nothing of files, models or batches.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from ..errors import DataError
from .images import hash_image, normalise_image


class Sample:
    """An image with its caption, an optional label (class name) and a stable key.

    `image` may be given as a value (see images.normalise_image) or as `load`, a function without arguments that decodes
    it; a loaded image is decoded on each access and not kept, so a large set costs no memory.
    `image_hash` (decoded pixels and size) and `caption_hash` are hexadecimal sha256 digests, computed once.
    Two samples with the same image_hash are the same image, whatever their captions.
    """

    __slots__ = ("caption", "label", "key", "_image", "_load", "_image_hash")

    def __init__(
        self,
        image=None,
        caption: str = "",
        label: str | None = None,
        key: str = "",
        *,
        load: Callable[[], object] | None = None,
    ):
        if (image is None) == (load is None):
            raise DataError("no image: a Sample takes an image or a `load` function, exactly one of them")
        self.caption, self.label, self.key = caption, label, key
        self._image = None if image is None else normalise_image(image)
        self._load, self._image_hash = load, None

    @property
    def image(self):
        """PIL RGB image, or a float tensor [3, H, W]. Raises DataError when it cannot be decoded."""
        return self._image if self._load is None else normalise_image(self._load())

    @property
    def image_hash(self) -> str:
        if self._image_hash is None:
            self._image_hash = hash_image(self.image)
        return self._image_hash

    @property
    def caption_hash(self) -> str:
        return hashlib.sha256(unicodedata.normalize("NFC", self.caption).encode()).hexdigest()

    def with_text(self, caption: str | None = None, label: str | None = None) -> Sample:
        """The same image under another caption or label; None keeps what is there."""
        other = Sample.__new__(Sample)
        other.caption = self.caption if caption is None else caption
        other.label = self.label if label is None else label
        other.key, other._image, other._load, other._image_hash = self.key, self._image, self._load, self._image_hash
        return other

    def __repr__(self):
        return f"Sample(key={self.key!r}, caption={self.caption!r}, label={self.label!r})"


class SampleSet(Sequence):
    """A fixed sequence of samples. An integer index gives a Sample, a slice a SampleSet.

    `report` says what was skipped while reading (a SourceReport), or is None.
    """

    def __init__(self, samples: Iterable[Sample] = (), name: str = "", report=None):
        self.samples: tuple[Sample, ...] = tuple(samples)
        self.name, self.report = name, report

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return SampleSet(self.samples[index], self.name, self.report)
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __add__(self, other: Iterable[Sample]) -> SampleSet:
        return SampleSet((*self.samples, *other), self.name)

    def __repr__(self):
        return f"SampleSet({self.name!r}, {len(self)} samples)"

    @property
    def captions(self) -> list[str]:
        return [sample.caption for sample in self.samples]

    @property
    def labels(self) -> list[str | None]:
        return [sample.label for sample in self.samples]

    @property
    def keys(self) -> list[str]:
        return [sample.key for sample in self.samples]

    @property
    def image_hashes(self) -> list[str]:
        return [sample.image_hash for sample in self.samples]

    @property
    def classes(self) -> list[str]:
        """The distinct labels, sorted; samples without a label do not count."""
        return sorted({sample.label for sample in self.samples if sample.label is not None})

    def select(self, indices: Iterable[int], name: str | None = None) -> SampleSet:
        return SampleSet((self.samples[int(i)] for i in indices), self.name if name is None else name, self.report)

    def filter(self, keep: Callable[[Sample], bool], name: str | None = None) -> SampleSet:
        return SampleSet((s for s in self.samples if keep(s)), self.name if name is None else name, self.report)

    def take(self, count: int, seed: int = 0) -> SampleSet:
        """At most `count` samples drawn by `seed`, in their present order."""
        if count >= len(self):
            return self
        return self.select(sorted(permutation(len(self), seed, 0)[:count].tolist()))

    def fingerprint(self) -> str:
        """sha256 over the sorted image and caption hashes: equal for equal content in any order."""
        digest = hashlib.sha256()
        for pair in sorted((s.image_hash, s.caption_hash) for s in self.samples):
            digest.update("".join(pair).encode())
        return digest.hexdigest()


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(count), int64, that depends on (seed, epoch) alone.

    Built from the raw stream of PCG64, which numpy keeps fixed over its versions; numpy's own shuffles are not.
    """
    raw = np.random.PCG64(np.random.SeedSequence([seed & (2**64 - 1), epoch & (2**64 - 1)])).random_raw(count)
    return np.argsort(np.asarray(raw, dtype=np.uint64).reshape(count), kind="stable").astype(np.int64)
