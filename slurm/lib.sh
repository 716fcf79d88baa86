# shellcheck shell=bash
# What the job scripts of this folder share. A script sources it and calls, in this order:
#
#   begin JOB [section.key=value ...]   settings, checks, the attempt's log folder, a look at every node
#   torchrun_on_all_nodes MODULE ...    or run_commands, which are those of jobs/table.py
#   finish                              done, once more through the queue, or give up; see slurm/attempts.py
#
# PROFILE chooses recipes/<profile>, RECIPES another folder of recipes; RUN is where results go. Jobs start in the
# repository's root, or in another folder that they were submitted from: then slurm/adapter.py names this one as
# SMOLLM3_SCRIPTS, and its Python as SMOLLM3_PYTHON. `begin` sets the JOB_* variables below.
set -euo pipefail

export PROFILE=${PROFILE:-smollm3-3b}
export RUN=${RUN:-runs/$PROFILE}
export RECIPES=${RECIPES:-recipes/$PROFILE}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}

JOB_RECIPE=             # YAML file
JOB_FOLDER=             # of the run: attempts.json, metrics.jsonl, outcome.json
JOB_LOGS=               # of this attempt
JOB_MODEL=              # transformers folder that the job starts from
JOB_EXPORT_FROM=        # run folder to export that model from first, if need be
JOB_SUITES=             # of an evaluation
JOB_PROCESSES_PER_NODE=
JOB_EVALUATES_CHECKPOINTS= # not empty: jobs of their own do, while this one trains
JOB_DEVICE=             # cuda or cpu
JOB_RUNS=()             # run folders of a job that trains several recipes
JOB_COMMANDS=()         # what a job on one node does, as words behind smollm3, each quoted once more
export JOB_RECIPE JOB_FOLDER JOB_LOGS JOB_MODEL JOB_EXPORT_FROM JOB_SUITES JOB_PROCESSES_PER_NODE JOB_DEVICE

CONTAINER=()          # command prefix that enters the container
SRUN_OPTIONS=()       # further options of every srun
NODE_CHECK_OPTIONS=() # of slurm/node_check.py: the rates that this cluster should reach
PYTHON=${SMOLLM3_PYTHON:-$PWD/.venv/bin/python}
SITE_FILE=${SMOLLM3_SITE:-slurm/site.sh}
# shellcheck source=/dev/null
[[ -f $SITE_FILE ]] && source "$SITE_FILE"
# Neither 'make setup' nor the site file said which Python has the project's packages: look for one.
[[ $PYTHON != "$PWD/.venv/bin/python" || -x $PYTHON ]] \
  || PYTHON=$("${CONTAINER[@]}" tools/find-python torch) || exit 2
export PYTHON
EVAL_PYTHON=${EVAL_PYTHON:-$PYTHON} # evaluates; that of .venv-vllm for backend.engine: vllm
# Command that fails on a node that should not take part, with exit code 124 if it did not finish in time; empty in the
# site file: none.
[[ -v NODE_CHECK ]] || NODE_CHECK=("${CONTAINER[@]}" "$PYTHON" -m slurm.node_check "${NODE_CHECK_OPTIONS[@]}")

STOP_REQUESTED=0 # Slurm warned that the time limit is near (--signal=B:USR1@seconds)
INTERRUPTED=0    # Slurm is ending the job: preemption, scontrol requeue, scancel
STEP_PID=
STEP_STATUS=1 # of the last step; nothing is finished before it
MAY_TRAIN=1   # what the node check before the first step says

on_stop_request() {
  STOP_REQUESTED=1
  say "the time limit is near: finishing the step and saving"
  # Reaches all processes of the steps; torchrun itself ignores it (see torchrun_on_all_nodes). Again and again, because
  # so does a trainer that is still starting, until its own handler is there.
  [[ -z $STEP_PID ]] || while kill -0 "$STEP_PID" 2>/dev/null; do
    scancel --signal=USR1 "$SLURM_JOB_ID" || true
    sleep 5
  done &
}
trap on_stop_request USR1
trap 'INTERRUPTED=1' TERM # Slurm sends it to the steps too; the shell stays to note how they end

