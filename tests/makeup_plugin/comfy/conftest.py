"""ComfyUI's API: a checkout that the variable COMFYUI names, or the stand-in beside this file."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

CONTRACT = Path(__file__).parent / "contract"


@pytest.fixture(scope="session")
def comfy_path() -> str:
    """The folder that holds `comfy_api`, first on the path of modules from here on."""
    folder = os.environ.get("COMFYUI") or str(CONTRACT)
    sys.path.insert(0, folder)
    if folder != str(CONTRACT):
        from comfy.cli_args import args

        args.cpu = True
    return folder


@pytest.fixture(scope="session")
def nodes(comfy_path) -> dict:
    """The classes by node id, as ComfyUI collects them."""
    from makeup_plugin.comfy import comfy_entrypoint

    async def collect():
        extension = await comfy_entrypoint()
        return await extension.get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(collect())}
