"""FaceMakeUpPipeline: a diffusers pipeline on SDXL that keeps a person's face and follows the text.

pipeline = FaceMakeUpPipeline.from_pretrained("runs/generator/export")
output = pipeline("a smiling person with red hair", image="photo.jpg", generator=torch.manual_seed(0))
output.save("out")
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiffusionPipeline,
    ModelMixin,
    MultiControlNetModel,
    UNet2DConditionModel,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from numpy.typing import ArrayLike
from torch import Tensor
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from faceclip.face3d.fitter import FaceFitter
from faceclip.joint import JointEncoder
from faceclip.towers.image import ImageTower
from makeup_plugin.arguments import check_parts
from makeup_plugin.calls.defaults import CallDefaults, read_defaults
from makeup_plugin.calls.generate import generate
from makeup_plugin.calls.request import Request
from makeup_plugin.calls.state import CallStateMixin
from makeup_plugin.conditioning import TextSide
from makeup_plugin.controls import as_one, check_controlnet, check_shading_channel
from makeup_plugin.face_side import FaceSideMixin
from makeup_plugin.fit_edits import Expression, Pose
from makeup_plugin.identities import Identity
from makeup_plugin.identity import IdentityChannel
from makeup_plugin.known_faces import KnownFaces
from makeup_plugin.output import FaceMakeUpOutput
from makeup_plugin.placement import Placement
from makeup_plugin.plain_text import PlainText
from makeup_plugin.references import Images
from makeup_plugin.regions import Region
from makeup_plugin.saving.generic_loading import known_to_diffusers
from makeup_plugin.saving.storage import PipelineStorageMixin
from makeup_plugin.scales import Schedule
from makeup_plugin.sharing import PipelineSharingMixin
from makeup_plugin.switches import PipelineSwitchesMixin
from makeup_plugin.turns import call_in_turn, turns_of, waits_for_calls


@known_to_diffusers
@waits_for_calls(
    *("set_adapters", "enable_lora", "disable_lora", "set_lora_device", "enable_lora_hotswap"),
    *("enable_freeu", "disable_freeu", "unfuse_qkv_projections", "remove_all_hooks", "reset_device_map"),
    *("enable_xformers_memory_efficient_attention", "disable_xformers_memory_efficient_attention"),
)
class FaceMakeUpPipeline(
    CallStateMixin,
    FaceSideMixin,
    PipelineStorageMixin,
    PipelineSharingMixin,
    PipelineSwitchesMixin,
    DiffusionPipeline,
    StableDiffusionMixin,
    StableDiffusionXLLoraLoaderMixin,
):
    """SDXL conditioned by FaceCLIP, with an identity channel and a shading channel.

    Published adapters draw on plain text instead: `from_published` builds such pipelines, on SDXL or SD 1.5.

    Threads may share a pipeline, and pipelines may share their parts: they take turns. A call, a load, a save or a
    move to another device waits until the one before has ended.

    Args:
        vae, unet, scheduler: an SDXL base, whose UNet has text_time conditioning, or with plain text an SD 1.5 base.
        joint_encoder: `faceclip.encoder.FaceCLIP`; its tokens are the UNet's context.
        image_encoder: `faceclip.towers.image.ImageTower` of the identity channel, or CLIPVisionModelWithProjection of
            transformers. Only a channel of the perceiver form reads it.
        identity_channel: decoupled cross-attention to the person. The pipeline attaches it to the UNet.
        shading_channel: ControlNet on the rendered, lit geometry of the face.
        face_fitter: `faceclip.face3d.fitter.FaceFitter`, which finds that geometry in a render (see `fitter`).
        add_watermark: the default of the call's `watermark` (see `makeup_plugin.marking.watermark`).
        default_call: what a call uses where the caller gives nothing, the settings that suit this model: any of
            num_inference_steps, guidance_scale, guide_shading, identity_scale and shading_scale. None: the published
            ones. It is saved with the pipeline.
        text_encoder, tokenizer, text_encoder_2, tokenizer_2: the base's own CLIP text towers (one of SD 1.5, two of
            SDXL). They are used where there is no joint encoder; beside one they are not kept.
        face_encoder: the recognizer whose identity the channel was trained with, beside plain text towers.
        control_map: what the shading channel reads: "shading", the fitted face, or "five_points", a drawing of eyes,
            nose and mouth (see `makeup_plugin.five_points`).
        force_zeros_for_empty_prompt: with plain text, an absent negative prompt gives zeros, as SDXL's bases want it.
        published: kind, weights, revision and licence of the published weights, where `from_published` built this.
        controlnet: further ControlNets of the base, one or a list. They see `control_image` and the text, as in
            diffusers.

    Raises:
        ConfigError: an identity channel without what it reads, a shading channel without `identity_channel`, no joint
            encoder and no text towers either, or an unknown control_map.
    """

    model_cpu_offload_seq = (
        "face_fitter->joint_encoder->text_encoder->text_encoder_2->face_encoder->image_encoder->unet->vae"
    )
    _optional_components: ClassVar = [
        "joint_encoder",
        "image_encoder",
        "identity_channel",
        "shading_channel",
        "face_fitter",
        "text_encoder",
        "tokenizer",
        "text_encoder_2",
        "tokenizer_2",
        "face_encoder",
        "controlnet",
    ]
    # Its weights are used inside the UNet's forward pass, so it must be on the device whenever the UNet is.
    _exclude_from_cpu_offload: ClassVar = ["identity_channel"]
    _callback_tensor_inputs: ClassVar = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]
    _lora_loadable_modules: ClassVar = ["unet"]

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        joint_encoder: JointEncoder | ModelMixin | None = None,
        image_encoder: ImageTower | ModelMixin | CLIPVisionModelWithProjection | None = None,
        identity_channel: IdentityChannel | None = None,
        shading_channel: ControlNetModel | None = None,
        face_fitter: FaceFitter | ModelMixin | None = None,
        add_watermark: bool = True,
        default_call: Mapping[str, Any] | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        tokenizer_2: CLIPTokenizer | None = None,
        face_encoder: ModelMixin | None = None,
        control_map: str = "shading",
        force_zeros_for_empty_prompt: bool = False,
        published: dict[str, Any] | None = None,
        controlnet: ControlNetModel | MultiControlNetModel | Sequence[ControlNetModel] | None = None,
    ):
        super().__init__()
        self._turns = turns_of(unet)
        if joint_encoder is not None:
            text_encoder = tokenizer = text_encoder_2 = tokenizer_2 = None
        self.register_modules(
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            joint_encoder=joint_encoder,
            image_encoder=image_encoder,
            identity_channel=identity_channel,
            shading_channel=shading_channel,
            face_fitter=face_fitter,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            face_encoder=face_encoder,
            controlnet=as_one(controlnet),
        )
        read_defaults(default_call)
        self.register_to_config(
            add_watermark=add_watermark,
            default_call=None if default_call is None else dict(default_call),
            control_map=control_map,
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
            published=published,
        )
        check_parts(self)
        check_controlnet(self.controlnet, unet)
        if shading_channel is not None:
            check_shading_channel(shading_channel, unet)
        if identity_channel is not None:
            identity_channel.attach(unet)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1) if vae is not None else 8
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self.base_model = ""  # hub id or path of the base where it is known; save_pretrained writes it to adapter.json
        self.licence = ""  # licence of everything that from_pretrained read, where it is known
        self.adapter_licence = ""  # licence of the adapter that load_adapter added
        self.whole_unet = False  # whether training changed all of the UNet (FaceCLIP-SDXL), not a LoRA
        self.replaced_unet: UNet2DConditionModel | None = None  # the base's, while an adapter brought one
        self.known_faces = KnownFaces()

    @property
    def call_defaults(self) -> CallDefaults:
        """What a call uses where the caller gives nothing, from `config.default_call`."""
        return read_defaults(self.config.default_call)

    @property
    def text_side(self) -> TextSide:
        """What turns prompts into the UNet's context: the joint encoder, or the base's own text towers."""
        if self.joint_encoder is not None:
            return self.joint_encoder
        present = [name for name in ("text_encoder", "text_encoder_2") if getattr(self, name) is not None]
        return PlainText(
            tokenizers=[getattr(self, name.replace("text_encoder", "tokenizer")) for name in present],
            towers=[getattr(self, name) for name in present],
            recognizer=self.face_encoder,
        )

    @torch.no_grad()
    @call_in_turn
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Images = None,
        *,
        identity: Identity | Sequence[Identity | None] | None = None,
        regions: Sequence[Region] | None = None,
        region_prompts: Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        identity_scale: float | Sequence[float] | Mapping[str, Any] | None = None,
        identity_start: float = 0.0,
        identity_end: float = 1.0,
        identity_schedule: Schedule | None = None,
        shading_scale: float | None = None,
        shortcut_scale: float | None = None,
        shading_image: Images = None,
        shading_map: Images = None,
        landmarks: Sequence[ArrayLike | None] | ArrayLike | None = None,
        shading_landmarks: Sequence[ArrayLike | None] | ArrayLike | None = None,
        pose: Pose | None = None,
        expression: Expression | None = None,
        light: ArrayLike | None = None,
        reference_placement: Placement = "center",
        face_policy: str = "largest",
        control_image: Images | Sequence[Images] = None,
        controlnet_conditioning_scale: float | Sequence[float] = 1.0,
        control_guidance_start: float | Sequence[float] = 0.0,
        control_guidance_end: float | Sequence[float] = 1.0,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        eta: float = 0.0,
        guide_shading: bool | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        clip_skip: int | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        original_size: Sequence[int] | None = None,
        crops_coords_top_left: Sequence[int] = (0, 0),
        target_size: Sequence[int] | None = None,
        negative_original_size: Sequence[int] | None = None,
        negative_crops_coords_top_left: Sequence[int] = (0, 0),
        negative_target_size: Sequence[int] | None = None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        output_type: str = "pil",
        return_dict: bool = True,
        allow_urls: bool = False,
        watermark: bool | None = None,
        record_prompt: bool = False,
    ) -> FaceMakeUpOutput | tuple:
        """Generate images of the person in `image` that follow `prompt`.

        Args:
            prompt: one text or a list of texts, or None with prompt_embeds.
            image: photo of the person: a path, a PIL image, an array (H,W,3) or tensor (3,H,W) of uint8 or of floats in
                [0,1], or a list of these (one per prompt, or several for one prompt). An entry None uses the text
                alone. Without any image the joint encoder uses its unconditional face (a zero image, prompt without
                template), the identity channel gets zero inputs, and the shading channel does not run. A list of
                lists is several people in one picture, each with one photo or more.
            identity: the person as `encode_identity` gives it, in place of `image`: one, or a list (one per prompt, or
                several for one prompt). An entry None uses the text alone.
            regions: one box (left, top, right, bottom) in px or one mask of the picture's size per person. The entries
                of `image` or `identity` are then people of one picture. By default several people get a column each.
            region_prompts: one text per person, of which only the region knows. By default that is `prompt`.
            negative_prompt: what the image should not show: one text for all, one per prompt or one per image. The
                default is the empty text. It has an effect when guidance_scale > 1.
            identity_scale: weight of the identity channel's attention. The default is that of the model
                (`call_defaults`), or 1 where the channel exists. A list has one per prompt or image, or one per person
                of a picture. A dictionary weighs blocks of the UNet as in diffusers' `set_ip_adapter_scale`, for
                example {"down": {"block_2": 0.5}, "up": 1.0}.
            identity_start, identity_end: shares of the steps between which the identity channel runs.
            identity_schedule: factor of the identity's weight: one per step, or a function of the share of the steps
                that are done.
            shading_scale: weight of the shading channel. The default is that of the model, or 1.
            shortcut_scale: weight of the image tokens' part in the identity tokens, FaceID-PlusV2's `s_scale`. The
                default is 1; only a channel with a shortcut takes another value.
            shading_image: photo that gives pose, expression and light in place of `image`. The shape of the head stays
                that of the person in `image`.
            shading_map: a ready shading map at image size in place of a fitted one, black where there is no face.
            landmarks, shading_landmarks: five points (5,2) in px per image. They replace the detection.
            pose: (yaw, pitch, roll) of the head in degrees, or some by name such as {"yaw": 30}, instead of the fit's.
            expression: controls of the head model such as {"smile": 0.8} in place of the fit's, or "neutral".
            light: direction (x right, y up, z to the viewer) to a lamp, or (9,3) spherical harmonics.
            reference_placement: where the fitted face goes. "center": a square photo as it is, the face of any other as
                a portrait in the middle. "keep": where it is in the photo, which lies whole in the middle. A box (left,
                top, right, bottom) in px: as "center", in this part of the picture.
            face_policy: which face to use where there are several: "largest", "center" or "only" (more than one is an
                error).
            control_image: what the `controlnet` sees, resized to the picture: one or one per prompt; with several
                ControlNets a list with an entry for each. Without it they do not run.
            controlnet_conditioning_scale: weight of the `controlnet`, one or a list of one for each.
            control_guidance_start, control_guidance_end: shares of the steps between which it runs; as the weight.
            height, width: size in px, multiples of the VAE's factor. The default is the UNet's sample size.
            num_inference_steps, guidance_scale: the defaults are those of the model (`call_defaults`), or 50 and 5.0,
                which FaceCLIP publishes.
            timesteps, sigmas: a schedule of your own in place of num_inference_steps, in descending order.
            denoising_end: stop after this part of the noise, in (0, 1]; another model may go on from the latents.
            denoising_start: go on after this part of the noise, in (0, 1), from `latents` that a model left there.
            guidance_rescale, eta: between 0 and 1, as in diffusers. eta is for schedulers that have it.
            guide_shading: run the unconditional half without the shading map, so that guidance strengthens the map too.
            num_images_per_prompt: number of images per prompt. They lie next to each other in the output.
            generator: one torch generator, or a list of one per image.
            latents: initial noise (N,C,h,w) of unit variance, with the UNet's input channels. By default it is drawn.
                With denoising_start: what a call with denoising_end and output_type="latent" gave.
            prompt_embeds, pooled_prompt_embeds: context tokens (N,T,D) and pooled states (N,P) in place of `prompt`.
                The channels still see the person in `image`.
            negative_prompt_embeds, negative_pooled_prompt_embeds: the same in place of `negative_prompt`.
            clip_skip: layers that the base's own text towers leave out at their end, with plain text only. The joint
                encoder has no text tower that could end early.
            cross_attention_kwargs: as in diffusers; {"scale": s} weighs the LoRAs.
            original_size, crops_coords_top_left, target_size: SDXL's size conditioning, (height, width) or (top, left)
                in px. The default is the picture's size, uncropped. negative_…: that of the unconditional half.
            callback_on_step_end: called as (pipeline, step, timestep, tensors). It may return changed tensors.
            callback_on_step_end_tensor_inputs: names among "latents", "prompt_embeds", "add_text_embeds" and
                "add_time_ids".
            output_type: "pil", "np" (N,H,W,3), "pt" (N,3,H,W) or "latent".
            return_dict: False returns the tuple (images, faces).
            allow_urls: whether pictures may be http and https addresses of the public internet. By default they are
                rejected.
            watermark: False leaves the pixels unmarked, and the provenance records that. The default is
                `config.add_watermark`.
            record_prompt: store the prompt's text in the provenance as well as its hash.

        Raises:
            ConfigError: arguments that do not fit together or have impossible values.
            FaceError: an image that gives no face, more than one face, or cannot be read. The subclass says which
                (`NoFaceError`, `SeveralFacesError`, `UnreadableImageError`, …), and the message names the image.
        """
        return generate(self, Request(**{name: value for name, value in locals().items() if name != "self"}))
