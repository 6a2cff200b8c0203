#!/usr/bin/env bash
# What happens on one host of a run. The launchers call it through ssh, on all hosts at once.
#
#   worker.sh install SHA EXTRAS              unpack ../source.tgz, make ../venv, install into it
#   worker.sh check WORKDIR TOKEN N HOST:PORT [NAME=VALUE...]     the self-test, one line of facts
#   worker.sh sweep WORKDIR TOKEN             how many hosts' probes are beside WORKDIR; removes them
#   worker.sh start ATTEMPT N HOST:PORT [NAME=VALUE...] -- COMMAND...    start it, outlive the ssh
#   worker.sh poll [WORKDIR]                  none, running, exit CODE or lost; the committed step
#   worker.sh stop SECONDS                    SIGTERM, so many seconds, SIGKILL
#   worker.sh log LINES [follow]              the last lines of its log
#   worker.sh first-error                     the first error in its log, with its time
#   worker.sh show FILE                       a file, if it is there
#
# Every line of output begins with the worker's number, [w3], and the last one is [w3] exit CODE.
# The number is DIFFJAX_WORKER, else the host's name tells it (TPU VMs are called ...-w-3).
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

root=$(dirname "$LAUNCH")
source=$root
[[ ! -d $root/source ]] || source=$root/source
state=$HOME/diffjax-run/$(hostname)

worker_number() {
  local name metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes
  name=$(hostname)
  if [[ ${DIFFJAX_WORKER-} ]]; then
    printf '%s' "$DIFFJAX_WORKER"
  elif [[ $name =~ -w-([0-9]+)$ ]]; then
    printf '%s' "${BASH_REMATCH[1]}"
  else
    curl --silent --fail --max-time 5 --header 'Metadata-Flavor: Google' \
      "$metadata/agent-worker-number"
  fi
}

# One line about the current attempt: ATTEMPT none|running PID|exit CODE|lost, and `stopped`.
poll() {
  local attempt pid code line
  if [[ ! -f $state/attempt ]]; then
    echo 'run - none'
    return
  fi
  attempt=$(<"$state/attempt")
  pid=$(cat "$state/pid" 2>/dev/null || true)
  if [[ -f $state/exit ]]; then
    code=$(<"$state/exit")
    line="exit $code"
  elif [[ $pid ]] && ours "$pid"; then
    line="running $pid"
  elif [[ -f $state/exit ]]; then # it ended between the two looks
    code=$(<"$state/exit")
    line="exit $code"
  else
    line=lost # killed with all its parents, or the host went down
  fi
  [[ ! -f $state/stopped ]] || line+=' stopped'
  echo "run $attempt $line"
}

# Whether a process is the one that was started: pids are used again after a restart of the host.
ours() {
  kill -0 "$1" 2>/dev/null &&
    tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null | grep -qF -- "--exit=$state/exit"
}

running() { [[ $(poll) == *' running '* ]]; }

find_python() {
  local name
  for name in python3.12 python3.13 python3.11; do
    ! command -v "$name" >/dev/null || { printf '%s' "$name" && return; }
  done
}

install() { # SHA EXTRAS
  local python log=$root/install.log
  ! running || fail "$EXIT_USAGE" "a run is going on here; stop it before another version is installed"
  if [[ ! -f $root/installed ]]; then
    rm -rf "$root/source.new"
    mkdir -p "$root/source.new"
    tar -xzf "$root/source.tgz" -C "$root/source.new"
    rm -rf "$root/source"
    mv "$root/source.new" "$root/source"
    source=$root/source
    python=$(find_python)
    if [[ $python ]]; then
      retry 2 "$python" -m venv "$root/venv" >"$log" 2>&1 || explain "$log"
    else # the images of older TPU generations have Python 3.10
      retry 3 python3 -m pip install --user --upgrade uv >"$log" 2>&1 || explain "$log"
      retry 3 python3 -m uv venv --seed --python 3.12 "$root/venv" >>"$log" 2>&1 || explain "$log"
    fi
    retry 3 "$root/venv/bin/pip" install --quiet -e "$source$2" >>"$log" 2>&1 || explain "$log"
    printf '%s\n' "$1" >"$root/installed"
  fi
  ln -sfn "$root" "$HOME/diffjax-current"
  echo "installed $1"
}

explain() {
  tail -n 20 "$1"
  fail "$EXIT_DEVICE" "the installation failed; $(hostname):$1 has it all"
}