say() {
  echo "$(date '+%F %T') $*"
}

in_container() {
  "${CONTAINER[@]}" "$@"
}

begin() {
  [[ -n ${SLURM_JOB_ID:-} ]] || {
    echo "This is a job script: submit it with slurm/submit $1, or sbatch $0." >&2
    exit 2
  }
  local assignments status=0
  JOB_ARGUMENTS=("$@")
  scontrol update JobId="$SLURM_JOB_ID" Comment="$(realpath --canonicalize-missing "$RUN")"
  assignments=$(in_container "$PYTHON" -m slurm.checks "$@") || status=$?
  if [[ $status -eq 3 ]]; then
    wait_for_job "$assignments"
  elif [[ $status -ne 0 ]]; then
    exit "$status"
  fi
  eval "$assignments"
  refuse_second_job
  ATTEMPT=$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
  JOB_LOGS=$JOB_FOLDER/logs/$ATTEMPT
  mkdir -p "$JOB_LOGS"
  # What is left of an attempt before this one must not be taken for the outcome of this one.
  rm -f "$JOB_FOLDER/outcome.json"
  in_container "$PYTHON" -m slurm.attempts begin "$JOB_FOLDER" "${JOB_RUNS[@]}"
  say "$1: $JOB_RECIPE on $SLURM_JOB_NODELIST, attempt $ATTEMPT, logs in $JOB_LOGS"
  check_nodes || MAY_TRAIN=0
  [[ $MAY_TRAIN -ne 0 || $INTERRUPTED -ne 0 ]] || finish
}

# Another job that is at work in this folder must not lose its account of it: attempts.json, outcome.json.
refuse_second_job() {
  local other
  other=$(in_container "$PYTHON" -m slurm.attempts job "$JOB_FOLDER")
  [[ -n $other && $other != "$SLURM_JOB_ID" ]] || return 0
  [[ -n $(squeue --noheader --states=RUNNING,SUSPENDED --jobs="$other" 2>/dev/null) ]] || return 0
  echo "error: job $other is at work in $JOB_FOLDER already. Wait for it, or end it with scancel $other." >&2
  exit 2
}

# A job that was submitted while the one before it still ran: back into the queue until that one has ended, well or not.
wait_for_job() {
  say "waiting for job $1, which makes what this one starts from"
  requeue "Dependency=afterany:$1"
}

