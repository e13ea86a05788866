"""The user's own `conf` in Hydra's search path."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from panda.choices import check_own_conf, find_own_conf


class OwnConf(SearchPathPlugin):
    """Adds the choices of the folder `conf` of the working folder after those of the package."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folder if it is there.

        Raises:
            ConfigError: If one of its files has the name of another file of the package.
        """
        if own := find_own_conf():
            check_own_conf(own)
            search_path.append("own conf", f"file://{own}")


def add_own_conf() -> None:
    """Let Hydra find the user's own choices, in each configuration that it composes."""
    Plugins.instance().register(OwnConf)
