"""An include file for Yocto recipes: `require xenvirtio.inc`."""

from __future__ import annotations

from collections.abc import Sequence

from xenvirtio.errors import ConfigurationError
from xenvirtio.static.emit.modules import Module
from xenvirtio.static.system import System

_TEXT = """\
# For an image recipe or a bbappend: require xenvirtio.inc
# The output folder of xenvirtio static build is to be deployed as XENVIRTIO_DIR.

XENVIRTIO_GENERATION = "{generation}"
XENVIRTIO_DIR ?= "{deploy_dir}/xenvirtio"

# Recipes that run ImageBuilder take this configuration instead of writing their own.
XEN_CONFIG_SKIP = "1"
XEN_CONFIG = "${{XENVIRTIO_DIR}}/imagebuilder.cfg"

# What the boot partition must hold beside Xen and ImageBuilder's script.
XENVIRTIO_FILES = " \\
{files}"
"""


def include_file(system: System, modules: Sequence[Module], machine_tree: str) -> str:
    """The file's text. `machine_tree` is what U-Boot loads, unless the description names a tree of its own for it.

    Raises:
        ConfigurationError: yocto.deploy_dir has a character that would end the value it is written into.
    """
    deploy_dir = system.description.yocto.deploy_dir
    if set('"\\`') & set(deploy_dir) or "${@" in deploy_dir:
        place = f"{system.description.source}: yocto: deploy_dir"
        raise ConfigurationError(place, f"found {deploy_dir!r}", 'allowed: no ", \\, ` or ${@')
    trees = [] if system.description.imagebuilder.device_tree else [machine_tree]
    files = dict.fromkeys([*trees, *(module.file for module in modules)])
    return _TEXT.format(
        generation=system.generation,
        deploy_dir=deploy_dir,
        files="".join(f"    ${{XENVIRTIO_DIR}}/{file} \\\n" for file in files),
    )
