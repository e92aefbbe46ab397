#!/usr/bin/env bash
# Run the NeuralFlix companion, from data to figures.
#
#   ./run_all.sh             the demo: a simulated brain, 2 CPU cores, no GPU, no network after the set-up
#   ./run_all.sh paper       the published data set and the real models; needs GPUs
#   ./run_all.sh paper --slurm   the same over a SLURM cluster: one job for each encoder and decoder of Table 1
#   ./run_all.sh FILE.yaml   a profile of your own
#   ./run_all.sh evidence [PROFILE]   all of a profile (demo), and beside it baselines, controls, solvers, other seeds, other amounts
#                            of signal and of training data; hours
#   ./run_all.sh test        linter, unit tests, the demo once, and the committed notebooks against it; with NFX_TEST_MINUTES=N
#                            Table 1 is left out, and that is said, where the pace of the unit tests is too slow for N minutes
#   ./run_all.sh stand-ins   train the demo's stand-in models again
#   ./run_all.sh --dry-run   list the jobs of the demo (./run_all.sh paper --dry-run: of the paper)
#
# What follows goes to Snakemake: ./run_all.sh demo headline (three subjects with their figures, without the other
# rows of Table 1), ./run_all.sh demo --cores 1. A run that was stopped goes on where it was; one in which nothing
# changed ends in seconds. An active conda environment named nfx is used as it is; else .venv is made, from Python 3.11.
#
# With --slurm, start it on a login node, in a folder that the nodes see too, and leave it running (tmux, nohup): it
# submits what is due, 16 jobs at a time, and takes them out of the queue when it is stopped; it then ends in minutes.
# Account and partition, if not the cluster's defaults: --default-resources slurm_account=NAME slurm_partition=NAME.
# Time, memory, cores and GPUs of a job: workflow/profiles/slurm/config.yaml, or a copy of that folder: --slurm=FOLDER.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'run_all.sh: %s\n' "$*" >&2; exit 1; }
elapsed() { printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); }
usage() { sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

find_python() {  # a Python 3.11, by its version and not by its name
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3 python /usr/bin/python3.11 /usr/local/bin/python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "no Python 3.11 found. Install it (Debian: apt install python3.11 python3.11-venv; macOS: brew install
python@3.11; or: conda env create -f environment.yml && conda activate nfx), or set PYTHON to one"
}

set_up() {  # the environment, made again only when what it is made from has changed
  if [[ ${CONDA_DEFAULT_ENV:-} == nfx ]]; then
    python -c 'import nfx, papermill, snakemake' 2>/dev/null ||
      fail "the conda environment nfx is active but not complete: pip install -c constraints.txt -e .[dev]"
    return
  fi
  local wanted
  wanted="$(cat constraints.txt pyproject.toml | cksum) $PWD"
  if [[ "$(cat .venv/.stamp 2>/dev/null)" != "$wanted" ]]; then
    local python
    python=$(find_python)
    say "Setting up .venv with $python (a few minutes, once)"
    if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      rm -rf .venv
      "$python" -m venv .venv || fail "$python cannot make a virtual environment (Debian: apt install python3.11-venv)"
    fi
    .venv/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]' ||
      fail "pip could not install what pyproject.toml lists; its message is above"
    printf '%s' "$wanted" > .venv/.stamp
  fi
  export PATH="$PWD/.venv/bin:$PATH" VIRTUAL_ENV="$PWD/.venv"
}

have_gpu() { [[ $(nvidia-smi -L 2>/dev/null) == *GPU* ]]; }

gpus() {  # ids of the GPUs that may be used, with commas between them; empty if there is none
  have_gpu || return 0
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    printf '%s' "$CUDA_VISIBLE_DEVICES"
  else
    nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd, -
  fi
}

lock() {  # two runs in one folder would write the same files
  command -v flock >/dev/null || return 0
  exec 9>.run_all.lock
  flock --nonblock 9 || fail "another run is at work in this folder (or its last job is still stopping): wait for it, or stop it"
}

weight() {  # what a job of a rule adds to the time of a run on two cores; the first runs alone
  case $1 in
    data) echo 32 ;; encoder) echo 5 ;; decoder) echo 17 ;; evaluation) echo 28 ;; attention) echo 8 ;; ablations) echo 1 ;;
    baseline) echo 15 ;; control) echo 10 ;; solvers) echo 900 ;;
    *) echo 0 ;;
  esac
}

