"""How a job ended that has no summary: `error.json` in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from panda.errors import PandaError
from panda.files import write_json
from panda.stored import Plain, read_model

END_FILE = "error.json"


class JobEnd(Plain, frozen=True):
    """How a job ended without a result.

    Attributes:
        state: A job that was interrupted can be continued; one that was pruned ended well.
        message: The error, or the remedy.
    """

    state: Literal["failed", "interrupted", "pruned"]
    message: str

    @classmethod
    def read(cls, folder: Path) -> JobEnd | None:
        """Read how a job ended; None if it did not end so. A damaged file is a failure, with its fault."""
        try:
            return read_model(folder / END_FILE, TypeAdapter(cls), "run the job again")
        except FileNotFoundError:
            return None
        except (OSError, PandaError) as error:
            return cls(state="failed", message=str(error))

    def write(self, folder: Path) -> None:
        """Write the record into the folder of a job."""
        write_json(folder / END_FILE, self.model_dump())


def forget_end(folder: Path) -> None:
    """Remove the record of a job that begins or is to begin again."""
    (folder / END_FILE).unlink(missing_ok=True)
