#!/usr/bin/env bash
# A DINOv2 model of transformers 5 has other names for its weights in memory than in the files that it reads and writes.
#
# One would guess: the names in `model.state_dict()` are those in `model.safetensors`, so that
# `model.load_state_dict(load_file(path))` loads a published encoder such as Phikon-v2, Midnight or Hibou, and that
# `torch.save(model.state_dict(), path)` makes a file like the published ones.
#
# What happens: `save_pretrained` and `from_pretrained` rename the weights of every attention on the way
# (`attention.q_proj` in memory, `attention.attention.query` in the file). `load_state_dict` refuses the file that the
# same model wrote. With `strict=False`, which code for encoders often has because of missing heads, it succeeds and
# leaves every attention random.
#
# Consequence: a program that reads published files by the names of `state_dict()`, or compares them, fails with
# transformers 5, or extracts features with random attention and no message. A converter of such files must know the names of
# the files, and a check must count the tensors that were filled.
#
# Versions: transformers 5.24.0, torch 2.11.0, safetensors 0.8.0. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  transformers==5.24.0 torch==2.11.0 safetensors==0.8.0 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import sys
from importlib.metadata import version

import torch
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

for name in ("transformers", "torch", "safetensors"):
    print(name, version(name))
torch.manual_seed(0)
config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
model = Dinov2Model(config).eval()
model.save_pretrained(sys.argv[1])
saved, own = load_file(f"{sys.argv[1]}/model.safetensors"), model.state_dict()
only_file, only_memory = sorted(set(saved) - set(own)), sorted(set(own) - set(saved))
print(f"{len(own)} weights in memory, {len(saved)} in the file, {len(set(own) & set(saved))} names are the same")
print("in the file:", only_file[4], "in memory:", only_memory[4], sep="\n  ")
assert len(saved) == len(own) and len(only_file) == len(only_memory) == 16

other = Dinov2Model(config).eval()
try:
    other.load_state_dict(saved)
except RuntimeError as error:
    print("load_state_dict refuses the file:", str(error).splitlines()[1].strip()[:76], "…")
else:
    raise AssertionError("load_state_dict took the file")

tile = torch.rand(1, 3, 28, 28)
with torch.no_grad():
    wanted = model(tile).pooler_output
    found = other.load_state_dict(saved, strict=False)
    loose = other(tile).pooler_output
    right = Dinov2Model.from_pretrained(sys.argv[1]).eval()(tile).pooler_output
print(f"strict=False: {len(found.missing_keys)} weights stay random; features differ by {float((loose - wanted).abs().max()):.2f}")
print(f"from_pretrained: features differ by {float((right - wanted).abs().max()):.2f}")
assert len(found.missing_keys) == 16 and not torch.allclose(loose, wanted, atol=1e-2)
assert torch.allclose(right, wanted, atol=1e-5)
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder/model" 2> /dev/null
