# What the run_*_examples.sh menus share; they set `script`, source it and define `menu`.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=$(command -v python || command -v python3 || echo python3)
    [[ -z ${VIRTUAL_ENV:-} && -x $here/.venv/bin/python ]] && PYTHON=$here/.venv/bin/python
fi

# choose [CHOICE ...]: set `choice` to the first argument; without one, show the menu and ask.
choose() {
    choice=${1:-}
    if [[ -z $choice ]]; then
        menu
        read -r -p "Which one (1-8)? " choice
    fi
}

# Run the script, or with DRY_RUN print the command.
train() {
    if [[ -n ${DRY_RUN:-} ]]; then
        printf '%q ' "$PYTHON" "$here/$script" "$@"
        echo
    else
        exec "$PYTHON" "$here/$script" "$@"
    fi
}

# resume EXPERIMENT EPOCH [ARGUMENTS ...]: go on from an epoch; what is not given is asked for.
resume() {
    local experiment=${1:-} epoch=${2:-}
    shift $(($# < 2 ? $# : 2))
    [[ -n $experiment ]] || read -r -p "Experiment (a folder of checkpoints/)? " experiment
    [[ -n $epoch ]] || read -r -p "Epoch? " epoch
    train "${resumed[@]}" --experiment_name "$experiment" --checkpoints "$epoch" "$@"
}

refuse() {
    echo "$(basename "$0"): error: there is no example '$1'; choose 1 to 8" >&2
    exit 2
}
