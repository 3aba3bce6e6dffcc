"""A dry run of a published protocol: many references and prompts, three tiny random methods, killed and resumed.

    python -m benchmarks.protocol --portraits DIR --prompts FILE --licence TEXT --origin TEXT --out DIR

Three pipelines of SDXL's kind with random weights draw every reference with every prompt, one of them without a face.
The run is killed by SIGKILL and resumed with the same command; another run is not interrupted. The pictures of both
must be the same, to the byte, and those that were there before the kill must not have been touched.
The figures mean nothing: what is tried is that the run ends, and that every column is filled or "not measured".
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image

from eval.benchmark.references import ENDINGS
from faceclip.encoder import FaceCLIP
from faceclip.errors import DataError
from faceclip.face3d.fitter import FaceFitter
from faceclip.faces import load_image
from faceclip.settings import run, setting
from faceclip.towers.face import FaceViT
from faceclip.towers.image import ImageTower
from faceclip.towers.text import TextTower
from makeup_plugin import FaceMakeUpPipeline, IdentityChannel
from makeup_plugin.saving.adapters import LoraSettings, add_lora
from makeup_plugin.shading import shading_channel_from_unet

NAMES = ("first", "second", "third, without a face")


@dataclass(kw_only=True)
class ProtocolSettings:
    """Which references and prompts, and when the run is killed."""

    portraits: Path = setting(help="folder of photos, each a person of its own")
    prompts: Path = setting(help="file of prompts, CATEGORY<tab>PROMPT")
    out: Path = setting(help="receives both runs")
    people: int | None = setting(None, "at most so many references")
    kill: int = setting(100, "pictures after which the run is killed", least=1)
    compare: int | None = setting(
        None, "pictures that the uninterrupted run draws, by default all; 0: no such run", least=0
    )
    per_reference: int = setting(0, "prompts of each reference, taking turns; 0: every prompt", least=0)
    side: int = setting(320, "px of the longer side to which the references are reduced", least=64)
    size: int = setting(64, "px of the pictures")
    steps: int = setting(1, "sampler steps", least=1)
    licence: str = setting(help="of the portraits")
    origin: str = setting(help="of the portraits")


def random_pipeline(folder: Path, seed: int) -> None:
    """A whole pipeline of SDXL's kind with every channel and random weights, some 400,000 of them in the UNet."""
    torch.manual_seed(seed)
    words = list(range(256, 3000))
    face = FaceViT(image_size=36, patch_size=9, width=32, depth=1, heads=2, embedding_dim=16)
    text_l = TextTower(width=32, layers=1, heads=2, quick_gelu=True, embed_dim=24, vocabulary=words)
    text_g = TextTower(width=48, layers=1, heads=2, quick_gelu=False, embed_dim=24, vocabulary=words)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=1,
        attention_head_dim=(2, 4),
        cross_attention_dim=80,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 48,
        norm_num_groups=8,
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=64,
    )
    shading = shading_channel_from_unet(unet, vae_scale_factor=4)
    channel = IdentityChannel.from_unet(unet, identity_dim=16, image_dim=32, depth=1, heads=2, dim_head=8)
    add_lora(unet, LoraSettings(rank=2))
    FaceMakeUpPipeline(
        unet=unet,
        vae=vae,
        scheduler=DDIMScheduler(),
        joint_encoder=FaceCLIP.from_components(face, text_l, text_g, fusion={}, joint={}),
        image_encoder=ImageTower(image_size=32, patch_size=8, width=32, layers=1, heads=2, embed_dim=24),
        identity_channel=channel,
        shading_channel=shading,
        face_fitter=FaceFitter(image_size=32, widths=(8, 16, 16, 16), hidden=16),
    ).save_pretrained(folder)