time_left() {  # passes the engine's lines on, and says after each finished step how long the rest may take
  local line begin=$SECONDS all=0 done=0
  while IFS= read -r line; do
    [[ $line == "Select jobs"* || $line == "Execute "*" jobs..." || $line == "Reason: "* ]] && continue
    [[ $line == "localrule all:" || $line =~ ^\ \ \ \ (input|jobid|reason|resources): ]] && continue
    printf '%s\n' "$line"
    if [[ $line =~ ^([a-z]+)\ +([0-9]+)$ ]]; then  # of the table of jobs
      all=$((all + $(weight "${BASH_REMATCH[1]}") * BASH_REMATCH[2]))
    elif [[ $line =~ ^Finished\ jobid:\ [0-9]+\ \(Rule:\ ([a-z]+)\) ]]; then
      done=$((done + $(weight "${BASH_REMATCH[1]}")))
    elif [[ $line =~ ^[0-9]+\ of\ [0-9]+\ steps ]] && ((0 < done && done < all)); then
      local spent=$((SECONDS - begin))
      printf '%s so far, about %s left\n' "$(elapsed $spent)" "$(elapsed $((spent * (all - done) / done)))"
    fi
  done
}

queue_name() { printf 'nfx-%s' "$(pwd -P | cksum | cut -d ' ' -f 1)"; }  # with which the names of this folder's jobs begin

check_queue() {  # the engine does not take up again what an earlier run, if it was killed, left in the queue
  command -v sbatch >/dev/null || fail "--slurm: no sbatch here; run it on a login node of a SLURM cluster"
  local left
  left=$(squeue --user "$(id -un)" --noheader --format '%i %j' | sed -n "s/ $(queue_name).*//p" | paste -sd ' ' -)
  [[ -z $left ]] || fail "an earlier run of this folder left jobs in the queue, and two jobs must not write the same files:
wait for them, or: scancel $left"
}

check() {  # check PROFILE [--slurm]: a table of what a run needs and has; the demo brings all of it
  [[ $1 == demo ]] || python -m nfx.preflight "$@"
}

engine() {  # engine PROFILE [arguments of snakemake]
  local profile=$1 ids="" cores dry=false argument cluster="" stop=TERM given=()
  shift
  for argument in "$@"; do
    [[ $argument == -n || $argument == --dry-run || $argument == --dryrun ]] && dry=true
    case $argument in
      --slurm) cluster=workflow/profiles/slurm ;;
      --slurm=*) cluster=${argument#--slurm=} ;;
      *) given+=("$argument") ;;
    esac
  done
  set -- ${given[@]+"${given[@]}"}
  local ready=0
  check "$profile" ${cluster:+--slurm} || ready=$?
  [[ $ready == 0 || $dry == true ]] || return "$ready"
  local options=(--snakefile workflow/Snakefile --workflow-profile "${cluster:-workflow/profiles/default}")
  options+=(--config "profile=$profile")
  [[ " $* " != *" evidence "* ]] || options+=("evidence=true")
  if [[ -n $cluster ]]; then  # which gives each job its cores and its GPU
    unset CUDA_VISIBLE_DEVICES
    stop=INT  # at which the engine takes its jobs out of the queue; at TERM it would wait for them
    options+=(--slurm-jobname-prefix "$(queue_name)")
  else
    cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu)
    [[ " $* " =~ \ (-c|--cores|-j|--jobs) ]] || options+=(--cores "$cores")
    ids=$(gpus)
  fi
  if [[ -n $ids ]]; then
    local number=0 limits=()
    for _ in ${ids//,/ }; do limits+=("slot$number=1"); number=$((number + 1)); done
    options+=("gpus=$ids" --resources "${limits[@]}")
    unset CUDA_VISIBLE_DEVICES  # each job gets its own
  fi
  if [[ $dry == true ]]; then
    snakemake "$@" "${options[@]}"
    return "$ready"
  fi
  [[ -z $cluster ]] || check_queue
  if [[ -n $(ls -A .snakemake/locks 2>/dev/null) ]]; then  # left by a run that was killed: ours is the only one now
    snakemake "${options[@]}" --unlock
  fi
  draw_pipeline "$profile" "${options[@]}"
  # In a process group of its own, so that stopping this script stops every job, and nothing else.
  set -m
  if [[ -n $cluster ]]; then
    # Started with nohup from a script, everything here ignores INT, and the engine would too.
    PYTHONUNBUFFERED=1 env --default-signal=INT snakemake "$@" "${options[@]}" 2>&1 </dev/null &
  else
    { PYTHONUNBUFFERED=1 snakemake "$@" "${options[@]}" 2>&1 </dev/null | time_left; } &
  fi
  local group=$!
  set +m
  trap 'kill -'"$stop"' -- -'"$group"' 2>/dev/null; wait '"$group"' 2>/dev/null || true; exit 130' INT TERM HUP
  local status=0
  wait "$group" || status=$?
  trap - INT TERM HUP
  return $status
}

