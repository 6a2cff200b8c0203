#!/usr/bin/env bash
# Submits a run to Slurm, where it restarts itself until it is done.
#
#   launch/slurm/submit.sh --nodes=4 --gpus=8 --per=gpu --time=24:00:00 -- \
#     diffjax train --config=configs/instruct_flan2022.py:xxl --workdir=/shared/runs/flan2022_xxl
#
#   --nodes=N        machines
#   --gpus=N         of each; 0 for CPU runs
#   --per=node|gpu   one process for all GPUs of a node, or one for each
#   --time=LIMIT     of one part of the run; it goes on in the next
#   --partition=NAME, --account=NAME, --cpus=N (per process)
#   --dry-run        print what would be run
#
# The checkout, its Python environment (activate it first) and the workdir lie on file systems that
# all nodes see. Stop a run with launch/slurm/stop.sh JOB.
# shellcheck source=../common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

opt_nodes='' opt_gpus='' opt_per='' opt_time='' opt_partition='' opt_account='' opt_cpus=''
opt_dry_run=no
parse_options "$@"
require nodes gpus per
require_number nodes gpus
require_command
tasks=1
case $opt_per in
  node) ;;
  gpu) tasks=$opt_gpus ;;
  *) fail "$EXIT_USAGE" "--per=$(quoted "$opt_per"): node or gpu; JAX cannot tell by itself" ;;
esac
((tasks > 0)) || fail "$EXIT_USAGE" "--per=gpu needs --gpus"
workdir=$(workdir_of "${words[@]}")
[[ $workdir == /* ]] ||
  fail "$EXIT_USAGE" "--workdir=$(quoted "$workdir"): give the command a workdir with its whole path, from /"
argv=(sbatch "--nodes=$opt_nodes" "--ntasks-per-node=$tasks")
((opt_gpus == 0)) || argv+=("--gpus-per-node=$opt_gpus")
[[ ! $opt_time ]] || argv+=("--time=$opt_time")
[[ ! $opt_partition ]] || argv+=("--partition=$opt_partition")
[[ ! $opt_account ]] || argv+=("--account=$opt_account")
[[ ! $opt_cpus ]] || argv+=("--cpus-per-task=$opt_cpus")
argv+=("$LAUNCH/slurm/train.sbatch" "--launch=$LAUNCH" "--per=$opt_per" -- "${words[@]}")
run "${argv[@]}"
