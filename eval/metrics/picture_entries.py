"""Rows of the registry: text, picture, diversity, cost."""

from functools import partial

from eval.metrics.metric import Metric

OUT = "no face: left out; read it beside detection@1"
SET = "one figure of the whole set"
CLIP_L14 = "openai/clip-vit-large-patch14"
CLIP_B16 = "openai/clip-vit-base-patch16"
CLIP_336 = "openai/clip-vit-large-patch14-336"
DINO_S16 = "facebook/dino-vits16"
DINO_V2 = "facebook/dinov2-base"
_asked = partial(
    Metric,
    family="text",
    better="higher",
    role="vlm",
    model="a Qwen-VL class model by folder or hub id",
    failures="unparsable replies are left out and counted; raw replies are kept",
)
_inception = partial(
    Metric,
    family="picture",
    better="lower",
    role="inception",
    model="FID's Inception by torch-fidelity",
    aggregation=SET,
)
_judged_set = partial(
    Metric, family="picture", better="lower", role="judge", model="the shipped attribute judge", aggregation=SET
)
_dreamsim = partial(Metric, family="picture", role="dreamsim", model="the package dreamsim with weights in a folder")
_l14 = partial(Metric, role="clip_l14", model=CLIP_L14)
_b16 = partial(Metric, role="clip_b16", model=CLIP_B16)
_lpips = partial(Metric, role="lpips", model="torchvision's AlexNet and LPIPS's heads")

