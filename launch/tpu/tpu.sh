# shellcheck shell=bash disable=SC2034
# What the scripts of this folder share: which TPU is meant, gcloud, and commands on its workers.
# shellcheck source=../common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

opt_name='' opt_zone='' opt_project='' opt_internal_ip=no opt_dry_run=no
workers=0 first_address='' answers='' worker_tries=5
worker_root=diffjax-current # in the home of every worker

accelerator_facts() { # TYPE: sets chips, devices, runtime
  local size=${1##*-}
  [[ $size =~ ^[1-9][0-9]*$ ]] ||
    fail "$EXIT_USAGE" "--accelerator=$(quoted "$1") has no size; as in v4-32, v5litepod-16, v5p-128, v6e-8"
  case $1 in # v2, v3, v4 and v5p are counted in cores, two a chip; megacore chips are one device
    v2-* | v3-*) chips=$((size / 2)) devices=$size runtime=tpu-ubuntu2204-base ;;
    v4-*) chips=$((size / 2)) devices=$chips runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) chips=$size devices=$size runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) chips=$((size / 2)) devices=$chips runtime=v2-alpha-tpuv5 ;;
    v6e-*) chips=$size devices=$size runtime=v2-alpha-tpuv6e ;;
    v5e-*) fail "$EXIT_USAGE" "--accelerator=$1: gcloud calls it v5litepod-$size" ;;
    *) fail "$EXIT_USAGE" "--accelerator=$(quoted "$1") is no TPU VM type; v2 to v6e are, TPU7x and later run on GKE (launch/gke)" ;;
  esac
}

tpu_options() { # the arguments of a script
  parse_options "$@"
  require name zone
  [[ $opt_name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    fail "$EXIT_USAGE" "--name=$(quoted "$opt_name"): small letters, digits and hyphens, a letter first"
  where=("--zone=$opt_zone")
  [[ ! $opt_project ]] || where+=("--project=$opt_project")
  reach=()
  [[ $opt_internal_ip == no ]] || reach=(--internal-ip)
}

# gcloud's complaint, turned into the exit code that says whether to try again.
gcloud_trouble() { # OUTPUT
  case $1 in
    *PERMISSION_DENIED* | *'does not have permission'* | *'required permission'* | *UNAUTHENTICATED*)
      fail "$EXIT_USAGE" "gcloud: $(last_line "$1"); log in, or ask for the role TPU Admin"
      ;;
    *INVALID_ARGUMENT* | *'unrecognized arguments'* | *'Invalid choice'*)
      fail "$EXIT_USAGE" "gcloud: $(last_line "$1")"
      ;;
    *RESOURCE_EXHAUSTED* | *[Qq]uota*)
      fail "$EXIT_DEVICE" "gcloud: $(last_line "$1"); delete what holds the quota (gcloud compute tpus queued-resources list), or ask for more"
      ;;
    *) fail "$EXIT_DEVICE" "gcloud: $(last_line "$1")" ;;
  esac
}

