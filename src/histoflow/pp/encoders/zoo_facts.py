"""What is known of LazySlide's image models without importing them: a table, held to their registry by a test.

With it models are listed, and their weights found or asked for, also where the zoo itself cannot be imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from histoflow.pp.encoders.hub import Files, Source
from histoflow.pp.encoders.network import IMAGENET_MEAN, IMAGENET_STD
from histoflow.pp.encoders.record import Card

Family = Literal["program", "state", "timm", "dinov2", "transformers", "package"]
"""How a model is built from files on this machine.

``program``: a ``torch.export`` file, which needs no zoo. ``state``: the zoo's class takes a state dict. ``timm``: the
zoo's class builds a timm model from a hub repository. ``dinov2``: a timm model that we build. ``transformers``: a
folder with ``config.json``. ``package``: the zoo's class builds it with a package of its own.
"""

_BIN = (("pytorch_model.bin",),)
_FILES: dict[str, Files] = {
    "timm": (("config.json", "model.safetensors"), ("config.json", "pytorch_model.bin")),
    "transformers": (("*.json", "*.safetensors"), ("*.json", "pytorch_model.bin")),
}
_WITH_CODE = (("*.json", "*.py", "*.safetensors"), ("*.json", "*.py", "pytorch_model.bin"))
_EXPORTS = "RendeiroLab/LazySlide-models-gpl"
_ND = "CC-BY-NC-ND-4.0"
_ND_TERMS = "CC-BY-NC-ND-4.0 with supplementary terms"
_APACHE = "Apache 2.0"
_LUNIT = "lunit-non-commercial"
_OWKIN = "Owkin non-commercial license"
_WAIV = "Waiv custom non-commercial license"
_VIRCHOW: dict[str, Any] = {"init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", "dynamic_img_size": True}


class Architecture(NamedTuple):
    """A timm model by name and arguments, as the ``config.json`` of a hub repository says it."""

    name: str
    arguments: dict[str, Any]


def _vit(name: str, **arguments: Any) -> Architecture:
    return Architecture(name, {"img_size": 224, **arguments})


_GIANT_REG4 = _vit("vit_giant_patch14_reg4_dinov2")


@dataclass(frozen=True)
class ZooModel:
    """One image model of LazySlide's zoo: one field per column of the table.

    Parameters
    ----------
    name
        Its key in the zoo's registry.
    n_features
        Numbers per patch as its authors state them; None where they do not. What counts is read from the model.
    repository
        Hub id of the weights.
    licence
        Licence of the weights.
    millions
        Parameters in millions; None where not stated.
    gated
        Whether access must be asked for.
    family
        How it is built from files on this machine.
    patch_px
        Side in pixels of the patches it takes, before its own transform crops them.
    mpp
        µm per pixel it was trained at; None where not stated, or more than one.
    needs
        Packages it imports apart from the zoo's own.
    needed_files
        Sets of files of the repository, each sufficient; None for the usual ones of its family.
    architecture
        The timm model that a state dict without ``config.json`` belongs to.
    """

    name: str
    n_features: int | None
    repository: str
    licence: str
    millions: float | None
    gated: bool = False
    family: Family = "timm"
    patch_px: int = 224
    mpp: float | None = None
    needs: tuple[str, ...] = ()
    needed_files: Files | None = None
    architecture: Architecture | None = None

    @property
    def card(self) -> Card:
        """Licence, access, size and, where it is ours to do, preprocessing."""
        size = None if self.millions is None else round(self.millions * 1e6)
        scale = (IMAGENET_MEAN, IMAGENET_STD) if self.family == "program" else (None, None)
        return Card(self.licence, self.gated, self.mpp, size, self.repository, *scale)

    @property
    def source(self) -> Source | None:
        """Where its weights are fetched from; None where the zoo's class fetches them itself."""
        files = self.needed_files or _FILES.get(self.family)
        return Source(self.name, self.repository, self.gated, files) if files else None