# Back into the queue, with further settings of `scontrol update`.
requeue() {
  (
    trap '' TERM # requeueing ends this shell too, but only after the grace period
    scontrol requeue "$SLURM_JOB_ID" || {
      say "Slurm does not requeue this job; submit it again to go on"
      exit 1
    }
    [[ $# -eq 0 ]] || scontrol update JobId="$SLURM_JOB_ID" "$@"
  ) || exit 1
  exit 0
}

# A field of `scontrol show job`.
job_field() {
  scontrol show job "$SLURM_JOB_ID" --oneliner | grep --only-matching --perl-regexp "(?<= $1=)\S+"
}

# Names of nodes, one a line, of a list as Slurm writes it.
node_names() {
  [[ -z $1 || $1 == "(null)" ]] || scontrol show hostnames "$1"
}

# Run NODE_CHECK on every node and say what slurm/node_verdict.py thinks of the answers; succeeds if the job may train.
# --overlap: a step that cannot end, because one of its nodes is dead, still holds the cores of all.
check_nodes() {
  local folder=$JOB_LOGS/node_check status=0 nodes verdict
  rm -rf "$folder"
  mkdir -p "$folder"
  # shellcheck disable=SC2016 # the variables are those of the nodes
  NODE_CHECK_FOLDER=$folder/meeting-$SECONDS \
    timeout --kill-after=10 "${NODE_CHECK_SECONDS:-180}" srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" \
    --cpus-per-task="$SLURM_CPUS_ON_NODE" --overlap --kill-on-bad-exit=0 "${SRUN_OPTIONS[@]}" bash -c '
      node=$1/$SLURMD_NODENAME status=0
      shift
      : >"$node.log"
      [[ $# -eq 0 ]] || "$@" >>"$node.log" 2>&1 || status=$?
      echo "$status" >"$node.status"' node-check "$folder" "${NODE_CHECK[@]}" >"$folder/srun" 2>&1 || status=$?
  mapfile -t nodes < <(node_names "$SLURM_JOB_NODELIST")
  verdict=$(in_container "$PYTHON" -m slurm.node_verdict judge "$folder" "${nodes[@]}" \
    --srun-status "$status" --site-file "$SITE_FILE" "$@") && status=0 || status=$?
  say "$verdict"
  return "$status"
}

# All nodes that the job should avoid from now on, comma-separated: what is excluded already, and the bad ones.
nodes_to_exclude() {
  local nodes excluded required
  mapfile -t nodes < <(node_names "$SLURM_JOB_NODELIST")
  mapfile -t excluded < <(node_names "$(job_field ExcNodeList)")
  mapfile -t required < <(node_names "$(job_field ReqNodeList)")
  sinfo --noheader --Node --partition="$SLURM_JOB_PARTITION" --format='%N %G' \
    | in_container "$PYTHON" -m slurm.node_verdict exclude "$JOB_LOGS/node_check" "${nodes[@]}" \
      --excluded "${excluded[@]}" --required "${required[@]}"
}

# Address and port for a store on the head node, where this shell runs. The static rendezvous unpickles nothing from it.
rendezvous() {
  local head
  head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head --lines=1)
  # Where Slurm itself reaches the node; the name alone need not resolve everywhere.
  head=$(scontrol show node "$head" --oneliner | grep --only-matching --perl-regexp '(?<= NodeAddr=)\S+')
  in_container "$PYTHON" -c \
    'import socket, sys; s = socket.socket(); s.bind(("", 0)); print(f"{sys.argv[1]}:{s.getsockname()[1]}")' "$head"
}

# One process per GPU on every node, `MODULE arguments...` in each.
torchrun_on_all_nodes() {
  local watcher arguments endpoint
  if [[ $SLURM_NNODES -eq 1 ]]; then
    arguments=(foundation.torchrun)
  else
    endpoint=$(rendezvous)
    arguments=(torch.distributed.run --nnodes="$SLURM_NNODES" --rdzv-backend=static --rdzv-endpoint="$endpoint")
  fi
  arguments+=(
    --nproc-per-node="$JOB_PROCESSES_PER_NODE" --rdzv-id="$ATTEMPT"
    --max-restarts=0       # a failed rank ends the attempt; Slurm starts the next one on healthy nodes
    --shutdown-timeout=600 # seconds for a last checkpoint
    -m "$@"
  )
  evaluate_checkpoints --watch "${EVALUATION_POLL_SECONDS:-60}" &
  watcher=$!
  # The ignored USR1 is inherited by torchrun and its workers; the workers then set their own handler.
  # shellcheck disable=SC2016 # expanded on the nodes
  run_step "$SLURM_NNODES" "${CONTAINER[@]}" bash -c '
    trap "" USR1
    cores=$(nproc)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > JOB_PROCESSES_PER_NODE ? cores / JOB_PROCESSES_PER_NODE : 1))}
    exec "$PYTHON" -m "$1" --node-rank="$SLURM_NODEID" "${@:2}"' torchrun "${arguments[@]}"
  if kill "$watcher" 2>/dev/null; then wait "$watcher" || true; fi
  [[ $INTERRUPTED -ne 0 ]] || (evaluate_checkpoints) || true
}

