#!/usr/bin/env bash
# Shows what a run on a TPU prints.
#
#   launch/tpu/logs.sh --name=pod --zone=us-east5-a [options]
#
#   --name, --zone, --project, --internal-ip   which TPU, and how ssh reaches it
#   --all           all workers, each line with [w3] before it; by default worker 0
#   --lines=N       the last lines to begin with (40)
#   --no-follow     these and no more
#   --first-error   the earliest error over all workers: what came after is its consequence
#   --dry-run       print what would be run
# shellcheck source=tpu.sh
. "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

opt_all=no opt_lines=40 opt_no_follow=no opt_first_error=no
tpu_options "$@"
require_number lines
if [[ $opt_first_error == yes ]]; then
  find_workers
  on_workers all first-error
  ! dry || exit 0
  # Every log line begins with its time, so the block whose first line sorts first is the cause.
  first=$(for ((number = 0; number < workers; number++)); do
    line=$(answer_of "$number" | sed -n 1p)
    [[ ! $line ]] || printf '%s %s\n' "$line" "[w$number]"
  done | sort -s -k1,1 | sed -n 1p)
  [[ $first ]] || fail 0 "no error in the logs of $opt_name"
  number=${first##*"[w"}
  answer_of "${number%]}" | sed "s/^/[w${number%]}] /"
  exit
fi
which=0 follow=(follow)
[[ $opt_all == no ]] || which=all
[[ $opt_no_follow == no ]] || follow=()
run gcloud compute tpus tpu-vm ssh "$opt_name" "${where[@]}" ${reach[@]+"${reach[@]}"} \
  --worker="$which" --quiet \
  --command="$(quoted bash "$worker_root/launch/worker.sh" log "$opt_lines" ${follow[@]+"${follow[@]}"})" |
  { if [[ $which == 0 ]] && ! dry; then sed -u '/^\[w0\] exit /d;s/^\[w0\] //'; else cat; fi; }
