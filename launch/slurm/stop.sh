#!/usr/bin/env bash
# Stops a run under Slurm for good: its processes save and end with 75, and it is not requeued.
#
#   launch/slurm/stop.sh --job=1234 --workdir=/shared/runs/xxl
#
#   --job=N          Slurm's number
#   --workdir=PATH   of the run
#   --dry-run        print what would be run
# shellcheck source=../common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

opt_job='' opt_workdir='' opt_dry_run=no
parse_options "$@"
require job workdir
require_number job
workdir=$(workdir_of "--workdir=$opt_workdir")
run mkdir -p "$workdir.launch/$opt_job"
run touch "$workdir.launch/$opt_job/stop"
run scancel --signal=TERM "$opt_job"