run_evidence() {  # run_evidence PROFILE [arguments of snakemake]: each study is a run of its own, before the figures
  local profile=$1 studies study
  shift
  engine "$profile" "$@"
  studies=$(python -m nfx.studies "$profile")
  for study in $studies; do
    say "Study ${study##*/}"
    engine "$study" decoders --prioritize decoders "$@"  # without it, the default profile asks for figures
  done
  [[ " $* " =~ \ (-n|--dry-run|--dryrun)\  ]] || python -m nfx.studies "$profile" --measure
  engine "$profile" evidence "$@"
}

draw_pipeline() {  # figures/<profile>/pipeline.mmd, when the pipeline has changed
  local name=${1##*/} drawing
  drawing=figures/${name%.y*ml}/pipeline.mmd
  shift
  [[ -s $drawing && $drawing -nt workflow/Snakefile ]] && return
  mkdir -p "${drawing%/*}"
  if snakemake "$@" --rulegraph mermaid > "$drawing.new" 2>/dev/null; then
    mv "$drawing.new" "$drawing"
  else
    rm -f "$drawing.new"
  fi
}

phase() {  # phase NAME COMMAND...: run it, and say how long it took
  local name=$1 begin=$SECONDS
  shift
  say "$name"
  "$@"
  phases+="$name: $(elapsed $((SECONDS - begin)))"$'\n'
  printf -- '-- %s: %s\n' "$name" "$(elapsed $((SECONDS - begin)))"
}

unit_tests() { OMP_NUM_THREADS=1 pytest -q -n 2 --dist worksteal tests | tee "$report"; }  # two at a time, on a core each

lint() {  # style, spelling, types
  ruff check --quiet nfx tests notebooks workflow && codespell && mypy
}

too_slow_for_table_1() {  # too_slow_for_table_1 UNIT: seconds of the unit tests; is NFX_TEST_MINUTES too short for all of the demo?
  # On each machine tried, the demo took 3 to 3.5 times as long as the unit tests. Five minutes are for what comes after it.
  [[ -n ${NFX_TEST_MINUTES:-} ]] && ((SECONDS + $1 * 7 / 2 + 300 > NFX_TEST_MINUTES * 60))
}

run_tests() {
  local phases="" report begin targets=() books=(notebooks/)
  report=$(mktemp)
  phase "lint" lint
  begin=$SECONDS
  phase "unit tests" unit_tests
  if too_slow_for_table_1 $((SECONDS - begin)); then
    targets=(headline) books=(notebooks/0[12346]_*.ipynb)
    export NFX_HEADLINE_ONLY=1
    say "Left out, for NFX_TEST_MINUTES=$NFX_TEST_MINUTES: the other rows of Table 1, and notebook 05"
  fi
  phase "the demo" engine demo ${targets[@]+"${targets[@]}"}
  phase "the demo's results" pytest -q tests/demo_results.py
  phase "notebooks" pytest -q --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg "${books[@]}"
  say "All passed in $(elapsed $SECONDS)${targets[0]:+, without the other rows of Table 1 and notebook 05}"
  python -m nfx.summary demo
  printf '%s' "$phases"
  tail -n 1 "$report"  # the count of unit tests ends the output
  rm -f "$report"
}

main() {
  local command=demo
  case ${1:-} in
    -h | --help) usage; return ;;
    "" | -*) ;;
    *) command=$1; shift ;;
  esac
  case $command in
    demo | paper | test | stand-ins | evidence) ;;
    *.yaml | *.yml) [[ -f $command ]] || fail "no profile $command" ;;
    *) usage >&2; fail "unknown command '$command'" ;;
  esac
  set_up
  lock
  case $command in
    test) run_tests; return ;;
    evidence)
      local profile=demo
      case ${1:-} in "" | -*) ;; *) profile=$1; shift ;; esac
      run_evidence "$profile" "$@" ;;
    stand-ins) python -m nfx.stand_ins.train "$@" && python -m nfx.stand_ins.scores ;;  # scores, cards, digests
    *) engine "$command" "$@" ;;
  esac
  say "Finished in $(elapsed $SECONDS)"
}

main "$@"
