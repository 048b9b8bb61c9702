#!/usr/bin/env bash
# Runs a pack on the machine with the GPU: launch/gpu.sh --run. Everything comes from the pack, or from what such a machine has: bash, the
# usual small programs, NVIDIA's libraries, PyTorch. The parts come in the order of what they tell; each has a time limit, and parts for
# which no time is left are told as not run. The table is written anew after each part, so that an end from outside leaves one.
set -uo pipefail
export LC_ALL=C PATH
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() { echo "gpu: error: $*" >&2; exit 2; }

output=gpu-results total=600 only=""
while [[ $# -gt 0 ]]; do
  case $1 in
    --output) output=$2 ;;
    --seconds) [[ $2 =~ ^[1-9][0-9]*$ ]] || die "--seconds: found '$2', expected a whole number"; total=$2 ;;
    --only) only=$2 ;;
  esac
  shift 2
done
parts=(load bits tests-ops tests-comm tests-trainer ops attention fla dense torch launch kimi attnres train
  racecheck-kda racecheck-attention racecheck-attnres memcheck)
for part in ${only//,/ }; do
  [[ " ${parts[*]} " == *" $part "* ]] || die "--only: found '$part', expected some of: ${parts[*]}"
done
for tool in awk sed grep tar gzip timeout mktemp; do
  command -v "$tool" >/dev/null || die "$tool is not on this machine"
done
mkdir -p "$output" || die "--output: can't make $output"
output=$(cd "$output" && pwd)
about() { sed -n "s/^$1 //p" "$here/CONTENTS"; }
emulated=0
[[ $(about device) != emulated ]] || emulated=1

for part in "${parts[@]}"; do rm -f "$output/$part.log"; done   # of an earlier run

work=$(mktemp -d) || die "no temporary folder"
trap 'rm -rf "$work"' EXIT
trap 'table; exit 130' INT TERM HUP
tar -C "$work" -xzf "$here/programs.tar.gz" || die "$here/programs.tar.gz can't be unpacked in $work"

# ---- What this machine has

python="" torch_version=none
for candidate in python3 python /opt/conda/bin/python3; do
  if torch_version=$("$candidate" -c "import torch; torch.zeros(1, device='cuda'); print(torch.__version__)" 2>/dev/null); then
    python=$candidate
    break
  fi
  torch_version=none
done
# NVIDIA's libraries: the toolkit's, or those that came with a PyTorch.
cuda_libraries=""
add_libraries() {
  local folder
  for folder in "$@"; do
    [[ ! -d $folder ]] || cuda_libraries+=":$folder"
  done
}
add_libraries /usr/local/cuda*/lib64 /usr/local/cuda*/targets/x86_64-linux/lib
for candidate in python3 python /opt/conda/bin/python3; do
  while IFS= read -r folder; do add_libraries "$folder"; done < <("$candidate" -c '
import glob, sys
for folder in sys.path:
    for found in sorted(glob.glob(folder + "/nvidia/*/lib")): print(found)' 2>/dev/null)
done
# This machine's own libstdc++, unless it is older than the pack's: NVIDIA's libraries may need a newer one than the pack's.
library_path=$work/lib$cuda_libraries
missing_libraries() {
  local program
  for program in "$work"/bin/*; do
    env LD_LIBRARY_PATH="$library_path" LD_TRACE_LOADED_OBJECTS=1 LD_WARN=yes LD_BIND_NOW=1 "$program" 2>&1 | grep 'not found'
  done | sed 's/^[[:space:]]*//; s/ => not found//; s/ (required by .*//' | sort -u
}
missing=$(missing_libraries)
if [[ -n $missing ]]; then
  library_path=$work/lib/gcc:$library_path
  missing=$(missing_libraries)
fi
gpu_name="" peak="" known=""   # known: of configs/devices, what operations are predicted for
if [[ $emulated -eq 1 ]]; then
  gpu_name="emulated device" peak=989 known=h200
elif command -v nvidia-smi >/dev/null; then
  gpu_name=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)
fi
case $gpu_name in   # dense bf16 on tensor cores, TFLOP/s, by the data sheet
  *H100*) peak=989 known=h100 ;;
  *H200*) peak=989 known=h200 ;;
  *B200*) peak=2250 known=b200 ;;
  *A100*) peak=312 ;;
