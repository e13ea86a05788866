"""Say which codes the channels of a label mask have, and which channel or provider they fit, if cancer is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from panda.errors import MaskError
from panda.wsi.annotations.source import is_annotation_file, read_annotations
from panda.wsi.label_maps import CHANNELS, find_label_map, get_label_maps
from panda.wsi.mask_image import list_codes


def describe_label(mask_path: Path | None, provider: str) -> str:
    """Say which codes a mask without cancer has, and which channel or provider fits them better, if any.

    Args:
        mask_path: The mask or the annotations; None for none.
        provider: The provider that its slide is said to have.
    """
    if mask_path is None:
        return "it has no mask"
    return (_describe_annotations if is_annotation_file(mask_path) else _describe_mask)(mask_path, provider)


def _describe_mask(mask_path: Path, provider: str) -> str:
    """Say which codes a mask has, and which channel or provider fits them better, if any."""
    try:
        channels = list_codes(mask_path)
    except (OSError, ValueError) as error:
        return f"{mask_path} cannot be read: {error}"
    own, others = find_label_map(provider), get_label_maps()
    at = CHANNELS.index(own.channel or "red")
    read = channels[at if at < len(channels) else 0]
    if set(read) & set(own.cancer):
        return f"{mask_path} labels cancer, but none in a patch: lower data.min_tissue, or try another data.seed"
    text = f"{mask_path} has the codes {_join(read)} in its {CHANNELS[at]} channel, cancer of {provider} is "
    text += _join(own.cancer)
    for name, codes in zip(CHANNELS, channels, strict=False):
        if set(codes) <= own.names.keys() and set(codes) & set(own.cancer):
            return (
                f"{text}; its {name} channel has {_join(codes)} and looks like the label: write channel: {name} into "
                f"conf/label_maps/{provider}.yaml if all masks have it there"
            )
    fitting = [
        f"{name} (cancer is {_join(label_map.cancer)})"
        for name, label_map in others.items()
        if name != provider and set(read) <= label_map.names.keys() and set(read) & set(label_map.cancer)
    ]
    if fitting:
        return f"{text}; these codes fit data_provider {' or '.join(fitting)}: correct data_provider if it is that"
    return text


def _describe_annotations(path: Path, provider: str) -> str:
    """Say which classes a file of annotations has."""
    try:
        names = sorted({found.name for found in read_annotations(path).annotations})
    except MaskError as error:
        return str(error)
    own = find_label_map(provider)
    cancer = [name for name in (*own.names.values(), *own.aliases) if set(own.find_codes(name)) & set(own.cancer)]
    return f"{path} has annotations of {', '.join(names) or 'no class'}, cancer of {provider} is {', '.join(cancer)}"


def _join(codes: Sequence[int]) -> str:
    return ", ".join(map(str, codes))
