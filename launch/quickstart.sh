#!/usr/bin/env bash
# The main job, from a fresh machine to a model that can be deployed: ./launch/quickstart.sh
#
# Sets everything up (launch/setup.sh), fine-tunes with LoRA through DeepSpeed, scores base against tuned, merges,
# exports, compares the export with what was trained, and shows an answer before and after.
#
#   ./launch/quickstart.sh --processes 2                     data parallel, two processes on this machine
#   ./launch/quickstart.sh --model ORG/NAME --data FILE      any model, any data; all settings of `peftkit train` work
#
# Every call trains anew, into runs/quickstart, runs/quickstart-2, ...; `--resume` goes on with the newest of them.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# What keeps it under five minutes on two cores. Each is replaced by the same setting in the call.
QUICK=(--strategy lora --steps 12 --batch.total 8 --optim.lr 5e-4 --data.max_length 192 --data.limit 400 --eval.rows 16)

main() {
    read_words "$@"
    set_up demo qlora
    python -c 'import sys, torch; sys.exit(not torch.accelerator.is_available())' || export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"

    local launcher=(deepspeed --quiet --num_accelerators "$PROCESSES" --master_port "$(free_port)")
    show 1 "train" "${launcher[@]}" "$ROOT/launch/train.py" --out "$RUN" "${SETTINGS[@]}"
    show 2 "merge, export and verify" peftkit export "$RUN" --to merged
    show 3 "the same questions before and after" peftkit compare "$RUN"
    tell_where
}

# Sets PROCESSES, RUN and SETTINGS (the words for the training).
read_words() {
    PROCESSES=1 RUN="" SETTINGS=()
    local resume=no
    while [ $# -gt 0 ]; do
        case "$1" in
            --processes) PROCESSES="${2:?--processes takes a number}"; shift ;;
            --processes=*) PROCESSES="${1#*=}" ;;
            --out) RUN="${2:?--out takes a folder}"; shift ;;
            --out=*) RUN="${1#*=}" ;;
            --resume) resume=yes; SETTINGS+=("$1") ;;
            *) SETTINGS+=("$1") ;;
        esac
        shift
    done
    [ -n "$RUN" ] || RUN="$(run_folder "$resume")"
    [ "$resume" = yes ] || add_quick_settings
}

# The newest runs/quickstart[-N] to resume, else the first that is free.
run_folder() {
    local number=1 folder=runs/quickstart newest=runs/quickstart
    while [ -e "$folder" ]; do
        newest="$folder"
        number=$((number + 1))
        folder="runs/quickstart-$number"
    done
    if [ "$1" = yes ]; then echo "$newest"; else echo "$folder"; fi
}

# A file of settings says everything itself.
add_quick_settings() {
    local i
    given --config || for ((i = 0; i < ${#QUICK[@]}; i += 2)); do
        given "${QUICK[i]}" || SETTINGS+=("${QUICK[i]}" "${QUICK[i + 1]}")
    done
}

# Whether the call sets this: by its name, its short form (--batch for --batch.total), or --epochs for --steps.
given() {
    local word
    for word in ${SETTINGS[@]+"${SETTINGS[@]}"}; do
        case "${word%%=*}" in
            "$1" | "${1%.total}") return 0 ;;
            --epochs) [ "$1" != --steps ] || return 0 ;;
        esac
    done
    return 1
}

# DeepSpeed's launcher always takes 29500 by itself, which another training may hold.
free_port() { python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

show() {
    local number="$1" what="$2"
    shift 2
    printf '\n[%s/3] %s\n$' "$number" "$what"
    printf ' %q' "$@"
    printf '\n'
    "$@"
}

tell_where() {
    cat <<END

Done in $((SECONDS / 60)) min $((SECONDS % 60)) s. Everything lies in $RUN:
  export/merged/           the tuned model, for from_pretrained; its certificate.json says how it was verified
  export/adapter/          the adapter alone, in PEFT's format
  metrics.jsonl            every step and every evaluation
  config.yaml              every setting; the same run again: peftkit train --config $RUN/config.yaml --out NEW
Next, your own: $0 --model ORG/NAME --data rows.jsonl     (all settings: peftkit train --help)
END
}

main "$@"
