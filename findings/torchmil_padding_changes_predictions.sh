#!/usr/bin/env bash
# Padding changes the predictions of torchmil's TransMIL and DTFDMIL, though its loader makes a mask.
#
# One would guess: `collate_fn` pads the bags of a batch with zeros and adds their mask, and `MILModelWrapper` hands each
# model what it takes. So the prediction of a bag does not depend on the other bags of its batch.
#
# What happens: TransMIL has no argument for the mask. The wrapper drops it without a message, and zeros count as tiles.
# DTFDMIL uses the mask in its first tier only; the pooling of its second tier averages the padding too. Its default mode
# fails without a mask, and `distill_mode="afs"` draws the groups of tiles from numpy's global state in evaluation also,
# so that two calls give two predictions. The attention of TransformerABMIL's encoder, asked for with a full mask, is NaN,
# because the mask is read the wrong way round there.
#
# Consequence: A prediction depends on the largest bag of the batch, and validation with a batch size of 1 hides it. Bags
# must be passed one at a time, without padding.
#
# Versions: torchmil 1.0.2, torch 2.11.0. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torchmil==1.0.2 torch==2.11.0 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
from importlib.metadata import version

import torch
from tensordict import TensorDict
from torchmil.data import collate_fn
from torchmil.models import ABMIL, DTFDMIL, MILModelWrapper, TransformerABMIL, TransMIL

for name in ("torchmil", "torch"):
    print(name, version(name))
torch.manual_seed(0)
short, long = ({"X": torch.randn(tiles, 16), "Y": torch.tensor(1)} for tiles in (20, 32))


def predict(model: torch.nn.Module, *bags: dict[str, torch.Tensor]) -> float:
    batch = collate_fn([TensorDict(bag) for bag in bags])
    with torch.no_grad():
        return float(MILModelWrapper(model.eval())(batch)[0])


change = {}
for kind, options in ((ABMIL, {}), (TransMIL, {"att_dim": 16}), (DTFDMIL, {})):
    torch.manual_seed(1)
    model = kind((16,), **options)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter)
    alone, padded = predict(model, short), predict(model, short, long)
    change[kind.__name__] = abs(alone - padded)
    print(f"{kind.__name__}: logit of a bag of 20 tiles alone {alone:.4f}, beside a bag of 32 tiles {padded:.4f}")
groups = DTFDMIL((16,), distill_mode="afs")
twice = [predict(groups, short) for _ in range(2)]
print("DTFDMIL, distill_mode=afs, the same bag twice in evaluation:", [round(value, 4) for value in twice])
encoder = TransformerABMIL((16,), transf_att_dim=16, transf_n_heads=4).eval().transformer_encoder
attention = encoder(short["X"][None], torch.ones(1, 20), return_att=True)[1]
print("TransformerABMIL, attention of the encoder under a mask of ones is NaN:", bool(attention.isnan().all()))
assert change["ABMIL"] < 1e-5
assert min(change["TransMIL"], change["DTFDMIL"]) > 1e-3, "padding has no influence now"
assert twice[0] != twice[1], "the groups are fixed now"
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py"
