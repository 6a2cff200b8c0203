#!/usr/bin/env bash
# Where a run on a TPU stands: the TPU, the processes, the last step, the end.
#
#   launch/tpu/status.sh --name=pod --zone=us-east5-a [--workdir=/mnt/runs/xxl]
#
#   --name, --zone, --project, --internal-ip   which TPU, and how ssh reaches it
#   --workdir=PATH   of the run; read here if this machine has it, else on worker 0
#   --dry-run        print what would be run
# shellcheck source=tpu.sh
. "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

opt_workdir=''
tpu_options "$@"
workdir=$(workdir_of "--workdir=$opt_workdir")
queue_state state ACTIVE
node=''
[[ $state != ACTIVE ]] || node_state node READY
dry || echo "tpu      $opt_name ${state:-is not there}${node:+, node $node}"
text=''
if [[ $workdir && -f $workdir/status.json ]]; then text=$(<"$workdir/status.json"); fi
if [[ $node == READY ]]; then
  find_workers
  worker_tries=2
  if on_workers all poll; then
    dry || for ((number = 0; number < workers; number++)); do
      echo "worker $number $(answer_of "$number" | sed 's/^run //')"
    done
  else
    say "the workers do not answer; launch/tpu/bootstrap.sh makes them ready"
  fi
  if [[ $workdir && ! $text ]] && on_workers 0 show "$workdir/status.json"; then
    text=$(answer_of 0)
  fi
fi
[[ ! $text ]] || show_status "$text"
