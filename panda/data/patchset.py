"""Patches as a dataset: pairs of image and mask."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from panda.data.augment import Augmentation
from panda.data.image_batch import RawPatch, convert_patches, stack_patches
from panda.data.loaders import Draw, find_item, find_seed
from panda.data.patch_manifests import PatchTable
from panda.data.stain_estimates import Stains
from panda.wsi.stain_normalization import normalize_stain


class PatchSet(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of image and mask.

    An item is `(image, mask)`: (3, h, w) float32 in [0, 1], RGB; (1, h, w) float32, 1 for cancer, or the number of the
    class if there are several. Pixels to ignore are -1, which needs patches that were cut with `ignore_background`.
    Cancer of an unknown class is -2. Loaders `read` items instead, and the data module
    converts batches of them on the device of the network.

    Args:
        manifest: CSV of a split.
        transform: Applied to image and mask together; None for none. Its random choices follow the `Draw` that
            indexes the set or, with a plain index, torch's random generator.
        stains: The stain of each slide, to change its colours to those of the reference before `transform`; None to
            leave all colours unchanged.

    Raises:
        ManifestError: If the manifest is faulty; on access, if a file of the store is missing or damaged, or if the
            slide or mask has changed since the patches were cut.
        PandaError: On access, if a slide or mask that the store reads from cannot be read.
    """

    def __init__(
        self, manifest: Path | str, transform: Augmentation | None = None, stains: Stains | None = None
    ) -> None:
        self.rows = PatchTable(manifest)
        self.stains = stains
        self.transform = transform
        self.pixels = self.rows.pixels

    @property
    def slide_ids(self) -> list[str]:
        """The slides of the patches, each once, in the order of the manifest."""
        return list(dict.fromkeys(slide[0] for slide in self.rows.slides))

    def __len__(self) -> int:
        return len(self.rows)

    def describe_patch(self, index: int) -> str:
        """Return a name of a patch: its slide and its corner there."""
        row = self.rows[index]
        return f"{row.slide_id} at level-0 px ({row.x}, {row.y})"

    def read(self, index: int | Draw) -> RawPatch:
        """Read and turn a patch, whose colours still need the changes of `transform`."""
        row = self.rows[find_item(index)]
        image, target = self.pixels.read(row, self.rows.store)
        if self.stains and (stain := self.stains[row.slide_id]):
            image = normalize_stain(image, stain)
        if self.transform is None:
            return RawPatch(image, target, ())
        return RawPatch(*self.transform(image, target, find_seed(index)))

    def __getitem__(self, index: int | Draw) -> tuple[Tensor, Tensor]:
        images, masks = convert_patches(stack_patches([self.read(index)]))
        return images[0], masks[0]
