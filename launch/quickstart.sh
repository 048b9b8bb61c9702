#!/usr/bin/env bash
# From a fresh clone to a trained model in seven or eight minutes on two processors: installs what is missing, builds, trains a small Kimi
# Linear with Block Attention Residuals on English prose in a pipeline of 2 ranks x 2 virtual stages, kills it, resumes on one
# rank, compares with gzip -9 on the same text, lets the model speak, and draws its report. Its precision is the one that is quicker
# on this machine, which `lamina doctor` measures.
#   launch/quickstart.sh             on Debian's dictionary of English (dict-gcide: definitions and quotations, 8 MB of prose)
#   launch/quickstart.sh FILE...     on your text (plain text or JSON lines, also compressed; a few MB at least)
# Runs again as often as you like: tokens and a finished or interrupted run are kept. To start over: rm -rf runs/quickstart
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
data=data/quickstart run=runs/quickstart config=configs/quickstart.yaml
one_rank=(parallel.pipeline=1 parallel.virtual_stages=1)  # checkpoints load into any layout

say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }
die() { echo "quickstart: error: $*" >&2; exit 1; }
usage() { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

files=()
for argument in "$@"; do
  case $argument in
    -h|--help) usage; exit 0 ;;
    -*) die "unknown option '$argument', expected files or --help" ;;
  esac
  [[ -r $argument ]] || die "$argument: no such file, or not readable"
  files+=("$(realpath "$argument")")
done
cd "$root"

lamina() { build/lamina "$@"; }
# Open MPI refuses to start ranks as root, or more ranks than cores, unless told that it's meant.
ranks() { OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 exec mpirun --oversubscribe -n "$@"; }

install_and_build() {
  say "installing what is missing, and building"
  if [[ ${#files[@]} -eq 0 ]]; then launch/setup.sh --with procps --with dict-gcide; else launch/setup.sh --with procps; fi
}

# A third of the dictionary's paragraphs, several times what is trained on, as plain prose: no pronunciations, source tags and hard line
# ends, no scraps; a line each.
dictionary_prose() {
  gzip -dc /usr/share/dictd/gcide.dict.dz |
    sed -E 's/\\[^\\]*\\//g; s/\[[^]]*\]//g; s/[][{}]//g; s/^[ \t]+//; s/[ \t]+$//; s/ +/ /g' |
    awk 'BEGIN { RS = ""; ORS = "\n" } NR % 3 == 0 { gsub(/\n/, " "); if (length($0) > 60) print }'
}

prepare_data() {
  mkdir -p "$data"
  local sources
  sources=$(printf '%s\n' "${files[@]:-dict-gcide}")
  if [[ -f $data/sources && $(<"$data/sources") == "$sources" && -d $data/tokens ]]; then
    say "tokens are here: $data/tokens"
    return
  fi
  [[ ! -d $run ]] || die "$run was trained on other text; to start over: rm -rf $run"
  say "text to tokens: a SentencePiece model of 4,096 pieces, then $data/tokens"
  local text=("${files[@]}")
  if [[ ${#files[@]} -eq 0 ]]; then
    dictionary_prose >"$data/english.txt"
    text=(--invalid-utf8 replace "$data/english.txt")  # three of its letters are in Latin-1
  fi
  lamina tokenizer --overwrite --vocab-size 4096 --max-sentences 200000 --output "$data/sentencepiece.model" "${text[@]}"
  lamina prepare --overwrite --tokenizer "sentencepiece:$data/sentencepiece.model" --output "$data/tokens" "${text[@]}"
  printf '%s\n' "$sources" >"$data/sources"
}

# A run keeps the precision that it began with; a new one takes the quicker on this machine.
choose_precision() {
  precision=""
  if [[ -f $run/config.yaml ]]; then precision=$(awk '$1 == "precision:" { print $2 }' "$run/config.yaml"); fi
  if [[ -n $precision ]]; then
    say "$run was begun in $precision"
  else
    precision=$(lamina doctor --precision)
    say "precision $precision, the quicker one on this machine (lamina doctor tells why)"
  fi
}

num_rows() { if [[ -f $run/metrics.jsonl ]]; then wc -l <"$run/metrics.jsonl"; else echo 0; fi; }

train_and_kill() {  # stops with kill -9 some steps after the checkpoint in the middle
  local middle=$1 pid
  say "training in a pipeline of 2 ranks x 2 virtual stages; kill -9 comes after step $((middle + 5))"
  ranks 2 build/lamina train "$config" train.precision="$precision" &
  pid=$!
  while kill -0 "$pid" 2>/dev/null && [[ $(num_rows) -lt $((middle + 5)) ]]; do sleep 0.2; done
  if kill -0 "$pid" 2>/dev/null; then
    pkill -9 -P "$pid" || true
    kill -9 "$pid" 2>/dev/null || true
  fi
  wait "$pid" 2>/dev/null || true
  [[ -f $run/checkpoints/step-$(printf '%08d' "$middle")/COMMITTED ]] ||
    die "no checkpoint at step $middle: the reason stands above and in $run/log.txt"
  say "killed after step $(num_rows)"
}

compare_with_gzip() {
  say "validation against gzip -9"
  local text=$run/validation.txt evaluation ours gzip_bits bytes
  evaluation=$(lamina eval "$config" train.precision="$precision" --checkpoint "$run" --write-text "$text")
  ours=$(awk '$1 == "bits_per_byte" { print $2 }' <<<"$evaluation")
  bytes=$(stat -c %s "$text")
  gzip_bits=$(gzip -9 -c "$text" | wc -c | awk -v bytes="$bytes" '{ print 8 * $1 / bytes }')
  awk -v ours="$ours" -v gzip="$gzip_bits" -v bytes="$bytes" 'BEGIN {
    printf "%d bytes of text that training never saw:\n  lamina   %.3f bits per byte\n  gzip -9  %.3f bits per byte\n", bytes, ours, gzip
    if (ours < gzip) printf "the model codes them in %.0f %% of the space that gzip needs\n", 100 * ours / gzip
    else print "gzip is ahead: more steps (train.num_steps) or more text would help"
  }'
}

install_and_build
prepare_data
choose_precision
steps=$(awk '$1 == "num_steps:" { print $2 }' "$config")
middle=$((steps / 2))
if [[ -f $run/checkpoints/step-$(printf '%08d' "$steps")/COMMITTED ]]; then
  say "$run is trained already; to train again: rm -rf $run"
else
  [[ $(num_rows) -gt $middle ]] || train_and_kill "$middle"
  say "resuming on 1 rank, the whole model as one stage, from the newest good checkpoint"
  lamina train "$config" train.precision="$precision" "${one_rank[@]}"
fi
compare_with_gzip
say "a paragraph from the model"
lamina sample --checkpoint "$run" --prompt "A good book is" --max-tokens 120 --temperature 0.7
say "a page of the run"
lamina report "$run"
say "done"
cat <<END
run folder    $run
  report.html     losses, norms of every layer, depth weights, router loads: open it in a browser
  log.txt         what you saw
  metrics.jsonl   every step: loss, gradient norm, learning rate, tokens/s, bytes sent
  layers.jsonl    every sublayer: hidden-state and gradient norms, depth weights of Attention Residuals
  checkpoints/    HDF5, readable with h5py; lamina inspect $run
next          docs/guide.md; to go on or to evaluate, add train.precision=$precision
END
