#!/usr/bin/env bash
# Runs a command as several processes of one run on this machine, as a cluster would.
#
#   launch/local/processes.sh --processes=2 -- \
#     diffjax train --config=configs/quickstart_instruct.py --workdir=runs/two
#
#   --processes=N       how many are started here
#   --devices=N         CPU devices of each (JAX_NUM_CPU_DEVICES); without it JAX decides
#   --one-device-each   process k sees device k alone: one process per GPU
#   --heartbeat=N       seconds after which a silent process counts as dead (100)
#   --grace=N           seconds the others get when one has failed, before they are killed (130)
#   --supervise         restart where a restart helps, as launch/tpu/supervise.sh does
#   --first=N --total=N --coordinator=HOST:PORT    this machine's part of a larger run
#   --dry-run           print what would be run
#
# Lines are prefixed with [p0], [p1], ... SIGTERM and SIGINT go on to all as SIGTERM: they save and
# end with 75. Ends with the most telling of their exit codes.
# shellcheck source=../common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

opt_processes='' opt_devices='' opt_one_device_each=no opt_heartbeat=100 opt_grace=130
opt_supervise=no opt_first=0 opt_total='' opt_coordinator='' opt_dry_run=no
parse_options "$@"
require processes
: "${opt_total:=$opt_processes}"
require_number processes heartbeat grace first total
((opt_processes > 0)) || fail "$EXIT_USAGE" "--processes=$opt_processes: at least 1"
require_command
[[ ! $opt_devices ]] || require_number devices
workdir=$(workdir_of "${words[@]}")
[[ $workdir || $opt_supervise == no ]] ||
  fail "$EXIT_USAGE" "--supervise: give the command a --workdir; restarts go on from what is there"

free_port() { # outside the range from which systems give ports to clients
  local port try
  for ((try = 0; try < 50; try++)); do
    port=$((20000 + RANDOM % 10000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  printf '%s' "$port"
}

asked='' pids=() printers=()

signal_all() { # SIGNAL
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do kill "-$1" "$pid" 2>/dev/null || true; done
}

# shellcheck disable=SC2329  # the trap calls it
stop_all() {
  asked=yes
  signal_all TERM
}
trap stop_all TERM INT

# One attempt: starts all, waits for all, sets `code`.
processes() {
  local coordinator=$opt_coordinator number rank settings out child codes=() failed=0 since=0
  if [[ ! $coordinator ]]; then
    if dry; then coordinator=127.0.0.1:PORT; else coordinator=127.0.0.1:$(free_port); fi
  fi
  pids=() printers=()
  for ((number = 0; number < opt_processes; number++)); do
    rank=$((opt_first + number))
    settings=("DIFFJAX_COORDINATOR=$coordinator" "DIFFJAX_PROCESSES=$opt_total"
      "DIFFJAX_PROCESS=$rank" "DIFFJAX_HEARTBEAT=$opt_heartbeat" PYTHONUNBUFFERED=1)
    [[ ! $opt_devices ]] || settings+=("JAX_NUM_CPU_DEVICES=$opt_devices")
    [[ $opt_one_device_each == no ]] || settings+=("DIFFJAX_LOCAL_DEVICES=$number")
    if dry; then
      run env "${settings[@]}" "${words[@]}"
      continue
    fi
    exec {out}> >(trap '' INT TERM && exec sed -u "s/^/[p$rank] /")
    printers+=("$!")
    separately env "${settings[@]}" "${words[@]}" >&"$out" 2>&1
    pids+=("$child")
    exec {out}>&-
  done
  if dry; then
    code=0
    return
  fi
  [[ ! $asked ]] || signal_all TERM # it came before they were all there
  while ((${#pids[@]})); do
    for number in "${!pids[@]}"; do
      child=${pids[number]} code=0
      ! kill -0 "$child" 2>/dev/null || continue
      wait "$child" || code=$?
      end_group "$child"
      unset "pids[number]"
      codes+=("$code")
      if ((code && !failed)); then failed=1 since=$SECONDS; fi
      ((code == 0)) || say "process $((opt_first + number)) ended with $code"
    done
    if ((failed == 1 && SECONDS - since > opt_grace)); then
      say "the others still run $opt_grace s after it: SIGTERM"
      signal_all TERM
      failed=2 since=$SECONDS
    elif ((failed == 2 && SECONDS - since > 15)); then
      signal_all KILL
      failed=3
    fi
    sleep 0.1 || true # Ctrl-C ends it
  done
  drain "${printers[@]}"
  code=$(most_telling "${codes[@]}")
}

# shellcheck disable=SC2329  # called by supervise
attempt() {
  processes
  # shellcheck disable=SC2034  # read by supervise
  stopped=${asked:-no}
}
# shellcheck disable=SC2329
committed() { step=$(committed_step "$workdir"); }

code=0
if [[ $opt_supervise == yes ]] && ! dry; then
  supervise attempt committed || code=$?
else
  processes
fi
exit "$code"
