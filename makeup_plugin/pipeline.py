"""FaceMakeUpPipeline: a diffusers pipeline on SDXL that keeps a person's face and follows the text.

pipeline = FaceMakeUpPipeline.from_pretrained("runs/generator/export")
output = pipeline("a smiling person with red hair", image="photo.jpg", generator=torch.manual_seed(0))
output.save("out")
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DiffusionPipeline, ModelMixin, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import ArrayLike
from torch import Tensor

from faceclip.errors import ConfigError
from faceclip.faces import FaceDetector, MTCNNDetector
from makeup_plugin.arguments import (
    channel_scale,
    check_call,
    check_callback,
    check_generator,
    check_negative,
    image_size,
    number,
    texts_of,
)
from makeup_plugin.callbacks import callback_after_step
from makeup_plugin.conditioning import Conditions, concatenate, encode_conditions, unconditional_half
from makeup_plugin.identity import IdentityChannel
from makeup_plugin.marking import watermark as watermarking
from makeup_plugin.marking.provenance import make_records
from makeup_plugin.output import FaceMakeUpOutput
from makeup_plugin.references import (
    Images,
    References,
    fitted_shading,
    given_shading,
    prepare_references,
    shading_pictures,
)
from makeup_plugin.sampling import decode, denoise, make_timesteps, seeds_of
from makeup_plugin.saving.storage import PipelineStorageMixin
from makeup_plugin.switches import PipelineSwitchesMixin


class FaceMakeUpPipeline(
    PipelineStorageMixin,
    PipelineSwitchesMixin,
    DiffusionPipeline,
    StableDiffusionMixin,
    StableDiffusionXLLoraLoaderMixin,
):
    """SDXL conditioned by FaceCLIP, with an identity channel and a shading channel.

    Args:
        vae, unet, scheduler: an SDXL base; the UNet has text_time conditioning.
        joint_encoder: `faceclip.encoder.FaceCLIP`; its tokens are the UNet's context.
        image_encoder: `faceclip.towers.image.ImageTower` of the identity channel.
        identity_channel: decoupled cross-attention to the person; attached to the UNet here.
        shading_channel: ControlNet on the rendered, lit geometry of the face.
        face_fitter: `faceclip.face3d.fitter.FaceFitter`; finds that geometry in a photo.
        add_watermark: mark generated pixels (see `makeup_plugin.marking.watermark`) unless a call says otherwise.
    """

    model_cpu_offload_seq = "face_fitter->joint_encoder->image_encoder->unet->vae"
    _optional_components: ClassVar = ["image_encoder", "identity_channel", "shading_channel", "face_fitter"]
    # Its weights are used inside the UNet's forward, so it must be there when the UNet is.
    _exclude_from_cpu_offload: ClassVar = ["identity_channel"]
    _callback_tensor_inputs: ClassVar = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]
    _lora_loadable_modules: ClassVar = ["unet"]

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        joint_encoder: ModelMixin,
        image_encoder: ModelMixin = None,
        identity_channel: IdentityChannel = None,
        shading_channel: ControlNetModel = None,
        face_fitter: ModelMixin = None,
        add_watermark: bool = True,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            joint_encoder=joint_encoder,
            image_encoder=image_encoder,
            identity_channel=identity_channel,
            shading_channel=shading_channel,
            face_fitter=face_fitter,
        )
        self.register_to_config(add_watermark=add_watermark)
        if identity_channel is not None:
            if image_encoder is None:
                raise ConfigError("identity_channel needs image_encoder: give the image tower it was trained with")
            identity_channel.attach(unet)
        elif shading_channel is not None:
            raise ConfigError("shading_channel reads the identity channel's tokens: give identity_channel too")
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1) if vae is not None else 8
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self.base_model = ""  # the base's hub id or path, as far as it is known; goes into adapter.json
        self.licence = ""  # of all that from_pretrained read, as far as it is known
        self.adapter_licence = ""  # of what load_adapter put on it
        self._detector: FaceDetector | None = None
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._interrupt = False

    @property
    def guidance_scale(self) -> float:
        """Guidance of the current call; callbacks may read it."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the current call runs an unconditional half."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Steps of the current call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """A callback may set `pipeline._interrupt = True` to stop early."""
        return self._interrupt

    @property
    def detector(self) -> FaceDetector:
        """The face detector; `MTCNNDetector`, made on first use, unless another one was set."""
        if self._detector is None:
            self._detector = MTCNNDetector()
        return self._detector

    @detector.setter
    def detector(self, value: FaceDetector | None) -> None:
        self._detector = value

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Images = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        identity_scale: float | None = None,
        shading_scale: float | None = None,
        shading_image: Images = None,
        shading_map: Images = None,
        landmarks: Sequence[ArrayLike | None] | ArrayLike | None = None,
        shading_landmarks: Sequence[ArrayLike | None] | ArrayLike | None = None,
        face_policy: str = "largest",
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        guide_shading: bool = False,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        output_type: str = "pil",
        return_dict: bool = True,
        watermark: bool | None = None,
        record_prompt: bool = False,
    ) -> FaceMakeUpOutput | tuple:
        """Make images of the person in `image` as `prompt` says.

        Args:
            prompt: one text or a list.
            image: photo of the person: path, PIL image, array (H,W,3) uint8 or float in [0,1], or a list of
                them (one per prompt, or several for one prompt; None entries are text only). Without any
                image the joint encoder takes its unconditional face (a zero image, prompt without template),
                the identity channel gets zero inputs and the shading channel nothing.
            negative_prompt: what to steer away from, one for all, per prompt or per image; default the empty
                text. Used when guidance_scale > 1.
            identity_scale: weight of the identity channel's attention; default 1 where the channel exists.
            shading_scale: weight of the shading channel; default 1 where the channel exists.
            shading_image: photo that gives pose, expression and light instead of `image`; the shape of the
                head stays the person's.
            shading_map: a ready map at image size instead of any fit; black where there is no face.
            landmarks, shading_landmarks: (5,2) px per image; detection is skipped.
            face_policy: which of several faces: "largest", "center" or "only".
            height, width: px, multiples of the VAE's factor; default the UNet's sample size.
            num_inference_steps, guidance_scale: 50 and 5.0 as FaceCLIP publishes.
            guide_shading: leave the map out of the unconditional half, so that guidance strengthens it too.
            num_images_per_prompt: images per prompt, next to each other in the output.
            generator: torch generator, or one per image.
            latents: initial noise (N,C,h,w) in the UNet's channels, of unit variance instead of drawing it.
            callback_on_step_end: called as (pipeline, step, timestep, tensors); may return changed tensors.
            callback_on_step_end_tensor_inputs: among "latents", "prompt_embeds", "add_text_embeds" and
                "add_time_ids".
            output_type: "pil", "np" (N,H,W,3), "pt" (N,3,H,W) or "latent".
            return_dict: False gives the tuple (images, faces).
            watermark: False leaves the pixels unmarked, which the provenance records. Default:
                `config.add_watermark`.
            record_prompt: put the prompt's text into the provenance, not only its hash.

        Raises the errors of `faceclip.errors`: ConfigError for arguments that do not fit together,
        NoFaceError and the other face errors naming the image.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        prompts = texts_of("prompt", prompt)
        negative_prompts = texts_of("negative_prompt", "" if negative_prompt is None else negative_prompt)
        height, width = image_size(self.unet, self.vae_scale_factor, height, width)
        num_inference_steps, num_images_per_prompt = check_call(num_inference_steps, num_images_per_prompt, output_type)
        check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        identity_scale = channel_scale("identity", self.identity_channel, identity_scale)
        shading_scale = channel_scale("shading", self.shading_channel, shading_scale)
        self._guidance_scale = guidance_scale = number("guidance_scale", guidance_scale)
        self._interrupt = False
        device = self._execution_device

        references = self._references(prompts, image, landmarks, face_policy)
        if len(prompts) == 1:
            prompts = prompts * len(references)
        check_negative(len(negative_prompts), len(prompts), num_images_per_prompt)
        maps = self._shading_maps(
            references,
            shading_image,
            shading_map,
            shading_landmarks,
            shading_scale,
            face_policy,
            height,
            width,
        )
        conditions = self._encode(prompts, references, maps, height, width, device)
        shading_maps = shading_pictures(conditions.shading, conditions.shading_keep, len(prompts))
        conditions = conditions.repeat(num_images_per_prompt)
        if self.do_classifier_free_guidance:
            negative = unconditional_half(
                self.joint_encoder,
                negative_prompts,
                conditions,
                height=height,
                width=width,
                keep_shading=not guide_shading,
            )
            conditions = concatenate([negative, conditions])

        count = len(prompts) * num_images_per_prompt
        latents = self._initial_latents(latents, count, height, width, device, generator)
        if self.identity_channel is not None:
            self.identity_channel.scale = identity_scale
        self.evict_models()
        timesteps = make_timesteps(self.scheduler, num_inference_steps, latents.device)
        self._num_timesteps = len(timesteps)
        after_step = None
        if callback_on_step_end is not None:
            after_step = callback_after_step(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        latents = denoise(
            self.unet,
            self.scheduler,
            latents,
            conditions,
            timesteps=self.progress_bar(timesteps),
            guidance_scale=guidance_scale,
            identity_channel=self.identity_channel,
            shading_channel=self.shading_channel,
            shading_scale=shading_scale,
            generator=generator,
            after_step=after_step,
            interrupted=lambda: self.interrupt,
        )
        marked = (self.config.add_watermark if watermark is None else watermark) and output_type != "latent"
        images = latents
        self.evict_models()
        if output_type != "latent":
            images = decode(self.vae, self.image_processor, latents, output_type=output_type, marked=marked)
        self.maybe_free_model_hooks()

        def each(values: list) -> list:
            return [value for value in values for _ in range(num_images_per_prompt)]

        faces = each(references.faces)
        if not return_dict:
            return images, faces
        settings = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "identity_scale": identity_scale,
            "shading_scale": shading_scale,
            "height": height,
            "width": width,
        }
        records = make_records(
            model=str(getattr(self.config, "_name_or_path", None) or "unnamed"),
            prompts=each(prompts),
            has_face=[face is not None for face in faces],
            seeds=seeds_of(generator, count),
            watermark=watermarking.METHOD if marked else None,
            settings=settings,
            record_prompt=record_prompt,
        )
        return FaceMakeUpOutput(images=images, faces=faces, shading_maps=each(shading_maps), provenance=records)

    def _references(self, prompts: list[str], image: Images, landmarks: Any, policy: str) -> References:
        if image is None and landmarks is not None:
            raise ConfigError("landmarks are those of image: give it too, or leave them out")
        several = isinstance(image, list | tuple) or (isinstance(image, np.ndarray) and image.ndim == 4)
        count = None if several and len(prompts) == 1 else len(prompts)
        detector = self.detector if image is not None and landmarks is None else self._detector
        return prepare_references(image, count=count, landmarks=landmarks, policy=policy, detector=detector)

    def _shading_maps(
        self,
        references: References,
        shading_image: Images,
        shading_map: Images,
        landmarks: Any,
        scale: float,
        policy: str,
        height: int,
        width: int,
    ) -> Tensor | None:
        if shading_image is not None and shading_map is not None:
            raise ConfigError("shading_image and shading_map exclude each other: give one")
        if shading_image is None and landmarks is not None:
            raise ConfigError("shading_landmarks are those of shading_image: give it too, or leave them out")
        if self.shading_channel is None:
            if shading_image is not None or shading_map is not None:
                raise ConfigError("this pipeline has no shading_channel: load one, or give no shading_image/_map")
            return None
        if scale == 0:
            return None
        if shading_map is not None:
            return given_shading(shading_map, len(references), height=height, width=width)
        others = None
        if shading_image is not None:
            others = prepare_references(
                shading_image,
                count=len(references),
                landmarks=landmarks,
                policy=policy,
                detector=self.detector if landmarks is None else self._detector,
                what="shading_image",
            )
        elif not bool(references.has_face.any()):
            return None
        if self.face_fitter is None:
            raise ConfigError(
                "the shading channel needs a map and this pipeline has no face_fitter: pass shading_map, or"
                " shading_scale=0"
            )
        return fitted_shading(self.face_fitter, references, others, height=height, width=width)

    def _encode(
        self,
        prompts: list[str],
        references: References,
        maps: Tensor | None,
        height: int,
        width: int,
        device: torch.device,
    ) -> Conditions:
        channel = self.identity_channel
        crops = None if references.crops is None else references.crops.to(device)
        conditions = encode_conditions(
            self.joint_encoder,
            prompts,
            crops,
            height=height,
            width=width,
            image_encoder=self.image_encoder if channel is not None else None,
            has_face=None if crops is None else references.has_face,
            identity_dim=None if channel is None else channel.config.identity_dim,
            shading=None if maps is None else maps.to(device),
        )
        return conditions.to(device, self.unet.dtype)

    def _initial_latents(
        self,
        latents: Tensor | None,
        count: int,
        height: int,
        width: int,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> Tensor:
        factor = self.vae_scale_factor
        shape = (count, self.unet.config.in_channels, height // factor, width // factor)
        check_generator(generator, count)
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        if not isinstance(latents, Tensor) or tuple(latents.shape) != shape:
            found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ConfigError(f"latents must be a tensor {shape}, got {found}")
        return latents.to(device=device, dtype=self.unet.dtype)
