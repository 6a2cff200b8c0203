# shellcheck shell=bash disable=SC2034
# What all launchers share: strict mode, options, dry runs, retries, exit codes, the restart rule.
# Sourced, never run. Wants bash 4.4 or newer.

set -euo pipefail
shopt -s inherit_errexit

LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

# The exit codes of the trainer and of the launchers (python -m diffjax.exits prints the table).
EXIT_USAGE=64 EXIT_INPUT=66 EXIT_DEVICE=69 EXIT_BUG=70
# A start from the newest checkpoint may do better after these; after any other code, known or not,
# it would end the same way.
RESTARTABLE=(69 75 124 134 137 139 143)
# Which code of several processes tells most: causes first, then what others did because of them.
TELLING=(76 66 65 64 74 73 70 130 124 75 69 139 134 137 143)
STALE_RESTARTS=5 # so many restarts in a row without a new committed step, then no more

say() { printf '%s %s: %s\n' "$(date -u +%FT%TZ)" "${0##*/}" "$*" >&2; }

fail() { # CODE MESSAGE...
  local code=$1
  shift
  say "$*"
  exit "$code"
}

# Words as a shell reads them back: what goes through ssh, and what a dry run prints.
quoted() {
  local words
  printf -v words '%q ' "$@"
  printf '%s' "${words% }"
}

# The comment at the head of the script.
usage() { sed -n '2,${/^# shellcheck/d;/^#/!q;s/^# \{0,1\}//p}' "$0"; }