esac
against="${peak:+--peak-tflops $peak} ${known:+--device '$here/configs/devices/$known.yaml'}"
compiler=1
command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null || compiler=0

# ---- Parts

declare -A not_run=() ended=()   # by part: why it did not run; or how it ended
stop=""                          # why nothing more can run
[[ -z $missing ]] || stop="libraries are missing"

# Name, seconds of a run of 600, a program of the pack that it needs (or -), command.
part() {
  local name=$1 limit=$(($2 * total / 600)) needs=$3 left=$((total - 5 - SECONDS)) code=0 begin
  shift 3
  if [[ -n $only && ,$only,load, != *,$name,* ]]; then not_run[$name]="not asked for"; return; fi
  [[ -z ${not_run[$name]:-} ]] || return 0   # told before
  if [[ -n $stop ]]; then not_run[$name]=$stop; return; fi
  if [[ $needs != - && ! -x $work/bin/$needs ]]; then not_run[$name]="$needs is not in the pack"; return; fi
  if [[ $left -lt 1 ]]; then not_run[$name]="the $total s were over"; return; fi
  [[ $limit -ge 1 ]] || limit=1
  [[ $limit -le $left ]] || limit=$left
  printf '%4d s  %-20s at most %d s\n' "$SECONDS" "$name" "$limit"
  begin=$SECONDS
  (cd "$work" && exec timeout -k 3 "$limit" "$@") >"$output/$name.log" 2>&1 </dev/null || code=$?
  [[ $code -ne 137 || $((SECONDS - begin)) -lt $limit ]] || code=124   # timeout had to kill it
  case $code in
    0) ended[$name]="" ;;
    124) ended[$name]="its $limit s were not enough" ;;
    *) ended[$name]="exit status $code, $name.log: $(tail -n 1 "$output/$name.log" | cut -c 1-160)" ;;
  esac
  table
}

python_part() {  # name, seconds, script, its options
  part "$1" "$2" - "$python" "${@:3}"
}

# ---- Claims

results=() claims=() targets=() figures=() reasons=()
row() { results+=("$1") claims+=("$2") targets+=("$3") figures+=("$4") reasons+=("$5"); }

