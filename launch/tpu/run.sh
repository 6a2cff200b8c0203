#!/usr/bin/env bash
# Starts a command on all workers of a TPU; it goes on when ssh, or this machine, goes away.
#
#   launch/tpu/run.sh --name=pod --zone=us-east5-a -- \
#     diffjax train --config=configs/instruct_flan2022.py:xxl --workdir=/mnt/runs/flan2022_xxl
#
#   --name, --zone, --project, --internal-ip   which TPU, and how ssh reaches it
#   --env=NAME=VALUE   for the command; may be repeated
#   --port=N           of the coordinator, worker 0 (8476)
#   --dry-run          print what would be run
#
# Every worker keeps the log, the pid and the exit code in diffjax-run/HOSTNAME. A second run is
# refused while one goes on. Stop it with launch/tpu/stop.sh.
# shellcheck source=tpu.sh
. "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

opt_env=() opt_port=8476 opt_worker=''
tpu_options "$@"
require_number port
[[ ! $opt_worker ]] ||
  fail "$EXIT_USAGE" "--worker: a run is on all workers or none; one alone would wait for the others"
require_command
workdir=$(workdir_of "${words[@]}")
[[ ! $workdir || $workdir == /* ]] ||
  fail "$EXIT_USAGE" "--workdir=$(quoted "$workdir"): give the whole path, from /; workers run elsewhere"
attempt=ATTEMPT
dry || attempt=$(date -u +%Y%m%dT%H%M%SZ)-$$
find_workers
code=0
on_workers all start "$attempt" "$workers" "$first_address:$opt_port" \
  ${opt_env[@]+"${opt_env[@]}"} -- "${words[@]}" || code=$?
if ((code)); then
  printf '%s' "$answers" >&2
  ((code != EXIT_USAGE)) || fail "$code" "refused, for the reason above"
  fail "$code" "not started everywhere; launch/tpu/stop.sh stops what was"
fi
dry || say "started as $attempt on $workers workers; launch/tpu/logs.sh follows it"
