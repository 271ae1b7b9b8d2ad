#!/usr/bin/env bash
# Every GPU figure in one go, into results/gpu_<device>.json (ViViT), results/gpu_vit_<device>.json (ViT over timm),
# results/gpu_bert_<device>.json (BERT over transformers), results/gpu_clip_<device>.json (CLIP over open_clip) and
# results/gpu_clip_loss_<device>.json (its loss by blocks, at the paper's batch). Arguments go to all but the last, which is for
# GPUs only: a trial without one is
#   benchmarks/gpu.sh --device cpu --size tiny --precision fp32
set -euo pipefail
cd "$(dirname "$0")/.."
name=$(python -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "none")')
mkdir -p results
out="results/gpu_${name//[^A-Za-z0-9]/_}.json"
python benchmarks/vivit.py --device cuda --size paper --precision bf16 --parts peers loop models --json "$@" >"$out"
echo "$out"
out="results/gpu_vit_${name//[^A-Za-z0-9]/_}.json"
python benchmarks/vit.py --device cuda --size base --json "$@" >"$out"
echo "$out"
out="results/gpu_bert_${name//[^A-Za-z0-9]/_}.json"
python benchmarks/bert.py --device cuda --size base --lengths 128 512 --batch-size 64 --out "$out" "$@"
echo "$out"
out="results/gpu_clip_${name//[^A-Za-z0-9]/_}.json"
python benchmarks/clip.py --device cuda --size B/32 --batch-size 256 --out "$out" "$@"
echo "$out"
if [ "$name" != none ]; then # the full matrix and its gradients are 17 GiB
  out="results/gpu_clip_loss_${name//[^A-Za-z0-9]/_}.json"
  python benchmarks/clip_loss.py --pairs 32768 --blocks 1024 4096 --out "$out"
  echo "$out"
fi