ENTRIES = (
    _l14(
        name="clip_t/l14@1",
        family="text",
        better="higher",
        formula="100 · max(cosine of picture and prompt, 0)",
        source="CLIPScore without its factor 2.5 (arXiv:2104.08718)",
        traps="prompts are cut at 77 tokens; other CLIP models give other scales",
    ),
    _b16(
        name="clip_t/b16@1",
        family="text",
        better="higher",
        formula="as clip_t/l14@1",
        source="MultiID-Bench; Face-MakeUp's values fit this scale, its code is not published",
        traps="as clip_t/l14@1",
    ),
    Metric(
        name="clip_t/shipped@1",
        family="text",
        better="higher",
        formula="as clip_t/l14@1",
        role="shipped_clip",
        model="the shipped tiny towers (image tower and text tower G), which know renders",
        traps="text tower G conditions our own pipeline: it favours it",
    ),
    Metric(
        name="prompt/judge@1",
        family="text",
        better="higher",
        formula="share of the attributes named by the prompt that the judge sees",
        role="judge",
        model="the shipped attribute judge, which no training of the generator sees",
        failures="prompts that name none are left out",
        traps="for renders only",
    ),
    Metric(
        name="attr_count/judge@1",
        family="text",
        better="neither",
        formula="number of attributes whose judged value has a probability above .85",
        role="judge",
        model="the shipped attribute judge",
        source="Attr_c of Face-MakeUp (40 attributes of CelebA there)",
        traps="counts sure attributes, asked for or not",
    ),
    _asked(
        name="vlm/authenticity@1",
        formula="the model's number from 0 to 100 to the question authenticity@1, temperature 0",
        source="VLM-score of Face-MakeUp, with our own question",
        traps="other questions and models give other scales",
    ),
    _asked(
        name="vlm/prompt@1",
        formula="the same to the question prompt@1",
        traps="as vlm/authenticity@1",
    ),
    _l14(
        name="clip_i/ref@1",
        family="picture",
        better="neither",
        formula="cosine of the projected CLIP embeddings of picture and reference",
        source="CLIP-I of IP-Adapter and MultiID-Bench",
        traps="likeness of whole pictures: copying the reference wins",
    ),
    _b16(
        name="clip_i/ref@facemakeup-v1",
        family="picture",
        better="neither",
        formula="cosine of the vision tower's pooled states, before the projection",
        source="Face-MakeUp v1's image2Image_score.py",
        traps="unprojected states lie near each other: higher numbers than clip_i/ref@1",
    ),
    _l14(
        name="clip_i/noid@1",
        family="picture",
        better="higher",
        formula="cosine of picture and the picture drawn without identity from the same prompt and seed",
        source="CLIP-I of PuLID",
        traps="needs the plain base among the methods; has nothing to do with clip_i/ref@1",
    ),
    Metric(
        name="dino/ref@v1-s16",
        family="picture",
        better="neither",
        formula="cosine of the class tokens of picture and reference",
        role="dino_s16",
        model=DINO_S16,
        source="DINO of Face-MakeUp, by the class token",
        traps="Face-MakeUp reads the pooler of transformers, a layer that DINO never trained",
    ),
    Metric(
        name="dino/noid@v2-b14",
        family="picture",
        better="higher",
        formula="cosine of the class tokens of picture and picture without identity",
        role="dino_v2",
        model=DINO_V2,
        source="DINO-I of IBench",
        traps="needs the plain base among the methods",
    ),
    _dreamsim(
        name="dreamsim/ref@1",
        better="neither",
        formula="1 − cosine of DreamSim's embeddings of picture and reference",
        source="arXiv:2306.09344",
        traps="a distance: 0 is equality; its ensembles and single networks have different scales",
    ),
    _dreamsim(
        name="dreamsim/noid@1",
        better="lower",
        formula="the same of picture and picture without identity",
        source="DreamSim of IBench",
        traps="needs the plain base among the methods; as dreamsim/ref@1",
    ),
    _lpips(
        name="lpips/whole@1",
        family="picture",
        better="neither",
        formula="LPIPS 0.1, AlexNet, of picture and reference resized to the picture's size",
        source="arXiv:1801.03924",
        traps="network and crop change the scale; Face-MakeUpV2 names neither",
    ),
    _lpips(
        name="lpips/face@1",
        family="picture",
        better="lower",
        formula="the same of both faces",
        crop="aligned 112 px crops",
        failures=OUT,
        source="arXiv:1801.03924",
        traps="as lpips/whole@1",
    ),
    _inception(
        name="fid@1",
        formula="Fréchet distance of the Inception features of all pictures and all references",
        source="arXiv:1706.08500",
        traps="mostly bias below 2,000 pictures, where a warning stands; the table shows n and kid@1",
    ),
    _inception(
        name="kid@1",
        formula="unbiased MMD² under (x·y/D + 1)³ of the same features, mean and deviation over subsets",
        source="arXiv:1801.01401",
        traps="may be negative; needs equal subset sizes to compare deviations",
    ),
    _judged_set(
        name="fid/judge@1",
        formula="Fréchet distance in the judge's features",
        traps="for renders; another scale than fid@1",
    ),
    _judged_set(
        name="kid/judge@1",
        formula="kernel distance in the judge's features",
        traps="for renders; another scale than kid@1",
    ),
    Metric(
        name="cmmd@1",
        family="picture",
        better="lower",
        formula="1000 · MMD² under a Gaussian of σ = 10 of unit CLIP embeddings of pictures and references",
        role="clip_336",
        model=CLIP_336,
        aggregation=SET,
        source="arXiv:2401.09603",
        traps="the authors' estimator keeps the diagonals: biased for few pictures",
    ),
    _lpips(
        name="diversity/lpips@1",
        family="diversity",
        better="higher",
        formula="mean LPIPS of the pairs of pictures of one reference and prompt",
        aggregation="mean over pairs of reference and prompt",
        failures="fewer than two pictures: left out",
        traps="noise is diverse, too",
    ),
    Metric(
        name="diversity/judge@1",
        family="diversity",
        better="higher",
        formula="1 − cosine of the judge's features of such pairs",
        role="judge",
        model="the shipped attribute judge",
        aggregation="mean over pairs of reference and prompt",
        failures="fewer than two pictures: left out",
        traps="for renders",
    ),
    Metric(
        name="cost/seconds@1",
        family="cost",
        better="lower",
        formula="seconds of the call that drew the picture",
        aggregation="median over pictures",
        traps="depends on machine, load and batch size (one picture at a time here)",
    ),
    Metric(
        name="cost/memory@1",
        family="cost",
        better="lower",
        formula="peak memory in MiB: of the process on a CPU, allocated on the accelerator otherwise",
        aggregation="largest of all pictures",
        traps="a process's peak includes every method it has drawn before",
    ),
)
