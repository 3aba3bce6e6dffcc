"""Which modules are mutated and which tests must notice; mutations that change nothing anybody could see."""

from pathlib import Path

# Modules that hold arithmetic, seeds, hashes or order, by import path, with the tests that mirror them.
MODULES: dict[str, tuple[str, ...]] = {
    "faceclip.losses": ("tests/faceclip/test_losses.py",),
    "faceclip.fusion": ("tests/faceclip/test_fusion.py", "tests/faceclip/test_published.py"),
    "faceclip.heads": ("tests/faceclip/test_heads.py", "tests/faceclip/test_encoder.py"),
    "faceclip.face_encoder": ("tests/faceclip/test_towers.py", "tests/faceclip/test_published.py"),
    "faceclip.accumulation": ("tests/faceclip/test_accumulation.py",),
    "faceclip.faces.align": ("tests/faceclip/faces/test_align.py",),
    "faceclip.face3d.camera": ("tests/faceclip/face3d/test_camera.py",),
    "faceclip.face3d.light": ("tests/faceclip/face3d/test_light.py",),
    "faceclip.face3d.shading": ("tests/faceclip/face3d/test_shading.py",),
    "faceclip.face3d.rasterizer": ("tests/faceclip/face3d/test_rasterizer.py",),
    "faceclip.runtime.checkpoints": ("tests/faceclip/runtime/test_checkpoints.py",),
    "faceclip.runtime.continuation": ("tests/faceclip/runtime/test_continuation.py",),
    "faceclip.runtime.sampler": ("tests/faceclip/runtime/test_sampler.py",),
    "faceclip.runtime.ema": ("tests/faceclip/runtime/test_ema.py",),
    "faceclip.runtime.optimization": ("tests/faceclip/runtime/test_optimization.py",),
    "faceclip.runtime.trainer": (
        "tests/faceclip/runtime/test_trainer_step.py",
        "tests/faceclip/runtime/test_trainer.py",
        "tests/faceclip/runtime/test_validation.py",
        "tests/faceclip/runtime/test_resume.py",
        "tests/faceclip/runtime/test_ranks.py",
    ),
    "faceclip.data.mapping": ("tests/faceclip/data/test_mapping.py",),
    "faceclip.data.shards": ("tests/faceclip/data/test_shards.py",),
    "faceclip.data.digests": ("tests/faceclip/data/test_digests.py",),
    "faceclip.data.synthetic.render": ("tests/faceclip/data/test_render.py",),
    "faceclip.data.synthetic.sample": ("tests/faceclip/data/test_sample.py",),
    "makeup_plugin.conditioning": ("tests/makeup_plugin/test_conditioning.py",),
    "makeup_plugin.losses": ("tests/makeup_plugin/test_losses.py",),
    "makeup_plugin.sampling": ("tests/makeup_plugin/test_sampling.py", "tests/makeup_plugin/test_pipeline.py"),
    "makeup_plugin.adapters": ("tests/makeup_plugin/test_adapters.py",),
    "makeup_plugin.references": ("tests/makeup_plugin/test_references.py",),
    "makeup_plugin.provenance": ("tests/makeup_plugin/test_provenance.py",),
    "makeup_plugin.watermark": ("tests/makeup_plugin/test_watermark.py", "tests/makeup_plugin/test_provenance.py"),
    "eval.metrics": ("tests/eval/test_metrics.py",),
    "eval.retrieval.protocol": ("tests/eval/retrieval/test_protocol.py",),
    "eval.retrieval.search": ("tests/eval/retrieval/test_search.py",),
    "eval.generation.judging": ("tests/eval/generation/test_judging.py",),
}

# (module, line, mutated line), without indentation → why no test can tell the two apart. These are never drawn.
EQUIVALENT: dict[tuple[str, str, str], str] = {}


def source_file(module: str, root: Path) -> Path:
    """The file of an import path below `root`. Raises FileNotFoundError, which names this table, when it has moved."""
    stem = root.joinpath(*module.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{module}: no such module below {root}; update MODULES in {Path(__file__).name}")