# Reads --name=value, --name value and flags into opt_name, which the caller has declared: an empty
# or other default takes a value, `no` makes a flag, an array collects. What follows `--` goes to
# `words`.
parse_options() {
  words=()
  local name value variable kind
  while (($#)); do
    case $1 in
      --help | -h)
        usage
        exit 0
        ;;
      --)
        shift
        words=("$@")
        return
        ;;
      --*) ;;
      *) fail "$EXIT_USAGE" "$(quoted "$1") is no option; options are --name=value, a command follows --" ;;
    esac
    name=${1#--} value=''
    variable=opt_${name%%=*}
    variable=${variable//-/_}
    if ! [[ $variable =~ ^[a-z0-9_]+$ ]] || ! declare -p "$variable" >/dev/null 2>&1; then
      fail "$EXIT_USAGE" "no option --${name%%=*}; ${0##*/} --help tells the options"
    fi
    kind=$(declare -p "$variable")
    if [[ $kind != 'declare -a'* && ${!variable} =~ ^(yes|no)$ ]]; then
      [[ $name != *=* ]] || fail "$EXIT_USAGE" "--${name%%=*} takes no value"
      printf -v "$variable" yes
      shift
      continue
    fi
    if [[ $name == *=* ]]; then
      value=${name#*=}
    else
      (($# > 1)) || fail "$EXIT_USAGE" "--$name needs a value"
      shift
      value=$1
    fi
    if [[ $kind == 'declare -a'* ]]; then
      local -n collected=$variable
      collected+=("$value")
      unset -n collected
    else
      printf -v "$variable" '%s' "$value"
    fi
    shift
  done
}

require() { # OPTION...
  local name variable
  for name in "$@"; do
    variable=opt_${name//-/_}
    [[ ${!variable} ]] || fail "$EXIT_USAGE" "give --$name; ${0##*/} --help tells the options"
  done
}

require_number() { # OPTION...
  local name variable
  for name in "$@"; do
    variable=opt_${name//-/_}
    [[ ${!variable} =~ ^[0-9]+$ ]] ||
      fail "$EXIT_USAGE" "--$name=$(quoted "${!variable}") is no number; give a whole one"
  done
}

require_command() {
  ((${#words[@]})) ||
    fail "$EXIT_USAGE" "give the command after --, as in: ${0##*/} ... -- diffjax train --config=... --workdir=..."
}

# The --workdir of the command after `--`; empty where it has none.
workdir_of() {
  local word previous='' found=''
  for word in "$@"; do
    [[ $word != --workdir=* ]] || found=${word#--workdir=}
    [[ $previous != --workdir ]] || found=$word
    previous=$word
  done
  [[ $found != *://* ]] ||
    fail "$EXIT_USAGE" "--workdir=$found: mount the bucket (gcsfuse) or use NFS, Filestore or Lustre, and give that path"
  printf '%s' "${found%/}"
}

dry() { [[ ${opt_dry_run:-no} == yes ]]; }

# Runs a command; in a dry run prints it, one argv a line, and does nothing.
run() {
  if dry; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# ask VARIABLE ASSUMED COMMAND...: its output; in a dry run prints the command and takes ASSUMED.
ask() {
  local -n answer=$1
  local assumed=$2
  shift 2
  if dry; then
    run "$@"
    answer=$assumed
  else
    answer=$("$@")
  fi
}

# The pause before retry number N: doubles up to 5 minutes, with jitter, so that many do not
# return at once. LAUNCH_PAUSE is the first one, in seconds.
pause() {
  local seconds=$((${LAUNCH_PAUSE:-5} * (1 << ($1 < 7 ? $1 : 7))))
  ((seconds < 300)) || seconds=300
  seconds=$((seconds * (50 + RANDOM % 101)))
  dry || sleep "$((seconds / 100)).$(printf '%02d' $((seconds % 100)))"
}

retry() { # TIMES COMMAND...; a mistake (64) is not tried again
  local times=$1 try code
  shift
  for ((try = 0; ; try++)); do
    code=0
    "$@" || code=$?
    ((code)) || return 0
    ((try + 1 < times && code != EXIT_USAGE)) || return "$code"
    say "failed with $code, try $((try + 2)) of $times follows: $(quoted "${@:1:3}")"
    pause "$try"
  done
}

among() { # WORD WORDS...
  local one=$1 other
  shift
  for other in "$@"; do [[ $one != "$other" ]] || return 0; done
  return 1
}

# The most telling of the exit codes of a run's processes.
most_telling() {
  local code known
  for code in "$@"; do # a code of no table is a cause that nobody foresaw
    ((code == 0)) || among "$code" "${TELLING[@]}" || { printf '%s' "$code" && return; }
  done
  for known in "${TELLING[@]}"; do
    ! among "$known" "$@" || { printf '%s' "$known" && return; }
  done
  printf 0
}

# separately COMMAND...: starts it, as `child`, in a process group of its own. So a signal to the
# launcher's group (Ctrl-C, Slurm) reaches it once, from the launcher; end_group finds its helpers.
separately() {
  set -m
  "$@" </dev/null &
  child=$!
  set +m
}

# What a process that is gone has left: the reader processes of a killed trainer go on otherwise.
end_group() { kill -KILL -- "-$1" 2>/dev/null || true; }

# Waits for those who copy output, but not for ever: who left the group may still hold their pipe.
drain() { # PIDS...
  local pid tries=50
  for pid in "$@"; do
    while ((tries)) && kill -0 "$pid" 2>/dev/null; do
      sleep 0.1 || true
      tries=$((tries - 1))
    done
    kill "$pid" 2>/dev/null || true
  done
}

# A field of a flat JSON object.
json_field() { # NAME TEXT
  local pattern="\"$1\": *(\"([^\"]*)\"|[^,}\"]*)"
  [[ $2 =~ $pattern ]] || return 0
  printf '%s' "${BASH_REMATCH[2]:-${BASH_REMATCH[1]//\"/}}"
}

# The newest step that a workdir has committed; 0 where there is none. A checkpoint's folder gets
# its number when it is complete.
committed_step() { # WORKDIR
  local newest=0 step folder
  if [[ -f $1/status.json ]]; then
    step=$(json_field last_checkpoint "$(<"$1/status.json")")
    [[ ! $step =~ ^[0-9]+$ ]] || newest=$step
  fi
  for folder in "$1"/checkpoints/*; do
    step=${folder##*/}
    [[ ! $step =~ ^[0-9]+$ ]] || ((10#$step <= newest)) || newest=$((10#$step))
  done
  printf '%s' "$newest"
}

# The restart rule: may_restart CODE COMMITTED STARTS...
# COMMITTED is the newest committed step now, STARTS what it was when each restart so far began.
# Says why not.
may_restart() {
  local code=$1 committed=$2
  shift 2
  if ((code == 0)); then
    return 1
  elif ! among "$code" "${RESTARTABLE[@]}"; then
    say "ended with $code, which a restart does not help; see the log, then python -m diffjax.exits"
    return 1
  elif (($# >= STALE_RESTARTS)) && ((${*:$#-STALE_RESTARTS+1:1} >= committed)); then
    say "ended with $code, and $STALE_RESTARTS restarts in a row committed nothing beyond step $committed; see the log, then start again"
    return 1
  fi
}

# supervise ATTEMPT COMMITTED: runs ATTEMPT NUMBER until the rule says no. ATTEMPT sets `code`, and
# `stopped` to yes where somebody asked for the end; COMMITTED sets `step`. Returns the last code.
supervise() {
  local attempt=$1 committed=$2 number=0 starts=()
  while :; do
    code=$EXIT_BUG stopped=no step=0
    "$attempt" "$number"
    if [[ $stopped == yes ]]; then
      say "stopped on demand, with $code"
      return "$code"
    fi
    ((code == 0)) || "$committed"
    may_restart "$code" "$step" ${starts[@]+"${starts[@]}"} || return "$code"
    starts+=("$step")
    ((${#starts[@]} <= STALE_RESTARTS)) || starts=("${starts[@]:1}")
    number=$((number + 1))
    say "restart $number after code $code; the newest committed step seen is $step"
    pause "$(stale "$step" "${starts[@]}")"
  done
}

# How many of the restarts so far began at the step that is committed now: the longer, the more.
stale() { # STEP STARTS...
  local now=$1 start count=0
  shift
  for start in "$@"; do ((start < now)) || count=$((count + 1)); done
  printf '%s' $((count - 1))
}

# A run's status.json in words.
show_status() { # TEXT
  local name value
  for name in step steps step_seconds eta_seconds last_checkpoint restarts exit reason; do
    value=$(json_field "$name" "$1")
    printf '%-15s %s\n' "$name" "${value:-null}"
  done
  value=$(json_field time "$1")
  [[ ! ${value%%.*} =~ ^[0-9]+$ ]] || printf '%-15s %s s ago\n' written "$(($(date +%s) - ${value%%.*}))"
}
