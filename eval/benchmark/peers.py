"""Other projects' pipelines behind one signature: (references, prompt, seed, size) → picture.

Adapters import what they need when they are loaded and say what to install. They record nothing themselves: settings
are the options of METHODS.yaml, which the report shows. Weights come by hub id or folder under the terms of their
owners. A project of one's own: `adapter: module:factory`, where factory(options, device) gives such a function.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from faceclip.errors import ConfigError, MissingExtraError
from faceclip.settings import from_dict, setting

Peer = Callable[[Sequence[Image.Image], str, int, tuple[int, int]], Image.Image]


@dataclass(kw_only=True)
class SamplerOptions:
    """What all peers share."""

    base: str = setting(help="hub id or folder of the base model")
    steps: int = setting(30, "sampler steps")
    guidance: float = setting(5.0, "guidance scale")
    negative: str = setting("", "negative prompt")
    dtype: str = setting("float16", "of the weights; float32 on a CPU")


@dataclass(kw_only=True)
class IpAdapterOptions(SamplerOptions):
    """diffusers' own IP-Adapter loader, for adapters that read the picture: IP-Adapter, Plus, Plus-Face."""

    weights: str = setting("h94/IP-Adapter", "hub id or folder of the adapter")
    subfolder: str = setting("sdxl_models", "in it")
    file: str = setting("ip-adapter-plus-face_sdxl_vit-h.safetensors", "in the subfolder")
    image_encoder: str = setting("models/image_encoder", "folder of the image tower in `weights`")
    scale: float = setting(0.8, "weight of the adapter")


@dataclass(kw_only=True)
class PhotoMakerOptions(SamplerOptions):
    """PhotoMaker v2."""

    weights: str = setting("TencentARC/PhotoMaker-V2", "hub id or folder")
    file: str = setting("photomaker-v2.bin", "in it")
    trigger: str = setting("img", "word that stands for the person; it follows the first `person` of the prompt")


@dataclass(kw_only=True)
class InstantIdOptions(SamplerOptions):
    """InstantID by the community pipeline of diffusers, with insightface's antelopev2."""

    weights: str = setting("InstantX/InstantID", "hub id or folder of adapter and ControlNet")
    scale: float = setting(0.8, "weight of adapter and ControlNet")


@dataclass(kw_only=True)
class UniIdOptions(SamplerOptions):
    """UniID by the `Inference` class of its repository. It draws 1,024 px squares and has a negative prompt of its own.
    The authors' repository holds code; weights of both branches are the user's."""

    repository: str = setting(help="folder of a clone of github.com/lyuPang/UniID")
    text_branch: str = setting(help="file of the text branch's weights")
    adapter_branch: str = setting(help="file of the adapter branch's weights")
    recognizer: str = setting(help="file of the ResNet-100 recognizer that both read")
    names: str = setting("dataset/wiki_names_v2.txt", "file of names whose norms scale the text branch, in the clone")
    insightface: str = setting("~/.insightface", "root of insightface's packs; buffalo_l is read")
    guidance: float = setting(7.5, "guidance scale")
    text_tokens: int = setting(3, "of the text branch")
    adapter_tokens: int = setting(25, "of the adapter branch")
    merge_at: int = setting(5, "step at which both branches take their second scale")
    text_scales: tuple[float, float] = setting((0.5, 1.8), "of the text branch, before and after")
    adapter_scales: tuple[float, float] = setting((0.8, 1.2), "of the adapter branch, before and after")


def load_peer(name: str, options: Mapping[str, Any], device: str) -> Peer:
    """Returns the adapter of a name of `PEERS`, or of `module:factory`.

    Raises ConfigError for an unknown one and for its options, MissingExtraError with what to install.
    """
    if ":" in name:
        module, _, factory = name.partition(":")
        try:
            return getattr(importlib.import_module(module), factory)(dict(options), device)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"adapter: {name} cannot be imported ({error}); name module:factory") from error
    if name not in PEERS:
        raise ConfigError(f"adapter: {name} is not known: choose among {', '.join(PEERS)}, or name module:factory")
    kind, load = PEERS[name]
    return load(from_dict(kind, dict(options), prefix="options."), device)


def _need(module: str, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"adapter: {module} is not installed ({error}); install it by: {install}") from error


def _dtype(options: SamplerOptions, device: str) -> torch.dtype:
    return torch.float32 if device == "cpu" else getattr(torch, options.dtype)


def _call(options: SamplerOptions, seed: int, size: tuple[int, int]) -> dict[str, Any]:
    """Returns the arguments of a call that pipelines of diffusers share."""
    return {
        "negative_prompt": options.negative,
        "height": size[0],
        "width": size[1],
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "generator": torch.Generator().manual_seed(seed),
    }


def _ip_adapter(options: IpAdapterOptions, device: str) -> Peer:
    diffusers = _need("diffusers", "pip install diffusers")
    pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(options.base, torch_dtype=_dtype(options, device))
    pipeline.load_ip_adapter(
        options.weights,
        subfolder=options.subfolder,
        weight_name=options.file,
        image_encoder_folder=options.image_encoder,
    )
    pipeline.set_ip_adapter_scale(options.scale)
    pipeline = pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)

    def draw(references: Sequence[Image.Image], prompt: str, seed: int, size: tuple[int, int]) -> Image.Image:
        return pipeline(
            prompt,
            ip_adapter_image=[list(references)],
            **_call(options, seed, size),
        ).images[0]

    return draw