def write_protocol(settings: ProtocolSettings) -> tuple[Path, Path]:
    """The files of suite and methods in OUT, with the weights beside them."""
    out = settings.out
    out.mkdir(parents=True, exist_ok=True)
    portraits = out / "portraits"
    portraits.mkdir(exist_ok=True)
    for path in sorted(settings.portraits.iterdir()):
        if path.suffix.lower() in ENDINGS and not (portraits / f"{path.stem}.png").is_file():
            picture = Image.fromarray(load_image(path))
            picture.thumbnail((settings.side, settings.side), Image.Resampling.LANCZOS)
            picture.save(portraits / f"{path.stem}.png")
    methods = []
    for number, name in enumerate(NAMES):
        folder = out / "models" / str(number)
        if not (folder / "model_index.json").is_file():
            random_pipeline(folder, seed=number)
        kind = "plain" if number == len(NAMES) - 1 else "pipeline"
        methods.append({"name": name, "kind": kind, "model": str(folder.resolve()), "steps": settings.steps})
    suite = {
        "name": "dry run",
        "licence": settings.licence,
        "origin": settings.origin,
        "references": {
            "kind": "portraits",
            "folder": str(portraits.resolve()),
            "people": settings.people,
            "photos": 1,
        },
        "prompts": {"file": str(settings.prompts.resolve()), "per_reference": settings.per_reference},
        "size": [settings.size, settings.size],
        "recognizers": {"dlib": "dlib", "second recognizer": "shipped"},
    }
    paths = out / "suite.yaml", out / "methods.yaml"
    for path, content in zip(paths, (suite, {"methods": methods}), strict=True):
        path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return paths


def pictures(folder: Path) -> dict[str, str]:
    """Name → SHA-256 of every picture of a run."""
    found = sorted((folder / "pictures").glob("*/*.png"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def has_record(folder: Path, name: str) -> bool:
    return (folder / name).with_suffix(".json").is_file()


def run_until(command: list[str], folder: Path, kill: int) -> int:
    """Runs a command until there are so many pictures, and kills it by SIGKILL. Returns how many there were.

    Raises DataError where it ended before.
    """
    with subprocess.Popen(command) as process:
        while True:
            count = sum(1 for _ in (folder / "pictures").glob("*/*.json"))
            if count >= kill:
                os.kill(process.pid, signal.SIGKILL)
                return count
            if process.poll() is not None:
                raise DataError(f"the run ended with status {process.returncode} after {count} pictures: lower --kill")
            time.sleep(0.2)


def rehearse(settings: ProtocolSettings) -> None:
    """Both runs and the comparison. Raises DataError where they differ."""
    suite, methods = write_protocol(settings)
    killed, whole = settings.out / "killed", settings.out / "whole"
    command = [sys.executable, "-m", "eval.benchmark", "--suite", str(suite), "--methods", str(methods), "--out"]
    count = run_until([*command, str(killed)], killed, settings.kill)
    before = pictures(killed)
    written = {name: (killed / name).stat().st_mtime_ns for name in before if has_record(killed, name)}
    print(f"killed after {count} pictures; the same command resumes", flush=True)
    subprocess.run([*command, str(killed)], check=True)
    after = pictures(killed)
    touched = [name for name, moment in written.items() if (killed / name).stat().st_mtime_ns != moment]
    if settings.compare is None:
        subprocess.run([*command, str(whole), "--draw-only"], check=True)
    elif settings.compare:
        run_until([*command, str(whole), "--draw-only"], whole, settings.compare)
    # The last picture of a killed run may lack its record, or its second half.
    other = {name: found for name, found in pictures(whole).items() if has_record(whole, name)}
    different = [name for name, found in other.items() if after.get(name) != found]
    if touched or different or (settings.compare is None and len(other) != len(after)):
        raise DataError(f"{len(touched)} pictures were drawn again, {len(different)} of {len(other)} differ")
    print(f"{len(after):,} pictures, {len(written):,} of them from before the kill and untouched")
    print(f"{len(other):,} pictures of the uninterrupted run are the same")
    results = json.loads((killed / "results.json").read_text(encoding="utf-8"))
    missing = results["protocol"]["not measured"]
    for name, found in results["methods"].items():
        print(f"{name}: {found['drawn']} drawn, {found['failed']} failed, {len(found['figures'])} columns")
    print(f"not measured: {', '.join(missing)}")


main = partial(run, rehearse, ProtocolSettings, flags=True)

if __name__ == "__main__":
    sys.exit(main())
