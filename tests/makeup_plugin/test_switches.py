"""diffusers' switches for memory and speed: offloading in its forms, and a compiled UNet."""

import accelerate
import numpy as np
import pytest
import torch

from faceclip.errors import ConfigError
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.saving.adapters import base_unet
from tests.makeup_plugin.calls import run


def test_offloading_moves_every_part(pipeline, photo, points):
    """Hooks on the CPU itself: every component is registered and called in a way that its hook sees."""
    wanted = run(pipeline, photo, points)
    present = (name for name in pipeline.model_cpu_offload_seq.split("->") if getattr(pipeline, name) is not None)
    names = set(present)
    modules = {name for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    assert names <= modules and modules - names == {"identity_channel", "shading_channel"}
    pipeline.enable_model_cpu_offload(device="cpu")
    hooked = {name for name in modules if hasattr(getattr(pipeline, name), "_hf_hook")}
    assert hooked == modules - {"identity_channel"}
    assert np.array_equal(run(pipeline, photo, points), wanted)


def test_a_precision_forgets_the_faces_of_the_one_before(pipeline, photo, points):
    """Weights that were rounded and widened again have other values, and the mark that they had before."""
    run(pipeline, photo, points)
    assert len(pipeline.known_faces) > 0
    pipeline.to("cpu")
    assert len(pipeline.known_faces) > 0
    pipeline.to(torch.bfloat16).to(dtype=torch.float32)
    assert len(pipeline.known_faces) == 0


def test_sequential_offloading(pipeline, photo, points, monkeypatch):
    """accelerate's hooks on the CPU itself: weights of UNet, ControlNet and autoencoder are there only when used."""
    offload = accelerate.cpu_offload
    # diffusers says "cpu:0", which PyTorch holds for another device than "cpu".
    monkeypatch.setattr(accelerate, "cpu_offload", lambda model, device, **options: offload(model, "cpu", **options))
    wanted = run(pipeline, photo, points)
    pipeline.enable_sequential_cpu_offload(device="cpu")
    for part in (pipeline.unet, pipeline.shading_channel, pipeline.vae):
        assert {weight.device.type for weight in part.parameters()} == {"meta"}
    for _ in range(2):
        assert np.array_equal(run(pipeline, photo, points), wanted)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert hasattr(pipeline.joint_encoder, "_hf_hook")
    assert np.array_equal(run(pipeline, photo, points), wanted)


def test_offloaded_encoders_make_room_for_the_unet(pipeline, photo, points, monkeypatch):
    """What the hooks had put on the device (here the CPU too) is called back before the UNet and before the decoder."""
    pipeline.enable_model_cpu_offload(device="cpu")
    events, names = [], {}
    monkeypatch.setattr(
        accelerate.hooks.CpuOffload,
        "init_hook",
        lambda hook, module: events.append(f"{names.get(module)} away") or module,
    )
    for name in ("joint_encoder", "image_encoder", "shading_channel"):
        module = getattr(pipeline, name)
        names[module] = name
        method = "encode" if name == "joint_encoder" else "forward"
        call = getattr(module, method)
        setattr(module, method, lambda *a, call=call, name=name, **k: events.append(name) or call(*a, **k))
    pipeline.unet.register_forward_pre_hook(lambda *_: events.append("unet"))
    decoding = pipeline.vae.decode
    pipeline.vae.decode = lambda *a, **k: events.append("vae") or decoding(*a, **k)
    run(pipeline, photo, points)
    for name, user in (("joint_encoder", "unet"), ("image_encoder", "unet"), ("shading_channel", "vae")):
        last = len(events) - 1 - events[::-1].index(name)
        assert f"{name} away" in events[last : last + events[last:].index(user)], events


def test_group_offloading_leaves_what_hooks_do_not_see(pipeline, photo, points):
    wanted = run(pipeline, photo, points)
    cpu = torch.device("cpu")
    pipeline.enable_group_offload(cpu, cpu, "leaf_level", exclude_modules="vae")
    hooked = {
        name
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module) and any(hasattr(module, "_diffusers_hook") for module in part.modules())
    }
    assert hooked == {"unet", "shading_channel"}
    assert np.array_equal(run(pipeline, photo, points), wanted)


def test_what_is_offloaded_is_neither_saved_nor_added_to(pipeline, tmp_path, monkeypatch):
    offload = accelerate.cpu_offload
    monkeypatch.setattr(accelerate, "cpu_offload", lambda model, device, **options: offload(model, "cpu", **options))
    adapter = pipeline.save_adapter(tmp_path / "adapter")
    pipeline.unload_adapter()
    for enable in (pipeline.enable_model_cpu_offload, pipeline.enable_sequential_cpu_offload):
        enable(device="cpu")
        with pytest.raises(ConfigError, match=rf"{adapter}: .*remove_all_hooks\(\)"):
            pipeline.load_adapter(adapter)
    with pytest.raises(ConfigError, match=r"remove_all_hooks\(\)"):
        pipeline.save_pretrained(tmp_path / "pipeline")
    with pytest.raises(ConfigError, match=r"\bunet .*remove_all_hooks\(\)"):
        pipeline.save_adapter(tmp_path / "pipeline")
    assert not (tmp_path / "pipeline").exists()
    pipeline.remove_all_hooks()
    pipeline.load_adapter(adapter)
    pipeline.save_pretrained(tmp_path / "pipeline")


def test_a_compiled_unet(pipeline, base_parts, photo, points, tmp_path):
    """It is wrapped, and its names begin with another word; files and layers are those of the original."""
    wanted = run(pipeline, photo, points)
    adapter = pipeline.save_adapter(tmp_path / "adapter")
    pipeline.unet = torch.compile(plain := pipeline.unet, backend="eager")
    pipeline.save_pretrained(tmp_path / "pipeline")
    assert np.array_equal(run(FaceMakeUpPipeline.from_pretrained(tmp_path / "pipeline"), photo, points), wanted)
    again = pipeline.save_adapter(tmp_path / "again")
    for path in adapter.rglob("*.safetensors"):
        assert path.read_bytes() == (again / path.relative_to(adapter)).read_bytes()
    pipeline.unet = plain
    parts = {name: getattr(pipeline, name) for name in ("joint_encoder", "image_encoder", "face_fitter")}
    other = FaceMakeUpPipeline(**base_parts() | parts)
    other.unet = torch.compile(other.unet, backend="eager")
    other.load_adapter(adapter)
    found = run(other, photo, points, watermark=False)
    assert np.allclose(found, run(pipeline, photo, points, watermark=False), atol=1e-5)
    other.enable_attention_slicing()
    assert other.identity_channel.is_attached(other.unet)
    other.unload_adapter()
    assert base_unet(other.unet).state_dict().keys() == base_parts()["unet"].state_dict().keys()