def _photomaker(options: PhotoMakerOptions, device: str) -> Peer:
    photomaker = _need("photomaker", "pip install git+https://github.com/TencentARC/PhotoMaker.git insightface")
    pipeline = photomaker.PhotoMakerStableDiffusionXLPipeline.from_pretrained(
        options.base, torch_dtype=_dtype(options, device)
    ).to(device)
    pipeline.load_photomaker_adapter(
        options.weights, subfolder="", weight_name=options.file, trigger_word=options.trigger, pm_version="v2"
    )
    pipeline.fuse_lora()
    analyser = photomaker.FaceAnalysis2(
        providers=["CPUExecutionProvider"], allowed_modules=["detection", "recognition"]
    )
    analyser.prepare(ctx_id=0, det_size=(640, 640))

    def draw(references: Sequence[Image.Image], prompt: str, seed: int, size: tuple[int, int]) -> Image.Image:
        embeddings = []
        for reference in references:
            faces = photomaker.analyze_faces(analyser, np.asarray(reference.convert("RGB"))[:, :, ::-1])
            if not faces:
                raise ValueError("PhotoMaker's detector finds no face in the reference")
            embeddings.append(torch.from_numpy(faces[0]["embedding"]))
        words = (
            prompt if options.trigger in prompt.split() else prompt.replace("person", f"person {options.trigger}", 1)
        )
        return pipeline(
            words if options.trigger in words.split() else f"a person {options.trigger}, {prompt}",
            input_id_images=list(references),
            id_embeds=torch.stack(embeddings),
            **_call(options, seed, size),
        ).images[0]

    return draw


def _instantid(options: InstantIdOptions, device: str) -> Peer:
    diffusers = _need("diffusers", "pip install diffusers")
    app = _need("insightface.app", "pip install insightface, and its pack antelopev2")
    precision = _dtype(options, device)
    control = diffusers.ControlNetModel.from_pretrained(
        options.weights, subfolder="ControlNetModel", torch_dtype=precision
    )
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        options.base,
        controlnet=control,
        torch_dtype=precision,
        custom_pipeline="pipeline_stable_diffusion_xl_instantid",
    ).to(device)
    pipeline.load_ip_adapter_instantid(f"{options.weights}/ip-adapter.bin")
    draw_keypoints = sys.modules[type(pipeline).__module__].draw_kps  # of the community file
    analyser = app.FaceAnalysis(name="antelopev2", providers=["CPUExecutionProvider"])
    analyser.prepare(ctx_id=0, det_size=(640, 640))

    def draw(references: Sequence[Image.Image], prompt: str, seed: int, size: tuple[int, int]) -> Image.Image:
        reference = references[0].convert("RGB").resize((size[1], size[0]))
        faces = analyser.get(np.asarray(reference)[:, :, ::-1])  # insightface reads BGR
        if not faces:
            raise ValueError("InstantID's detector finds no face in the reference")
        face = max(faces, key=lambda found: (found.bbox[2] - found.bbox[0]) * (found.bbox[3] - found.bbox[1]))
        return pipeline(
            prompt,
            image_embeds=face.embedding,
            image=draw_keypoints(reference, face.kps),
            controlnet_conditioning_scale=options.scale,
            ip_adapter_scale=options.scale,
            **_call(options, seed, size),
        ).images[0]

    return draw


def _uniid(options: UniIdOptions, device: str) -> Peer:
    clone = Path(options.repository).expanduser().resolve()
    if not (clone / "inference.py").is_file():
        raise MissingExtraError(
            f"adapter: options.repository {options.repository} has no inference.py; get it by: "
            "git clone https://github.com/lyuPang/UniID"
        )
    sys.path.insert(0, str(clone))  # its modules import each other by their bare names
    try:
        module = _need("inference", "pip install insightface opencv-python, and what UniID's environment.yaml names")
    finally:
        sys.path.remove(str(clone))
    if Path(module.__file__ or "").parent != clone:
        raise ConfigError(f"adapter: another module named inference is imported already, {module.__file__}")
    model = module.Inference(
        pretrained_model_name_or_path=options.base,
        pretrained_face_recog_model_path=options.recognizer,
        insightface_root=str(Path(options.insightface).expanduser()),
        num_text_branch_tokens=options.text_tokens,
        celeb_names_file=str(clone / options.names),
        load_text_branch_from_checkpoint=options.text_branch,
        num_adapter_tokens=options.adapter_tokens,
        normalize_adapter_output=True,
        load_adapter_branch_from_checkpoint=options.adapter_branch,
        torch_dtype=_dtype(options, device),
        device=device,
    )

    def draw(references: Sequence[Image.Image], prompt: str, seed: int, size: tuple[int, int]) -> Image.Image:
        pictures = model.infer(
            prompts=[prompt],
            cv2_image=np.ascontiguousarray(np.asarray(references[0].convert("RGB"))[:, :, ::-1]),  # BGR
            num_images_per_prompt=1,
            infer_batch_size=1,
            seed=seed,
            prompt_guidance_scale=options.guidance,
            num_inference_steps=options.steps,
            start_merge_step=options.merge_at,
            text_branch_scale_before_merge=options.text_scales[0],
            text_branch_scale=options.text_scales[1],
            adapter_branch_scale_before_merge=options.adapter_scales[0],
            adapter_branch_scale=options.adapter_scales[1],
            save_grid_images=False,
        )
        return pictures[0].convert("RGB").resize((size[1], size[0]), Image.Resampling.LANCZOS)

    return draw


PEERS: dict[str, tuple[type, Callable[[Any, str], Peer]]] = {
    "ip_adapter": (IpAdapterOptions, _ip_adapter),
    "photomaker_v2": (PhotoMakerOptions, _photomaker),
    "instantid": (InstantIdOptions, _instantid),
    "uniid": (UniIdOptions, _uniid),
}
