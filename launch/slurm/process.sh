#!/usr/bin/env bash
# One process of a Slurm job: tells it which it is, keeps its exit code. Started by train.sbatch.
#
#   process.sh --per=node|gpu --exits=FOLDER -- COMMAND...
# shellcheck source=../common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

opt_per='' opt_exits=''
parse_options "$@"
require per exits
require_command
export DIFFJAX_PROCESS=$SLURM_PROCID DIFFJAX_PROCESSES=$SLURM_NTASKS PYTHONUNBUFFERED=1
[[ $opt_per != gpu ]] || export DIFFJAX_LOCAL_DEVICES=$SLURM_LOCALID
exec bash "$LAUNCH/task.sh" --exit="$opt_exits/$SLURM_PROCID" -- "${words[@]}"
