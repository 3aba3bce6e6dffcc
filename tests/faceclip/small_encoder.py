"""A joint encoder of the smallest sizes, and prompts for it."""

SIZES = {
    "face": {"image_size": 36, "patch_size": 9, "width": 24, "depth": 1, "heads": 2, "embedding_dim": 16},
    "text_l": {"width": 32, "layers": 1, "heads": 2, "embed_dim": 20, "vocabulary": list(range(3000))},
    "text_g": {
        "width": 48,
        "layers": 1,
        "heads": 2,
        "quick_gelu": False,
        "embed_dim": 20,
        "vocabulary": list(range(3000)),
    },
    "fusion": {"layers": 2, "attention_width": 32, "text_hidden": 32, "face_hidden": 32, "layer_scale": 1.0},
}

PROMPTS = ["a red hat", "", "blond hair and round glasses"]
