#!/usr/bin/env bash
# Every GPU figure in one go, into results/gpu_<device>.json (ViViT), results/gpu_vit_<device>.json (ViT over timm),
# results/gpu_bert_<device>.json (BERT over transformers), results/gpu_clip_<device>.json (CLIP over open_clip),
# results/gpu_fit_<device>.json (BERT-base and CLIP B/32 trained by the command on embedded data: samples, tokens and operations a
# second, share of the peak rate, memory; in single precision, bf16, compiled, computed again, sharded on the one device) and
# results/gpu_clip_loss_<device>.json (CLIP's loss by blocks, at the paper's batch). Arguments go to the first four; the last is
# for GPUs only, and without one the fits are of small networks. A trial without a GPU is
#   benchmarks/gpu.sh --device cpu --size tiny --precision fp32
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} # the package need not be installed
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
runs=$(mktemp -d)
trap 'rm -r "$runs"' EXIT
bert="--model.init_args.net.init_args.bert.init_args"
tower="--model.init_args.net.init_args"
if [ "$name" = none ]; then
  bert_words=(--data.init_args.workers=0)
  vision="{image_size: 64, patch_size: 16, dim: 32, layers: 2, heads: 2, embed_dim: 128}"
  clip_words=("$tower.image={class_path: VisionTransformer, init_args: $vision}" --data.init_args.source.init_args.train_images=256
    --data.init_args.workers=0 --data.init_args.batch_size=32)
  steps=6
else
  bert_words=("$bert.layers=12" "$bert.dim=768" "$bert.heads=12" "$bert.mlp_dim=3072" "$bert.vocabulary_size=30522"
    --data.init_args.batch_size=256 --data.init_args.workers=8)
  vision="{image_size: 224, patch_size: 32, dim: 768, layers: 12, heads: 12, embed_dim: 512}"
  text="{vocabulary_size: 768, context_length: 48, dim: 512, layers: 12, heads: 8, embed_dim: 512}"
  clip_words=("$tower.image={class_path: VisionTransformer, init_args: $vision}" "$tower.text.init_args=$text"
    --data.init_args.source.init_args.size=224 --data.init_args.image_size=224 --data.init_args.workers=8
    --data.init_args.batch_size=256)
  steps=200
fi
for system in bert clip; do
  words=("${bert_words[@]}")
  [ "$system" = bert ] || words=("${clip_words[@]}" "--zero_shot=[]")
  for how in fp32 bf16 compile activation_checkpointing fsdp; do
    precision=bf16-mixed
    as=()
    case $how in
      fp32) precision=32-true ;;
      compile | activation_checkpointing) as=("--execution.$how=true") ;;
      fsdp) as=("--trainer.strategy={class_path: FullySharded}") ;;
    esac
    WANDB_MODE=disabled python -m lightning_vl fit -c "experiments/${system}_tiny.yaml" "${words[@]}" "${as[@]}" \
      "--trainer.max_steps=$steps" "--trainer.val_check_interval=$steps" --trainer.limit_val_batches=1 \
      --trainer.limit_test_batches=1 "--trainer.precision=$precision" "--expected=[]" "--run.root=$runs" \
      "--run.experiment=$system" "--run.id=$how"
  done
done
out="results/gpu_fit_${name//[^A-Za-z0-9]/_}.json"
python - "$runs" "$out" <<'PROGRAM'
import json, pathlib, sys

runs, out = map(pathlib.Path, sys.argv[1:])
kept = ("samples_per_second", "tokens_per_second", "data_wait", "teraflops_per_second", "utilisation", "peak_memory_gib")
kept += ("model", "device", "precision", "versions", "git")
records = {path.parent: json.loads(path.read_text()) for path in sorted(runs.glob("*/*/results.json"))}
rows = {str(folder.relative_to(runs)): {name: record[name] for name in kept} for folder, record in records.items()}
out.write_text(json.dumps(rows, indent=1) + "\n")
PROGRAM
echo "$out"
if [ "$name" != none ]; then # the full matrix and its gradients are 17 GiB
  out="results/gpu_clip_loss_${name//[^A-Za-z0-9]/_}.json"
  python benchmarks/clip_loss.py --pairs 32768 --blocks 1024 4096 --out "$out"
  echo "$out"
fi
