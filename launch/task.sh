#!/usr/bin/env bash
# Runs one process of a run: hands SIGTERM on to it, stamps its lines, records its exit code, ends
# the helpers that it left.
#
#   task.sh [--exit=FILE] [--log=FILE] [--starts=FOLDER --attempt=N] [--dry-run] -- COMMAND...
#
#   --exit     the code goes there once the process has ended
#   --log      its output is appended there, each line with the time before it
#   --starts   where the starts of a run that others restart (GKE) are recorded: the run ends with
#   --attempt  70 instead of starting where 5 restarts in a row committed nothing
#   --dry-run  print the command and do nothing
#
# The code is the command's own.
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

opt_exit='' opt_log='' opt_starts='' opt_attempt=0 opt_dry_run=no
parse_options "$@"
require_command
require_number attempt
if dry; then
  run "${words[@]}"
  exit
fi

stamped() {
  local line
  while IFS= read -r line || [[ $line ]]; do printf '%(%FT%TZ)T %s\n' -1 "$line"; done
}

stamper='' child='' forwarded='' code=0
if [[ $opt_log ]]; then
  exec > >(trap '' TERM && stamped >>"$opt_log") 2>&1
  stamper=$!
fi

if [[ $opt_starts ]]; then
  workdir=$(workdir_of "${words[@]}")
  [[ $workdir ]] || fail "$EXIT_USAGE" "--starts needs a command with --workdir"
  now=$(committed_step "$workdir")
  mkdir -p "$opt_starts"
  starts=()
  for ((number = 1; number < opt_attempt; number++)); do
    # Every process writes the same; one that never came leaves a gap, which counts as progress.
    start=-1
    [[ ! -s $opt_starts/$number ]] || start=$(<"$opt_starts/$number")
    starts+=("$start")
  done
  if ((opt_attempt)) && ! may_restart 75 "$now" ${starts[@]+"${starts[@]}"}; then
    exit "$EXIT_BUG"
  fi
  # In one piece: processes on other hosts may be writing the same.
  temporary=$(mktemp "$opt_starts/.XXXXXX")
  printf '%s\n' "$now" >"$temporary"
  mv -f "$temporary" "$opt_starts/$opt_attempt"
fi

forward() {
  forwarded=yes
  [[ ! $child ]] || kill -TERM "$child" 2>/dev/null || true
}
trap forward TERM

separately "${words[@]}"
[[ ! $forwarded ]] || forward # the signal came between the trap and the start
while :; do # a signal ends `wait` early
  forwarded='' code=0
  wait "$child" || code=$?
  [[ $forwarded ]] || break
done
if [[ $opt_exit ]]; then # before anything that may take its time
  printf '%s\n' "$code" >"$opt_exit.tmp"
  mv -f "$opt_exit.tmp" "$opt_exit"
fi
end_group "$child"
if [[ $stamper ]]; then
  exec >&- 2>&-
  drain "$stamper"
fi
exit "$code"
