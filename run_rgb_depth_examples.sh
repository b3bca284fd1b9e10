#!/usr/bin/env bash
# Presets of train_rgb_depth.py.
#   bash run_rgb_depth_examples.sh                         a menu
#   bash run_rgb_depth_examples.sh N [ARGUMENTS ...]       preset N; the arguments are passed on and win over the preset's
#   bash run_rgb_depth_examples.sh 5 EXPERIMENT EPOCH      resume an experiment of preset 1 from an epoch; for another's,
#                                                          append its flags, or its data and its loss are those of 1
#   DRY_RUN=1 bash run_rgb_depth_examples.sh N             print the command instead of running it
set -euo pipefail

script=train_rgb_depth.py
source "$(dirname "${BASH_SOURCE[0]}")/tools/examples.sh"

menu() {
    cat <<'MENU'
Training the RGB teacher
  1  basic                     base 64, batch 64, lr 1e-4
  2  with Weights & Biases
  3  lightweight               base 32, batch 128, lr 2e-4
  4  high capacity             base 96, batch 32, lr 5e-5
  5  resume from an epoch      asks for the experiment of 1 and the epoch
  6  teacher for distillation  base 64, batch 64, lr 1e-4, 200 epochs, W&B
  7  custom loss weights       smoothness 0.2
  8  BatVision V1
MENU
}

choose "$@"
shift $(($# > 0))

v2=(--dataset batvisionv2)
resumed=("${v2[@]}" --batch_size 64 --learning_rate 0.0001)
case $choice in
1) train "${v2[@]}" --batch_size 64 --learning_rate 0.0001 --experiment_name rgb_depth_basic "$@" ;;
2) train "${v2[@]}" --batch_size 64 --learning_rate 0.0001 --use_wandb --experiment_name rgb_depth_wandb "$@" ;;
3) train "${v2[@]}" --base_channels 32 --batch_size 128 --learning_rate 0.0002 --experiment_name rgb_depth_lightweight "$@" ;;
4) train "${v2[@]}" --base_channels 96 --batch_size 32 --learning_rate 0.00005 --experiment_name rgb_depth_high_capacity "$@" ;;
5) resume "$@" ;;
6)
    train "${v2[@]}" --base_channels 64 --batch_size 64 --learning_rate 0.0001 --nb_epochs 200 --use_wandb \
        --experiment_name rgb_teacher_for_kd "$@"
    ;;
7)
    train "${v2[@]}" --batch_size 64 --learning_rate 0.0001 --lambda_l1 1.0 --lambda_smooth 0.2 \
        --experiment_name rgb_depth_custom_loss "$@"
    ;;
8) train --dataset batvisionv1 --batch_size 64 --learning_rate 0.0001 --experiment_name rgb_depth_bv1 "$@" ;;
*) refuse "$choice" ;;
esac
