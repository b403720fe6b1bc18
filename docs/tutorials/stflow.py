# %% [markdown]
# # STFlow: fit on a paired reference, predict a slide
#
# The workflow of the `ov.space.histo` tutorial, cell by cell, on two real sections: C2 is the reference, C3 the section
# that is held out. They are **adjacent serial sections of one tumour block: an optimistic test**, not another patient.
#
# `python docs/tutorials/stflow.py` runs it; HISTOFLOW_DATA is the folder of the real sections, and figures go to
# `tutorial/`. What differs from the text, and why, is in `stflow-differences.md`.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc
from scipy.stats import pearsonr

import histoflow as hf

DATA = Path(os.environ["HISTOFLOW_DATA"]) / "her2st"
FIGURES = Path("tutorial")
FM_BACKBONE = "scatter"
N_EPOCHS, HIDDEN_DIM = 80, 256
FIGURES.mkdir(exist_ok=True)

# %% [markdown]
# ## Load the sections, tile and embed
#
# Your own Visium data: `adata, wsi = hf.read_visium_with_image("outs/", image_path="HE.tif")`.


# %%
def load(section: str, slide: str) -> tuple:
    folder = DATA / section
    adata = hf.read_st(folder / "counts.tsv.gz", folder / "spots_selection.tsv", folder / slide, section=section)
    return adata, hf.open_wsi(folder / slide, mpp=(adata.uns["histoflow"]["mpp_x"], adata.uns["histoflow"]["mpp_y"]))


adata, wsi = load("C2", "5714_HE_BT_C2.jpg")
hf.tile(wsi, tile_px=224, mpp=0.5)
hf.embed(wsi, model=FM_BACKBONE, batch_size=16, num_workers=0)
print("tiles:", len(wsi.shapes["tiles"]), "| feature table:", list(wsi.tables))

# %% [markdown]
# ## Fit on the reference, predict the tiles
#
# The reference brings its own slide. The panel is the 50 genes that vary most on the model's own scale; any length will
# do. With one section the number of epochs is chosen on spatial blocks of it, and a warning says so.

# %%
pred = hf.predict_expression(
    wsi,
    method="stflow",
    reference=adata,
    fm_backbone=FM_BACKBONE,
    n_epochs=N_EPOCHS,
    n_layers=4,
    n_neighbors=8,
    n_sample_steps=5,
    hidden_dim=HIDDEN_DIM,
)
print("shape       :", pred.shape)
print("first 5 vars:", list(pred.var_names[:5]))
print("coords range:", pred.obsm["spatial"].min(0), "→", pred.obsm["spatial"].max(0))
print("metadata    :", pred.uns["histo"])
print("scale       :", pred.uns["histoflow"]["scale"])


# %% [markdown]
# ## Look at it
#
# scanpy draws a prediction as it draws anything with places. y runs down on a slide and up in scanpy.


# %%
def draw(table, name: str, size: float) -> None:
    sc.pl.embedding(table, basis="spatial", color=genes[:4], cmap="magma", s=size, ncols=2, frameon=False, show=False)
    for axes in plt.gcf().axes:
        if axes.get_label() != "<colorbar>":
            axes.set_aspect("equal")
            axes.invert_yaxis()
    plt.savefig(FIGURES / f"{name}.png", dpi=100)
    plt.close("all")


genes = list(pred.var_names)
draw(pred, "C2-predicted", 24)


# %% [markdown]
# Measured, on the scale of the prediction: log1p of counts per 10,000.


# %%
def measured(section):
    table = section.copy()
    sc.pp.normalize_total(table, target_sum=1e4)
    sc.pp.log1p(table)
    return table


ref = measured(adata)
draw(ref, "C2-measured", 96)


# %% [markdown]
# ## Per gene: spots against their nearest tiles
#
# A spot is paired only with a tile that it touches. On C2 this is the fit to the training spots, not a test.