_MODELS = (
    ZooModel(
        "biomedclip", 512, "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", "MIT", None,
        family="package", needs=("open_clip",),
    ),
    ZooModel(
        "chief", 768, _EXPORTS, "AGPL-3.0", 27.5,
        family="program", needed_files=(("CHIEF/CHIEF_patch_encoder_exported.pt2",),),
    ),
    ZooModel(
        "conceptclip", 1152, "JerrryNie/ConceptCLIP", "MIT", None,
        gated=True, family="transformers", patch_px=384, needs=("transformers",), needed_files=_WITH_CODE,
    ),
    ZooModel(
        "conch", 512, "MahmoodLab/conch", _ND, 395.2, gated=True, family="package", patch_px=448, needs=("conch",),
    ),
    ZooModel("conch-madeleine", 512, "MahmoodLab/conch", _ND, 395.2, gated=True, family="package", needs=("conch",)),
    ZooModel(
        "conch_v1.5", 768, "MahmoodLab/TITAN", _ND, 158.9,
        gated=True, family="package", patch_px=448, needs=("transformers",),
    ),
    ZooModel(
        "crisp", 2560, "FTZhou/CRISP", f"MIT, {_ND}", 631.2,
        gated=True, family="state", needed_files=(("CRISP.pth",),),
    ),
    ZooModel(
        "crown", 1024, "LexieK/Crown", "Apache-2.0", None, gated=True, family="state", needed_files=(("CROWN.pth",),),
    ),
    ZooModel(
        "ctranspath", 768, _EXPORTS, "GPL-3.0", 27.5,
        family="program", needed_files=(("CTransPath/CTransPath_exported.pt2",),),
    ),
    ZooModel(
        "genbio-pathfm", 4608, "genbio-ai/genbio-pathfm", "GenBio AI Community License", 1100,
        family="transformers", needs=("transformers",), needed_files=_WITH_CODE,
    ),
    ZooModel(
        "gigapath", 1536, "prov-gigapath/prov-gigapath", "Apache 2.0 with conditions", 1130,
        gated=True, patch_px=256, mpp=0.5,
        architecture=_vit("vit_giant_patch14_dinov2", patch_size=16, mlp_ratio=5.33334),
    ),
    ZooModel(
        "gigapath-flash", 384, "prov-gigapath/prov-gigapath-flash", _APACHE, 21.7,
        gated=True, family="state", patch_px=256, needed_files=_BIN,
    ),
    ZooModel(
        "gpfm", 1024, "majiabo/GPFM", "CC BY-NC-ND 4.0", 303,
        family="dinov2", needed_files=(("GPFM.pth",),), architecture=_vit("vit_large_patch14_dinov2", init_values=1e-5),
    ),
    ZooModel("h-optimus-0", 1536, "bioptimus/H-optimus-0", _APACHE, 1130, mpp=0.5, architecture=_GIANT_REG4),
    ZooModel("h-optimus-1", 1536, "bioptimus/H-optimus-1", _ND, 1130, gated=True, mpp=0.5, architecture=_GIANT_REG4),
    ZooModel(
        "h0-mini", 1536, "bioptimus/H0-mini", _ND, 85.7, gated=True, mpp=0.5,
        architecture=_vit(
            "vit_base_patch14_reg4_dinov2", mlp_ratio=5.33334, global_pool="", dynamic_img_size=True
        ),
    ),
    ZooModel(
        "hibou-b", 768, "histai/hibou-b", _APACHE, 85.7,
        gated=True, family="transformers", needs=("transformers.onnx",), needed_files=_WITH_CODE,
    ),
    ZooModel(
        "hibou-l", 1024, "histai/hibou-L", _APACHE, 303.7,
        gated=True, family="transformers", needs=("transformers.onnx",), needed_files=_WITH_CODE,
    ),
    ZooModel(
        "keep", 768, "Astaxanthin/KEEP", "MIT", None, family="package", needs=("transformers",),
    ),
    ZooModel("lunit-bt", 2048, "1aurent/resnet50.lunit_bt", _LUNIT, 23.6, architecture=Architecture("resnet50", {})),
    ZooModel(
        "lunit-dino-s16", 384, "1aurent/vit_small_patch16_224.lunit_dino", _LUNIT, 21.1,
        architecture=_vit("vit_small_patch16_224"),
    ),
    ZooModel(
        "lunit-dino-s8", 384, "1aurent/vit_small_patch8_224.lunit_dino", _LUNIT, 21.7,
        architecture=_vit("vit_small_patch8_224"),
    ),
    ZooModel(
        "lunit-dino-s8-moozy", 384, "1aurent/vit_small_patch8_224.lunit_dino", _LUNIT, 21.7,
        patch_px=248, architecture=_vit("vit_small_patch8_224"),
    ),
    ZooModel(
        "lunit-mocov2", 2048, "1aurent/resnet50.lunit_mocov2", _LUNIT, 23.6, architecture=Architecture("resnet50", {}),
    ),
    ZooModel(
        "lunit-swav", 2048, "1aurent/resnet50.lunit_swav", _LUNIT, 23.6, architecture=Architecture("resnet50", {}),
    ),
    ZooModel(
        "mascaret", 1536, "wearewaiv/mascaret", _WAIV, 1140,
        gated=True, family="transformers", needs=("transformers",), needed_files=_WITH_CODE,
    ),
    ZooModel(
        "medsiglip", 1152, "google/medsiglip-448", "health-ai-developer-foundations", 878,
        gated=True, family="transformers", patch_px=448, needs=("transformers",),
    ),
    ZooModel(
        "midnight", 3072, "kaiko-ai/midnight", "MIT", 1140, gated=True, family="transformers", needs=("transformers",)
    ),
    ZooModel("mstar", 1024, "Wangyh/mSTAR", _ND, 303.4, gated=True, architecture=_vit("vit_large_patch16_224")),
    ZooModel("musk", 1024, "xiangjx/musk", _ND, 675.2, gated=True, family="package", patch_px=384, needs=("musk",)),
    ZooModel(
        "omiclip", None, "WangGuangyuLab/Loki", "BSD-3-Clause", 638.5,
        gated=True, family="package", needs=("open_clip",),
    ),
    ZooModel(
        "open-midnight", 1536, "SophontAI/OpenMidnight", _APACHE, 1100,
        gated=True, family="dinov2", needed_files=(("teacher_checkpoint_load.pt",),), architecture=_GIANT_REG4,
    ),
    ZooModel("path_orchestra", None, "AI4Pathology/PathOrchestra", _ND, None, gated=True),
    ZooModel(
        "phaet", 1024, "wearewaiv/phaet", _WAIV, 303.4,
        gated=True, family="transformers", needs=("transformers",), needed_files=_WITH_CODE,
    ),
    ZooModel("phikon", 768, "owkin/phikon", _OWKIN, 85.8, family="transformers", mpp=0.5, needs=("transformers",)),
    ZooModel(
        "phikonv2", 1024, "owkin/phikon-v2", _OWKIN, 303.4, family="transformers", mpp=0.5, needs=("transformers",),
    ),
    ZooModel("plip", 512, "vinid/plip", "Non-commercial", 87.8, family="transformers", needs=("transformers",)),
    ZooModel("quiltnet-b16", 512, "wisdomik/QuiltNet-B-16", "MIT", None, family="package", needs=("open_clip",)),
    ZooModel(
        "quiltnet-b16-pmb", 512, "wisdomik/QuiltNet-B-16-PMB", "MIT", None, family="package", needs=("open_clip",),
    ),
    ZooModel("quiltnet-b32", 512, "wisdomik/QuiltNet-B-32", "MIT", None, family="package", needs=("open_clip",)),
    ZooModel(
        "rudolfv2", 1536, "Aignostics/RudolfV-2", _ND_TERMS, 1130,
        gated=True, family="transformers", needs=("transformers",), needed_files=_WITH_CODE,
    ),
    ZooModel(
        "rudolfv2-b", 768, "Aignostics/RudolfV-2-B", _ND_TERMS, 85.2,
        gated=True, family="transformers", needs=("transformers",), needed_files=_WITH_CODE,
    ),
    ZooModel(
        "rudolfv2-s", 384, "Aignostics/RudolfV-2-S", _ND_TERMS, 21.4,
        gated=True, family="transformers", needs=("transformers",), needed_files=_WITH_CODE,
    ),
    ZooModel(
        "titan", 768, "MahmoodLab/TITAN", _ND, 158.9,
        gated=True, family="package", patch_px=448, needs=("transformers",),
    ),
    ZooModel("uni", 1024, "MahmoodLab/UNI", _ND, 303.4, gated=True, family="state", mpp=0.5, needed_files=_BIN),
    ZooModel("uni2", 1536, "MahmoodLab/UNI2-h", _ND, 681.4, gated=True, family="state", needed_files=_BIN),
    ZooModel(
        "virchow", 2560, "paige-ai/Virchow", _APACHE, 631.2,
        gated=True, mpp=0.5, architecture=_vit("vit_huge_patch14_224", **_VIRCHOW),
    ),
    ZooModel(
        "virchow2", 2560, "paige-ai/Virchow2", _ND, 631.2,
        gated=True, architecture=_vit("vit_huge_patch14_224", reg_tokens=4, **_VIRCHOW),
    ),
)  # fmt: skip

ZOO_MODELS = {model.name: model for model in _MODELS}