last_line() {
  local line=${1##*$'\n'}
  printf '%s' "${line:-$1}"
}

# described FORMAT KIND: a field of the queued resource or of its node; empty where it is not there.
described() {
  local output complaint file code=0
  file=$(mktemp) # warnings are no part of the value
  output=$(gcloud compute tpus "$2" describe "$opt_name" "${where[@]}" --format="$1" --quiet 2>"$file") ||
    code=$?
  complaint=$(<"$file")
  rm -f "$file"
  if ((code == 0)); then
    printf '%s' "$output"
  elif [[ $complaint != *NOT_FOUND* && $complaint != *'not found'* ]]; then
    say "gcloud: $(last_line "$complaint")"
    [[ $complaint != *PERMISSION_DENIED* ]] || return "$EXIT_USAGE"
    return "$EXIT_DEVICE"
  fi
}

describe() { # VARIABLE ASSUMED FORMAT KIND
  local -n said=$1
  if dry; then
    run gcloud compute tpus "$4" describe "$opt_name" "${where[@]}" --format="$3" --quiet
    said=$2
  else
    said=$(retry 4 described "$3" "$4") || return $?
  fi
}

# Of a node READY is the one good state, of a queued resource ACTIVE; nothing: there is none.
queue_state() { describe "$1" "$2" 'value(state.state)' queued-resources; }
node_state() { describe "$1" "$2" 'value(state)' tpu-vm; }

# Sets workers, their number, and first_address, worker 0's.
find_workers() {
  local addresses list=()
  describe addresses '10.0.0.1;10.0.0.2' 'value(networkEndpoints[].ipAddress)' tpu-vm || return $?
  if [[ ! $addresses ]]; then
    say "TPU $opt_name has no workers; launch/tpu/queue.sh makes one"
    return "$EXIT_DEVICE"
  fi
  IFS=';' read -ra list <<<"$addresses"
  workers=${#list[@]} first_address=${list[0]}
}

# on_workers LIST WORDS...: worker.sh WORDS on all of them, or on a comma-separated list. The lines
# they said are in `answers`. Workers that cannot be reached are tried again, alone; the most
# telling of the exit codes is returned.
on_workers() {
  local asked=$1 list remote missing=() output number codes=() try
  shift
  remote=$(quoted bash "$worker_root/launch/worker.sh" "$@")
  answers=''
  if dry; then
    run gcloud compute tpus tpu-vm ssh "$opt_name" "${where[@]}" ${reach[@]+"${reach[@]}"} \
      --worker="$asked" --command="$remote" --quiet
    return
  fi
  if [[ $asked == all ]]; then
    for ((number = 0; number < workers; number++)); do missing+=("$number"); done
  else
    IFS=',' read -ra missing <<<"$asked"
  fi
  list=$asked
  for ((try = 0; try < worker_tries; try++)); do
    if ((try)); then
      list=$(IFS=',' && echo "${missing[*]}")
      say "no answer from worker $list of $opt_name, try $((try + 1)) of $worker_tries follows"
      pause "$try"
    fi
    output=$(gcloud compute tpus tpu-vm ssh "$opt_name" "${where[@]}" ${reach[@]+"${reach[@]}"} \
      --worker="$list" --command="$remote" --quiet 2> >(complain_aloud)) || true
    local still=()
    for number in "${missing[@]}"; do
      if [[ $'\n'$output =~ $'\n'"[w$number] exit "([0-9]+) ]]; then
        codes+=("${BASH_REMATCH[1]}")
        answers+=$(grep -F "[w$number] " <<<"$output" | grep -vF "[w$number] exit ")$'\n' || true
      else
        still+=("$number")
      fi
    done
    missing=(${still[@]+"${still[@]}"})
    ((${#missing[@]})) || return "$(most_telling "${codes[@]}")"
  done
  ((worker_tries > 1)) || return "$EXIT_DEVICE"
  say "worker $(IFS=',' && echo "${missing[*]}") of $opt_name cannot be reached; gcloud said above why"
  return "$EXIT_DEVICE"
}

complain_aloud() { sed -u '/Attempting to connect/d;/^$/d;s/^/gcloud: /' >&2; }

# What worker N said, without its prefix.
answer_of() { sed -n "s/^\[w$1\] //p" <<<"$answers"; }

# Whether launch/tpu/queue.sh made it: nothing else is ever deleted.
made_here() {
  local owner=''
  describe owner diffjax 'value(tpu.nodeSpec[0].node.labels.made_by)' queued-resources || return $?
  if [[ $owner != diffjax ]]; then
    say "$opt_name was not made by launch/tpu/queue.sh; delete it with gcloud compute tpus queued-resources delete $opt_name --zone=$opt_zone --force"
    return "$EXIT_USAGE"
  fi
}

# Deletes the queued resource with its node, and waits until it is gone.
delete_tpu() {
  local state tries
  made_here || return $?
  run gcloud compute tpus queued-resources delete "$opt_name" "${where[@]}" --force --async --quiet
  for ((tries = 0; tries < ${opt_polls:-240}; tries++)); do
    queue_state state '' || return $?
    [[ $state ]] || return 0
    sleep "${opt_poll:-15}"
  done
  say "$opt_name is still there ($state); look at gcloud compute tpus queued-resources describe $opt_name"
  return "$EXIT_DEVICE"
}

# Reads polls in `answers`: sets code, the most telling one, 69 where a worker told none; stopped;
# state, none where nothing ran.
run_codes() {
  local codes=() words
  state=none stopped=no
  while read -ra words; do # [w0] run ATTEMPT exit CODE, or lost, running PID, none; stopped
    [[ ${words[1]-} == run ]] || continue
    [[ ${words[3]-} == none ]] || state=ran
    case ${words[3]-} in
      exit) codes+=("${words[4]}") ;;
      lost) codes+=(137) ;;
    esac
    [[ ${words[-1]} != stopped ]] || stopped=yes
  done <<<"$answers"
  ((${#codes[@]} >= workers && workers)) || codes+=("$EXIT_DEVICE")
  code=$(most_telling "${codes[@]}")
}