# %%
def scatter(prediction, section, name: str) -> np.ndarray:
    pairs = hf.match(prediction, section)
    print(f"{name}: {len(pairs.table)} spots paired, {pairs.n_unmatched} without a tile")
    real = measured(section)[pairs.table["spot"], genes[:5]].X.toarray()
    drawn = prediction[pairs.table["tile"], genes[:5]].X
    figure, axes = plt.subplots(1, 5, figsize=(15, 3), layout="constrained")
    found = np.array([pearsonr(real[:, i], drawn[:, i])[0] for i in range(5)])
    for i, ax in enumerate(axes):
        ends = [min(real[:, i].min(), drawn[:, i].min()), max(real[:, i].max(), drawn[:, i].max())]
        ax.scatter(real[:, i], drawn[:, i], s=4, alpha=0.4)
        ax.plot(ends, ends, "k--", lw=0.8, alpha=0.5)
        ax.set(title=f"{genes[i]}: r={found[i]:.2f}", xlabel="measured log1p CP10k", ylabel="predicted")
    figure.savefig(FIGURES / f"{name}.png", dpi=100)
    plt.close(figure)
    return found


fit_r = scatter(pred, adata, "C2-scatter")

# %% [markdown]
# ## A section that was not seen
#
# C3: another slide, adjacent to C2 in the same block.

# %%
adata_s2, wsi_s2 = load("C3", "5714_HE_BT_D1.jpg")
hf.tile(wsi_s2, tile_px=224, mpp=0.5)
hf.embed(wsi_s2, model=FM_BACKBONE, batch_size=16, num_workers=0)
pred_s2 = hf.predict_expression(
    wsi_s2,
    method="stflow",
    reference=adata,
    fm_backbone=FM_BACKBONE,
    n_epochs=N_EPOCHS,
    n_layers=4,
    n_sample_steps=5,
    hidden_dim=HIDDEN_DIM,
)
draw(pred_s2, "C3-predicted", 24)
draw(measured(adata_s2), "C3-measured", 96)
held_out_r = scatter(pred_s2, adata_s2, "C3-scatter")

# %% [markdown]
# ## The better ways
#
# Fit once, keep the model, predict *at the spots*: no re-training for the next slide, no pairing of spots with tiles.

# %%
panel = hf.choose_panel([adata], n_genes=50)
hf.embed(adata, FM_BACKBONE)
hf.embed(adata_s2, FM_BACKBONE)
model = hf.models.STFlow(encoder=FM_BACKBONE, training=hf.models.Training(max_epochs=N_EPOCHS)).fit(
    [adata], panel=panel
)
model.save(FIGURES / "model")
at_spots = hf.models.load(FIGURES / "model").predict(adata_s2)
again = hf.predict_expression(wsi_s2, model=model, key_added="again")
real = measured(adata_s2)[:, list(at_spots.var_names)].X.toarray()
r = np.nan_to_num(hf.stats.pearson(real, at_spots.X))
print(f"at the spots of C3, {len(r)} genes: mean r {r.mean():.3f}")

# %% [markdown]
# ## Where to go next
#
# A prediction is an ordinary AnnData: neighbours and Moran's I with squidpy, domains with scikit-learn. **A predicted
# map is smoother than a measured one, and smoothness is what Moran's I and tests for spatially variable genes look
# for: they come out too high.** The comparison below says by how much here.

# %%
import squidpy as sq
from sklearn.cluster import KMeans

moran = {}
for name, table in {"predicted": at_spots.copy(), "measured": measured(adata_s2)[:, genes].copy()}.items():
    sq.gr.spatial_neighbors(table, coord_type="generic", n_neighs=6)
    sq.gr.spatial_autocorr(table, mode="moran", n_perms=None, n_jobs=1, show_progress_bar=False)
    moran[name] = table.uns["moranI"]["I"].reindex(genes)
print(f"mean Moran's I: predicted {moran['predicted'].mean():.2f}, measured {moran['measured'].mean():.2f}")
domains = KMeans(5, n_init=10, random_state=0).fit_predict(at_spots.X)
at_spots.obs["domain"] = domains.astype(str)