# Why some of these parts have nothing to say, as "result|reason"; empty when all have.
obstacle() {
  local name
  for name in "$@"; do
    [[ -z ${not_run[$name]:-} ]] || { echo "not run|${not_run[$name]}"; return; }
  done
  for name in "$@"; do
    case ${ended[$name]} in
      "") ;;
      its*) echo "not run|${ended[$name]}"; return ;;
      *) echo "FAIL|${ended[$name]}"; return ;;
    esac
  done
}
# A speed. What is claimed, parts (a,b) that it needs, target (">= 0.8", "<= 1", or "-" where there is none), figure, unit.
speed() {
  local why
  why=$(obstacle ${2//,/ })
  if [[ -n $why && (-z $4 || $why != "not run|its"*) ]]; then row "${why%%|*}" "$1" "${3#-}" "" "${why#*|}"
  elif [[ -z $4 ]]; then row FAIL "$1" "${3#-}" "" "no figure in ${2%%,*}.log"
  elif [[ $emulated -eq 1 ]]; then row "not judged" "$1" "${3#-}" "$4${5:-}" "an emulated device has no speed"
  elif [[ $3 == - ]]; then row measured "$1" "" "$4${5:-}" ""
  elif awk -v f="$4" -v op="${3% *}" -v t="${3#* }" 'BEGIN { exit !(op == ">=" ? f + 0 >= t + 0 : f + 0 <= t + 0) }'; then
    row pass "$1" "$3" "$4${5:-}" ""
  else
    row FAIL "$1" "$3" "$4${5:-}" ""
  fi
}
# What must hold. Claim, part, target, figure, 1 when it holds.
fact() {
  local why
  why=$(obstacle "$2")
  if [[ -n $why ]]; then row "${why%%|*}" "$1" "$3" "$4" "${why#*|}"
  elif [[ $5 == 1 ]]; then row pass "$1" "$3" "$4" ""
  else row FAIL "$1" "$3" "$4" "see $2.log"; fi
}
# Tests of GoogleTest. Claim, part.
tests() {
  local log=$output/$2.log passed failed skipped figure
  [[ -z ${not_run[$2]:-} ]] || { row "not run" "$1" "all pass" "" "${not_run[$2]}"; return; }
  passed=$(grep -c '^\[       OK \]' "$log")
  failed=$(grep -c '^\[  FAILED  \].* ms)$' "$log") skipped=$(grep -c '^\[  SKIPPED \].* ms)$' "$log")
  figure="$passed passed, $failed failed, $skipped skipped"
  if [[ $failed -gt 0 ]]; then
    row FAIL "$1" "all pass" "$figure" "$(sed -n 's/^\[  FAILED  \] \([^ ,]*\).* ms)$/\1/p' "$log" | head -n 3 | tr '\n' ' ')in $2.log"
  elif [[ ${ended[$2]} == its* ]]; then
    row "not run" "$1" "all pass" "$figure" "${ended[$2]} for all"
  elif [[ -n ${ended[$2]} ]]; then
    row FAIL "$1" "all pass" "$figure" "${ended[$2]}"
  elif [[ $passed -eq 0 ]]; then
    row "not run" "$1" "all pass" "$figure" "every test was skipped"
  else
    row pass "$1" "all pass" "$figure" ""
  fi
}
# Column of bench_gpu_ops: 1 ms, 2 GB/s, 3 of copy, 4 TFLOP/s, 5 of matmul. Operation, column.
column() {
  awk -v name="$1" -v column="$2" 'index($0, name " ") == 1 { $0 = substr($0, length(name) + 1); print $column; exit }' \
    "$output/ops.log" 2>/dev/null
}
# What follows a word in a log: log, word.
after() { awk -v word="$2" '{ for (i = 1; i < NF; ++i) if ($i == word) { print $(i + 1); exit } }' "$output/$1.log" 2>/dev/null | tr -d ,; }
before() { awk -v word="$2" '{ for (i = 2; i <= NF; ++i) if ($i == word) { print $(i - 1); exit } }' "$output/$1.log" 2>/dev/null; }
ratio() { [[ -z $1 || -z $2 ]] || awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", a / b }'; }

# All rows so far, and then what is still to come. As text and as Markdown.
table() {
  local i count title
  title="Lamina $(about lamina) on ${gpu_name:-no GPU} ($(date -u +%Y-%m-%dT%H:%M:%SZ), $SECONDS of $total s; PyTorch $torch_version)"
  judge
  {
    echo "$title"
    printf '\n%-10s  %-66s %-12s %-36s %s\n' result claim target figure why
    for i in "${!results[@]}"; do
      printf '%-10s  %-66s %-12s %-36s %s\n' "${results[i]}" "${claims[i]}" "${targets[i]}" "${figures[i]}" "${reasons[i]}"
    done
    printf '\n'
    for i in pass FAIL measured "not judged" "not run"; do
      count=$(printf '%s\n' "${results[@]}" | grep -cx "$i")
      printf '%s %s%s' "$count" "$i" "$([[ $i == "not run" ]] || echo ', ')"
    done
    printf '\n'
  } >"$output/results.txt.new"
  {
    printf '# %s\n\n| result | claim | target | figure | why |\n|---|---|---|---|---|\n' "$title"
    for i in "${!results[@]}"; do
      printf '| %s | %s | %s | %s | %s |\n' "${results[i]}" "${claims[i]//|/\\|}" "${targets[i]}" "${figures[i]}" "${reasons[i]//|/\\|}"
    done
  } >"$output/results.md.new"
  mv "$output/results.txt.new" "$output/results.txt"
  mv "$output/results.md.new" "$output/results.md"
}

judge() {
  local name yet bits faults same_bits="operations at the 48B's shapes: the same bits three times"
  local peak_target=">= 0.45" kimi_target=">= 0.25" difference torch_is
  for name in "${parts[@]}"; do
    yet=${not_run[$name]:-}${ended[$name]+ended}
    [[ -n $yet ]] || { not_run[$name]="not reached"; unreached+=("$name"); }
  done
  results=() claims=() targets=() figures=() reasons=()
  if [[ -n $missing ]]; then row FAIL "programs find their libraries" "all" "" "not found: ${missing//$'\n'/, }"
  else row pass "programs find their libraries" "all" "all" ""; fi
  fact "a GPU is there" load "" "$(gpu_found)" "$([[ -z $(gpu_found) ]] || echo 1)"
  bits=$(grep -c ' the same bits$' "$output/bits.log" 2>/dev/null) faults=$(grep -c ' FAULT: ' "$output/bits.log" 2>/dev/null)
  if [[ ${faults:-0} -gt 0 ]]; then
    row FAIL "$same_bits" "all" "$bits of $((bits + faults))" "$(sed -n 's/  *FAULT: /: /p' "$output/bits.log" | head -n 1)"
  else
    fact "$same_bits" bits "all" "$([[ ${bits:-0} -eq 0 ]] || echo "$bits operations")" "$([[ ${bits:-0} -gt 0 ]] && echo 1)"
  fi
  tests "tests of the operations" tests-ops
  tests "tests of messages between ranks" tests-comm
  tests "tests of the engine: a step is the CPU's" tests-trainer
  speed "AttnRes read, forward, of the copy's bandwidth" ops ">= 0.80" "$(column 'AttnRes read, forward' 3)"
  speed "AttnRes read, backward, of the copy's bandwidth" ops - "$(column 'AttnRes read, backward' 3)"
  speed "attention 192 / 128, forward, of the product's rate" ops - "$(column 'attention 192 / 128, forward' 5)"
  speed "attention 192 / 128, backward, of the product's rate" ops - "$(column 'attention 192 / 128, backward' 5)"
  speed "attention, both passes: time over PyTorch's quickest backend" ops,attention - \
    "$(ratio "$(after ops attention_forward_backward_ms)" "$(after attention torch_attention_forward_backward_ms)")"
  speed "KDA, both passes: time over flash-linear-attention's" ops,fla "<= 1" \
    "$(ratio "$(after ops kda_forward_backward_ms)" "$(after fla fla_kda_forward_backward_ms)")"
  speed "experts' products, forward, of the product's rate" ops - "$(column "experts' products, forward" 5)"
  speed "head and loss, of the product's rate" ops - "$(column 'head and loss, both passes' 5)"
  if [[ -z $peak ]]; then
    row "not run" "dense model, MFU" "$peak_target" "" "no data sheet's peak is known for ${gpu_name:-no GPU}"
    row "not run" "Kimi Linear 48B's shapes, MFU" "$kimi_target" "" "no data sheet's peak is known for ${gpu_name:-no GPU}"
  else
    speed "dense model, MFU against $peak TFLOP/s" dense "$peak_target" "$(after dense MFU)"
    speed "Kimi Linear 48B's shapes, MFU against $peak TFLOP/s" kimi "$kimi_target" "$(after kimi MFU)"
  fi
  torch_is=$(sed -n 's/.*(PyTorch \(.*\))$/\1/p' "$output/torch.log" 2>/dev/null | head -n 1)
  speed "dense model, tokens per second over PyTorch's${torch_is:+ ($torch_is)}" dense,torch ">= 1" \
    "$(ratio "$(before dense 'tokens/s,')" "$(before torch 'tokens/s,')")"
  speed "Block AttnRes with 10 sources, a step over the standard residual's" attnres "<= 1.04" "$(after attnres 'residual:')"
  speed "a launch, on the host" launch - "$(after launch launch_host_us)" " us"
  speed "a copy of four bytes to the host" launch - "$(after launch copy_to_host_us)" " us"
  speed "a wait's delay after the GPU has ended, the longest of four lengths" launch - \
    "$(awk '/^work_us/ && $4 + 0 > worst { worst = $4 } END { if (worst != "") print worst }' "$output/launch.log" 2>/dev/null)" " us"
  difference=$(sed -n 's/^first_loss_difference //p' "$output/train.log" 2>/dev/null)
  fact "training: the first loss is the CPU's, fp32, relative" train "<= 1e-5" "$difference" \
    "$(awk -v d="${difference:-1}" 'BEGIN { print d <= 1e-5 }')"
  for name in kda attention attnres; do
    fact "compute-sanitizer racecheck: $name" "racecheck-$name" "no hazard" \
      "$(sed -n 's/.*RACECHECK SUMMARY: //p' "$output/racecheck-$name.log" 2>/dev/null)" 1
  done
  fact "compute-sanitizer memcheck: the operations' tests" memcheck "no error" \
    "$(sed -n 's/.*ERROR SUMMARY: //p' "$output/memcheck.log" 2>/dev/null)" 1
  for name in ${unreached[@]+"${unreached[@]}"}; do unset "not_run[$name]"; done
  unreached=()
}
unreached=()
gpu_found() { sed -n 's/^[a-z]*  *GPU 0  *\([^,]*\),.*/\1/p' "$output/load.log" 2>/dev/null; }

# ---- The run

# A program of the pack. Only it gets the pack's libraries.
packed() {
  local program=$1
  shift
  env LD_LIBRARY_PATH="$library_path" "$work/bin/$program" "$@"
}
load_check() {
  packed lamina --version && packed lamina doctor --quick
  return 0   # what doctor would mend is not judged here
}
# The same steps on the GPU and on the CPU.
train_both() {
  local device overrides=(data.train="[{path: tokens}]" data.validation=null parallel.pipeline=1 parallel.virtual_stages=1
    parallel.schedule=1f1b train.precision=fp32 train.global_batch_size=4 train.num_steps=20 logging.interval=1)
  [[ $emulated -eq 0 ]] || overrides+=(model.hidden_size=32 model.num_hidden_layers=2 model.mixers="[kda, mla]" model.attn_res_block_size=1
    model.num_attention_heads=2 model.kv_lora_rank=16 model.linear_num_heads=2 model.linear_head_dim=16 model.intermediate_size=32
    model.num_experts=4 model.num_experts_per_token=2 model.moe_intermediate_size=16 data.seq_len=16 train.global_batch_size=2
    train.micro_batch_size=1 train.num_steps=2)
  packed lamina prepare --tokenizer bytes --output tokens "$here/data/text.md" || return
  for device in cuda cpu; do
    packed lamina train "$here/configs/quickstart.yaml" "${overrides[@]}" run.device="$device" run.output_dir="run-$device" || return
  done
  awk 'match($0, /"loss": *[0-9.eE+-]+/) {
      value = substr($0, RSTART, RLENGTH); sub(/.*: */, "", value)
      if (FILENAME ~ /cuda/) gpu[++n] = value; else cpu[++m] = value }
    END {
      if (n == 0 || n != m) { print "losses: " n + 0 " and " m + 0; exit 1 }
      for (i = 1; i <= n; ++i) {
        d = (gpu[i] - cpu[i]) / cpu[i]; if (d < 0) d = -d
        if (i == 1) first = d
        print "step " i ": GPU " gpu[i] ", CPU " cpu[i] ", relative difference " d }
      printf "first_loss_difference %.2e\n", first }' run-cuda/metrics.jsonl run-cpu/metrics.jsonl
}
sanitize() {  # tool, program of the pack, arguments
  local tool=$1 program=$2
  shift 2
  compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all env LD_LIBRARY_PATH="$library_path" "$work/bin/$program" "$@"
}
# As their tests in tests/gpu/CMakeLists.txt.
test_operations() {
  OMP_NUM_THREADS=2 LAMINA_EMULATOR_PROTECT=0 LAMINA_EMULATOR_PAGEABLE=0 packed tests_core_ops_cuda \
    --gtest_filter='-*AtAnyNumberOfThreads*:Threads.*'
}
test_others() { OMP_NUM_THREADS=1 LAMINA_EMULATOR_PAGEABLE=0 packed "$1"; }

export here work emulated library_path
export -f packed load_check train_both sanitize test_operations test_others
small=""
[[ $emulated -eq 0 ]] || small=--small

echo "Lamina $(about lamina) on ${gpu_name:-no GPU that nvidia-smi shows}, $total s, results in $output"
part load 60 lamina bash -c load_check
if [[ -n ${ended[load]+ended} && -z $(gpu_found) ]]; then
  stop="no GPU: $(grep -m 1 -E '^[a-z]+ +(CUDA|GPU)' "$output/load.log" | sed 's/  */ /g')"
fi
part bits 60 bench_gpu_ops bash -c "packed bench_gpu_ops --bits $small"
part tests-ops 60 tests_core_ops_cuda bash -c test_operations
part tests-comm 20 tests_comm_cuda bash -c 'test_others tests_comm_cuda'
part tests-trainer 60 tests_trainer_cuda bash -c 'test_others tests_trainer_cuda'
part ops 60 bench_gpu_ops bash -c "packed bench_gpu_ops $small"
if [[ -z $python ]]; then
  for name in attention fla torch; do not_run[$name]="no Python here whose PyTorch has a GPU"; done
fi
python_part attention 40 "$here/bench/torch_attention.py"
if [[ -n $python ]] && ! "$python" -c "import fla" 2>/dev/null; then not_run[fla]="flash-linear-attention is not here"; fi
python_part fla 40 "$here/bench/fla_kda.py"
part dense 60 bench_gpu_train bash -c "packed bench_gpu_train --only dense $against $small"
eager=""
[[ $compiler -eq 1 ]] || eager=--eager   # torch.compile needs one
python_part torch 90 "$here/bench/torch_dense.py" $eager
part launch 10 bench_gpu_launch bash -c "packed bench_gpu_launch $small"
part kimi 50 bench_gpu_train bash -c "packed bench_gpu_train --only kimi $against $small"
part attnres 50 bench_gpu_train bash -c "packed bench_gpu_train --only attnres $small"
part train 50 lamina bash -c train_both
if ! command -v compute-sanitizer >/dev/null; then
  for name in racecheck-kda racecheck-attention racecheck-attnres memcheck; do not_run[$name]="compute-sanitizer is not here"; done
fi
part racecheck-kda 30 bench_gpu_ops bash -c 'sanitize racecheck bench_gpu_ops --bits --only kda --tokens 200'
part racecheck-attention 30 bench_gpu_ops bash -c 'sanitize racecheck bench_gpu_ops --bits --only attention --tokens 150'
part racecheck-attnres 30 bench_gpu_ops bash -c 'sanitize racecheck bench_gpu_ops --bits --only attn_res --tokens 40'
part memcheck 90 tests_core_ops_cuda bash -c "sanitize memcheck tests_core_ops_cuda --gtest_filter='-*Threads*:*Reference*'"
table
cat "$output/results.txt"
echo "in $output: results.txt, results.md and a log of each part"
[[ " ${results[*]} " != *" FAIL "* ]]