environment() { # N HOST:PORT [NAME=VALUE...]: what the processes find each other by, and the user's
  local setting
  export DIFFJAX_PROCESSES=$1 DIFFJAX_COORDINATOR=$2 DIFFJAX_PROCESS=$number PYTHONUNBUFFERED=1
  shift 2
  if [[ -d $root/venv ]]; then export PATH=$root/venv/bin:$PATH; fi
  for setting in "$@"; do
    [[ $setting =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] ||
      fail "$EXIT_USAGE" "$(quoted "$setting") is not NAME=VALUE"
    export "${setting?}"
  done
}

check() { # WORKDIR TOKEN N HOST:PORT [NAME=VALUE...]
  local workdir=$1 token=$2 folder facts free probe=failed
  shift 2
  environment "$@"
  ! running || fail "$EXIT_USAGE" "a run is going on here; the devices are taken"
  folder=$(dirname "$workdir")
  # Beside the workdir, never in it: a first run wants it empty.
  if mkdir -p "$folder" && printf '%s' "$number" >"$folder/.diffjax-probe-$token-$number" &&
    [[ $(<"$folder/.diffjax-probe-$token-$number") == "$number" ]]; then
    probe=ok
  fi
  free=$(df -Pk "$HOME" | awk 'END { printf "%d", $4 / 1048576 }')
  cd "$source"
  # All hosts at once: on a pod no host sees its devices before all others are there.
  facts=$(timeout 300 python -c '
import time
from importlib import metadata
version = metadata.version("jax")
from diffjax import hosts
hosts.start()
import jax
devices = jax.device_count()  # all processes have met here: their clocks are read at one moment
print(
  f"clock={time.time():.1f}", f"jax={version}", f"devices={devices}", f"here={jax.local_device_count()}",
  f"platform={jax.devices()[0].platform}", f"process={jax.process_index()}",
)' 2>"$state.check" | tail -n 1) || { tail -n 3 "$state.check" && facts='clock=0 jax=? devices=0 here=0 platform=? process=?'; }
  echo "facts sha=$(cat "$root/installed" 2>/dev/null || echo -) workdir=$probe free=${free} $facts"
}

sweep() { # WORKDIR TOKEN
  local folder found
  folder=$(dirname "$1")
  found=("$folder/.diffjax-probe-$2-"*)
  echo "probes ${#found[@]}"
  rm -f "${found[@]}"
}

clear_lock() { # the file that libtpu leaves when it is killed; never one that somebody holds
  local lock=${LIBTPU_LOCKFILE:-/tmp/libtpu_lockfile}
  [[ -e $lock ]] || return 0
  if [[ ! -O $lock ]]; then
    say "$lock belongs to another user; if TPU start fails, remove it"
  elif [[ $(find /proc/[0-9]*/fd -lname "$lock" -print -quit 2>/dev/null || true) ]]; then
    say "$lock is held by a live process; if TPU start fails, end that process"
  else
    rm -f "$lock"
    say "removed $lock, which nobody held"
  fi
}

start() { # ATTEMPT N HOST:PORT [NAME=VALUE...] -- COMMAND...
  local attempt=$1 log before settings=()
  shift
  while [[ $1 != -- ]]; do
    settings+=("$1")
    shift
  done
  shift
  mkdir -p "$state"
  before=$(poll)
  if [[ $before == "run $attempt "* ]]; then # the answer of an earlier try was lost on its way
    echo "$before"
    return
  fi
  [[ $before != *' running '* ]] ||
    fail "$EXIT_USAGE" "a run is going on here ($before); stop it first"
  environment "${settings[@]}"
  clear_lock
  log=$state/$attempt.log
  rm -f "$state/exit" "$state/stopped" "$state/pid"
  {
    echo "sha $(cat "$root/installed" 2>/dev/null || git -C "$source" rev-parse HEAD 2>/dev/null || echo unknown)"
    echo "process $number"
    printf 'setting %q\n' "${settings[@]}"
    echo "command $(quoted "$@")"
  } >"$state/$attempt.start"
  ln -sfn "$log" "$state/log"
  touch "$log"
  cd "$source"
  # A session of its own: it outlives the ssh connection, and can be killed as a whole.
  setsid nohup bash "$LAUNCH/task.sh" --exit="$state/exit" --log="$log" -- "$@" \
    </dev/null >/dev/null 2>&1 &
  echo "$!" >"$state/pid"
  echo "$attempt" >"$state/attempt" # last: from here on there is a run
  poll
}

stop() { # SECONDS
  local pid waited
  if running; then
    pid=$(<"$state/pid")
    touch "$state/stopped"
    kill -TERM "$pid" 2>/dev/null || true
    for ((waited = 0; waited < 2 * $1; waited++)); do
      ours "$pid" || break
      sleep 0.5
    done
    if running; then
      say "still running $1 s after SIGTERM: killed"
      pkill -KILL --session "$pid" || true
      echo 137 >"$state/exit"
    fi
  elif [[ -d $state ]]; then
    touch "$state/stopped"
  fi
  poll
}

log() { # LINES [follow]
  if [[ ! -e $state/log ]]; then
    echo 'no log yet'
  elif [[ ${2-} == follow ]]; then
    tail -n "$1" --pid="$(cat "$state/pid")" -F "$state/log" 2>/dev/null
  else
    tail -n "$1" "$state/log"
  fi
}

first_error() {
  local found
  [[ -e $state/log ]] || return 0
  found=$(grep -nm 1 -E \
    'Traceback \(most recent|Z diffjax: |Fatal Python error|Check fail|RESOURCE_EXHAUSTED|Segmentation fault|FATAL' \
    "$state/log" || true)
  [[ ! $found ]] || sed -n "${found%%:*},+39p" "$state/log"
}

show() { [[ ! -f $1 ]] || cat "$1"; }

act() { # ACTION ARGUMENTS...
  local action=$1
  shift
  case $action in
    install) install "$@" ;;
    check) check "$@" ;;
    sweep) sweep "$@" ;;
    start) start "$@" ;;
    poll)
      poll
      [[ ! ${1-} ]] || echo "committed $(committed_step "$1")"
      ;;
    stop) stop "$@" ;;
    log) log "$@" ;;
    first-error) first_error ;;
    show) show "$1" ;;
    *) fail "$EXIT_USAGE" "no action $(quoted "$action"); worker.sh --help tells them" ;;
  esac
}

case ${1-} in
  '' | --help | -h)
    usage
    exit
    ;;
esac
number=$(worker_number) ||
  fail "$EXIT_DEVICE" "cannot tell which worker $(hostname) is; set DIFFJAX_WORKER"
mkdir -p "$(dirname "$state")"
code=0
(act "$@") 2>&1 | sed -u "s/^/[w$number] /" || code=${PIPESTATUS[0]}
echo "[w$number] exit $code"
exit "$code"
