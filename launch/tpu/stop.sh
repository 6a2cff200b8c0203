#!/usr/bin/env bash
# Stops a run on a TPU: every process finishes its step, saves and ends with 75. The TPU stays.
#
#   launch/tpu/stop.sh --name=pod --zone=us-east5-a [--seconds=900]
#
#   --name, --zone, --project, --internal-ip   which TPU, and how ssh reaches it
#   --seconds=N   to wait before SIGKILL; three times what a save takes (900)
#   --dry-run     print what would be run
#
# Ends with the run's exit code: 75 is a stop that saved. A supervise.sh that watches the run ends
# too. The TPU costs money until launch/tpu/teardown.sh.
# shellcheck source=tpu.sh
. "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

opt_seconds=900
tpu_options "$@"
require_number seconds
find_workers
on_workers all stop "$opt_seconds"
! dry || exit 0
printf '%s' "$answers"
run_codes
if [[ $state == none ]]; then fail 0 "nothing has run on $opt_name"; fi
((code != 75)) || say "saved and stopped"
exit "$code"
