#!/usr/bin/env bash
# Presets of train_binaural_attention.py.
#   bash run_binaural_attention_examples.sh                     a menu
#   bash run_binaural_attention_examples.sh N [ARGUMENTS ...]   preset N; the arguments are passed on and win
#   bash run_binaural_attention_examples.sh 7 EXPERIMENT EPOCH  resume an experiment of preset 1 from an epoch; for another's,
#                                                               append its flags, or its data and its loss are those of 1
#   DRY_RUN=1 bash run_binaural_attention_examples.sh N         print the command instead of running it
set -euo pipefail

script=train_binaural_attention.py
source "$(dirname "${BASH_SOURCE[0]}")/tools/examples.sh"

menu() {
    cat <<'MENU'
Training the binaural student on its own
  1  basic                     base 64, batch 64, lr 1e-3
  2  lightweight               base 32, batch 128, the ears ask each other at levels 4 and 5 alone
  3  adaptive loss             edges and smoothness grow over the first fifth
  4  log spectrogram           compressed by the loader, not by the network
  5  hold-out location         trained without the Attic, which is left to the test split
  6  few labels                a tenth of the training pairs has depth
  7  resume from an epoch      asks for the experiment of 1 and the epoch
  8  BatVision V1
MENU
}

choose "$@"
shift $(($# > 0))

v2=(--dataset batvisionv2)
basic=(--batch_size 64 --learning_rate 0.001)
resumed=("${v2[@]}" "${basic[@]}")
case $choice in
1) train "${v2[@]}" "${basic[@]}" --experiment_name binaural_attn_basic "$@" ;;
2)
    train "${v2[@]}" --base_channels 32 --attention_levels 4 5 --batch_size 128 --learning_rate 0.001 \
        --experiment_name binaural_attn_lightweight "$@"
    ;;
3) train "${v2[@]}" "${basic[@]}" --use_adaptive_loss --experiment_name binaural_attn_adaptive_loss "$@" ;;
4) train "${v2[@]}" "${basic[@]}" --audio_format log_spectrogram --experiment_name binaural_attn_log "$@" ;;
5) train "${v2[@]}" "${basic[@]}" --holdout_location Attic --experiment_name binaural_attn_without_attic "$@" ;;
6) train "${v2[@]}" "${basic[@]}" --label_fraction 0.1 --experiment_name binaural_attn_few_labels "$@" ;;
7) resume "$@" ;;
8) train --dataset batvisionv1 "${basic[@]}" --experiment_name binaural_attn_bv1 "$@" ;;
*) refuse "$choice" ;;
esac
