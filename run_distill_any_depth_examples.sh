#!/usr/bin/env bash
# Presets of train_distill_any_depth.py.
#   bash run_distill_any_depth_examples.sh                      a menu
#   bash run_distill_any_depth_examples.sh N [ARGUMENTS ...]    preset N; the arguments are passed on and win over the preset's
#   bash run_distill_any_depth_examples.sh 8 EXPERIMENT EPOCH   resume an experiment of preset 1 from an epoch
#   DRY_RUN=1 bash run_distill_any_depth_examples.sh N          print the command instead of running it
set -euo pipefail

script=train_distill_any_depth.py
source "$(dirname "${BASH_SOURCE[0]}")/tools/examples.sh"

menu() {
    cat <<'MENU'
Distilling Depth Anything: a large network teaches a smaller one
  1  train_large            NYU, large -> base, 392 px, batch 8, 30 epochs, warm-up 2
  2  train_test             NYU, large -> base, 392 px, batch 16, 100 epochs
  3  the paper's recipe     NYU, large -> base, 560 px, from published weights, 20 x 1000 steps
  4  pictures alone         a folder without depth, large -> small
  5  two teachers           NYU, drawn 7 to 3
  6  small, first           simulated rooms: measured depth teaches mini
  7  small, then            simulated rooms: mini of 6 teaches tiny
  8  resume from an epoch   asks for the experiment of 1 and the epoch
MENU
}

choose "$@"
shift $(($# > 0))

nyu=(--dataset nyu --dataset_dir data/nyu)
pair=(--teacher_models depthanything-large --student_arch depthanything-base)
published=(--teacher_checkpoints checkpoints/depth_anything_v2_vitl.pth)
large=(
    "${nyu[@]}" "${pair[@]}" --teacher_checkpoints checkpoints/large/teacher_model_converted.safetensors
    --image_size 392 --batch_size 8 --learning_rate 0.0001 --weight_decay 0.00001 --nb_epochs 30 --warmup_epochs 2
    --output_dir output/nyu_depth_training
)
rooms=(--dataset simulated --image_size 112 --batch_size 16 --learning_rate 0.0005 --num_workers 2 --augment)
resumed=("${large[@]}")
case $choice in
1) train "${large[@]}" "$@" ;;
2)
    train "${nyu[@]}" "${pair[@]}" "${published[@]}" --image_size 392 --batch_size 16 --learning_rate 0.0001 \
        --weight_decay 0.00001 --nb_epochs 100 --warmup_epochs 0 --output_dir output/nyu_large_run "$@"
    ;;
3)
    train "${nyu[@]}" "${pair[@]}" "${published[@]}" --student_checkpoint checkpoints/depth_anything_v2_vitb.pth \
        --recipe paper --image_size 560 --batch_size 8 --optimizer Adam --weight_decay 0 --learning_rate 0.00005 \
        --encoder_learning_rate 0.000005 --scheduler none --steps_per_epoch 1000 --nb_epochs 20 \
        --output_dir output/paper "$@"
    ;;
4)
    train --dataset images --dataset_dir data/images --teacher_models depthanything-large "${published[@]}" \
        --student_arch depthanything-small --student_checkpoint checkpoints/depth_anything_v2_vits.pth \
        --image_size 392 --batch_size 16 --learning_rate 0.00005 --nb_epochs 20 --output_dir output/pictures "$@"
    ;;
5)
    train "${nyu[@]}" --teacher_models depthanything-large depthanything-large --student_arch depthanything-base \
        "${published[@]}" checkpoints/distill_any_depth_large.safetensors --teacher_weights 7,3 \
        --student_checkpoint checkpoints/depth_anything_v2_vitb.pth --image_size 392 --batch_size 8 \
        --learning_rate 0.00005 --nb_epochs 30 --output_dir output/two_teachers "$@"
    ;;
6)
    train "${rooms[@]}" --teacher_models ground_truth --student_arch mini --nb_epochs 20 \
        --output_dir output/small_teacher "$@"
    ;;
7)
    train "${rooms[@]}" --teacher_models mini --teacher_checkpoints output/small_teacher/student_best.safetensors \
        --student_arch tiny --nb_epochs 20 --output_dir output/small_student "$@"
    ;;
8) resume "$@" ;;
*) refuse "$choice" ;;
esac