# Submit evaluations of the checkpoints that are due; to be run in a subshell. Whatever goes wrong, training goes on.
evaluate_checkpoints() {
  [[ -n $JOB_EVALUATES_CHECKPOINTS ]] || exit 0
  exec "${CONTAINER[@]}" "$PYTHON" -m slurm.checkpoint_evaluations "$@" "${JOB_ARGUMENTS[@]}" \
    >>"$JOB_LOGS/checkpoint_evaluations.out" 2>&1
}

on_one_node() {
  run_step 1 "${CONTAINER[@]}" "$@"
}

# What the table of jobs says that this job does, on one node; arguments go to the first command.
run_commands() {
  local command words first=("$@")
  STEP_STATUS=0
  for command in "${JOB_COMMANDS[@]}"; do
    eval "words=($command)" # quoted by slurm/checks.py
    and_then on_one_node "$PYTHON" -m smollm3 "${words[@]}" "${first[@]}"
    first=()
  done
}

# run_step NODES COMMAND...: one task per node, in the background so that signals reach this shell; sets STEP_STATUS.
run_step() {
  STEP_STATUS=1
  [[ $STOP_REQUESTED -eq 0 && $INTERRUPTED -eq 0 ]] || finish
  # shellcheck disable=SC2016 # expanded on the nodes
  srun --kill-on-bad-exit=1 --wait=60 --cpus-per-task="$SLURM_CPUS_ON_NODE" "${SRUN_OPTIONS[@]}" \
    --nodes="$1" --ntasks="$1" bash -c 'exec "$@" >>"$JOB_LOGS/$SLURMD_NODENAME.log" 2>&1' log "${@:2}" &
  STEP_PID=$!
  while kill -0 "$STEP_PID" 2>/dev/null; do
    wait "$STEP_PID" || true # a trapped signal ends `wait` early
  done
  STEP_STATUS=0
  wait "$STEP_PID" || STEP_STATUS=$?
  STEP_PID=
  [[ $STEP_STATUS -eq 0 ]] || say "the step ended with status $STEP_STATUS"
}

# Steps of one job that build on each other: the next one only after the last has succeeded.
and_then() {
  [[ $STEP_STATUS -eq 0 ]] || finish
  "$@"
}

# The transformers folder that the job starts from, if it is a pretraining run's and not there yet. Several jobs may start
# from the same one at the same time: each writes its own, and the first to be ready counts.
export_model() {
  STEP_STATUS=0
  # shellcheck disable=SC2016 # expanded on the node
  [[ -z $JOB_EXPORT_FROM ]] || on_one_node bash -c '
    "$PYTHON" -m smollm3 export --replace "$1" "$2.$3" && { mv -T "$2.$3" "$2" || [[ -f $2/config.json ]]; }
    status=$?
    rm -rf "$2.$3"
    exit $status' export "$JOB_EXPORT_FROM" "$JOB_MODEL" "$ATTEMPT"
}

finish() {
  local options=(--exit-status "$STEP_STATUS" --logs "$JOB_LOGS") status=0 exclude='' verdict
  if [[ $STEP_STATUS -ne 0 && $MAY_TRAIN -ne 0 && $INTERRUPTED -eq 0 && $STOP_REQUESTED -eq 0 ]]; then
    check_nodes --after-crash || true # Slurm may notice a lost node meanwhile, and interrupt
  fi
  [[ $STOP_REQUESTED -eq 0 ]] || options+=(--stop-requested)
  [[ $INTERRUPTED -eq 0 ]] || options+=(--interrupted)
  verdict=$(in_container "$PYTHON" -m slurm.attempts end "$JOB_FOLDER" "${JOB_RUNS[@]}" "${options[@]}") || status=$?
  say "$verdict"
  [[ $status -eq 75 ]] || exit "$status"
  # After its own TERM Slurm requeues the job by itself, unless the user cancelled it or the time was over.
  [[ $INTERRUPTED -eq 0 || $(job_field JobState) == TIMEOUT ]] || exit 143
  [[ $INTERRUPTED -ne 0 ]] || exclude=$(nodes_to_exclude) || true
  requeue ${exclude:+"ExcNodeList=$exclude"}
}
