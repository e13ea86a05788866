"""What an audit of slides inspects, and how: `audit.json` of its folder, for all processes that divide the slides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from panda.files import write_json
from panda.stored import PathText, Plain, read_model
from panda.wsi.slide import SlideOptions

RUN_FILE = "audit.json"


class AuditRun(Plain, frozen=True):
    """The content of `audit.json`.

    Attributes:
        data: The folder that holds `train.csv`, or a CSV, see `panda.data.slide_rows.read_rows`.
        labels: The label map of slides without a provider.
        options: Options to open slides.
        deep: Decode every tile of every slide and count masks at level 0.
        empty_means_benign: An annotation file without any object means a slide without cancer.
        choices: Overrides that say which data these are, for the commands that the page proposes.
    """

    data: PathText
    labels: str | None = None
    options: SlideOptions = SlideOptions()
    deep: bool = False
    empty_means_benign: bool = False
    choices: Annotated[tuple[str, ...], Field(strict=False)] = ()

    @classmethod
    def read(cls, folder: Path) -> AuditRun:
        """Read the file in the folder of an audit, or raise a `PandaError` if it is another one."""
        return read_model(folder / RUN_FILE, TypeAdapter(cls), "run the audit again")

    def write(self, folder: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(folder / RUN_FILE, self.model_dump(mode="json"))
