#!/usr/bin/env bash
# Runs a command on several GPU machines that ssh reaches and that share a file system.
#
#   launch/gpu/multihost.sh start --hosts=a,b --source=/shared/diffjax --per=gpu --gpus=8 \
#     --env=PATH=/shared/venv/bin:/usr/bin:/bin -- \
#     diffjax train --config=configs/instruct_flan2022.py:xxl --workdir=/shared/runs/flan2022_xxl
#   launch/gpu/multihost.sh status|logs|stop --hosts=a,b --source=/shared/diffjax
#
#   start             on all hosts; goes on when ssh goes away
#   status            what runs, and the run's status.json with --workdir=PATH
#   logs              the last --lines=N (40) of every host, each with [w1] before it
#   stop              SIGTERM, --seconds=N (900), SIGKILL; ends with the run's exit code
#
#   --hosts=LIST      names for ssh, separated by commas; the first one coordinates
#   --source=PATH     this checkout as the hosts see it, installed there
#   --per=node|gpu    one process for all GPUs of a host, or one for each
#   --gpus=N          per host, for --per=gpu
#   --port=N          of the coordinator (8476), on the address that the other hosts know it by
#   --env=NAME=VALUE  for the command; may be repeated
#   --dry-run         print what would be run
#
# A shared file system, because all processes write one workdir. No restarts: for these use Slurm.
# shellcheck source=../common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

opt_hosts='' opt_source='' opt_per='' opt_gpus='' opt_port=8476 opt_env=() opt_workdir=''
opt_lines=40 opt_seconds=900 opt_dry_run=no
action=${1---help}
(($# == 0)) || shift
[[ $action != --help && $action != -h ]] || { usage && exit; }
parse_options "$@"
require hosts source
require_number port lines seconds
IFS=',' read -ra hosts <<<"$opt_hosts"
for host in "${hosts[@]}"; do
  [[ $host =~ ^[A-Za-z0-9][A-Za-z0-9.@_-]*$ ]] ||
    fail "$EXIT_USAGE" "--hosts: $(quoted "$host") is no host name"
done

on_host() { # NUMBER WORDS...
  local number=$1
  shift
  run ssh -o BatchMode=yes -o ConnectTimeout=20 "${hosts[number]}" \
    "$(quoted env "DIFFJAX_WORKER=$number" bash "$opt_source/launch/worker.sh" "$@")"
}

reached() { # NUMBER WORDS...: on_host, where 255 is ssh's own failure, tried again
  local code=0
  answer=$(on_host "$@") || code=$?
  dry || [[ $'\n'$answer == *$'\n'"[w$1] exit "* ]] || return 255
  printf '%s\n' "$answer" | sed '/^\[w[0-9]*\] exit /d'
  ((code == 0)) || failed=$code
}

everywhere() { # WORDS...
  local number
  failed=0
  for number in "${!hosts[@]}"; do
    retry 3 reached "$number" "$@" ||
      fail "$EXIT_DEVICE" "${hosts[number]} cannot be reached by ssh without a password"
  done
}

case $action in
  start)
    require_command
    total=${#hosts[@]}
    coordinator=${hosts[0]#*@}:$opt_port
    attempt=ATTEMPT
    dry || attempt=$(date -u +%Y%m%dT%H%M%SZ)-$$
    workdir=$(workdir_of "${words[@]}")
    [[ ! $workdir || $workdir == /* ]] ||
      fail "$EXIT_USAGE" "--workdir=$(quoted "$workdir"): give the whole path, from /"
    case $opt_per in
      node) ;;
      gpu)
        require_number gpus
        total=$((${#hosts[@]} * opt_gpus))
        ;;
      *) fail "$EXIT_USAGE" "--per=$(quoted "$opt_per"): node or gpu; JAX cannot tell by itself" ;;
    esac
    failed=0
    for number in "${!hosts[@]}"; do
      command=("${words[@]}")
      if [[ $opt_per == gpu ]]; then
        command=(bash "$opt_source/launch/local/processes.sh" "--processes=$opt_gpus"
          "--first=$((number * opt_gpus))" "--total=$total" "--coordinator=$coordinator"
          --one-device-each -- "${words[@]}")
      fi
      retry 3 reached "$number" start "$attempt" "$total" "$coordinator" \
        ${opt_env[@]+"${opt_env[@]}"} -- "${command[@]}" ||
        fail "$EXIT_DEVICE" "${hosts[number]} cannot be reached; multihost.sh stop ends what has begun"
    done
    ((failed == 0)) || fail "$failed" "not started everywhere; multihost.sh stop ends what has begun"
    ;;
  status)
    everywhere poll
    if [[ $opt_workdir && -f $opt_workdir/status.json ]]; then
      show_status "$(<"$opt_workdir/status.json")"
    fi
    ;;
  logs) everywhere log "$opt_lines" ;;
  stop)
    # All at once: whoever is stopped first would otherwise wait for the others.
    pids=()
    output=$(dry || mktemp -d)
    for number in "${!hosts[@]}"; do
      if dry; then
        on_host "$number" stop "$opt_seconds"
      else
        retry 3 reached "$number" stop "$opt_seconds" >"$output/$number" &
        pids+=("$!")
      fi
    done
    ! dry || exit 0
    wait "${pids[@]}" || true
    cat "$output"/*
    mapfile -t codes < <(sed -n 's/.* exit \([0-9]*\).*/\1/p' "$output"/*)
    rm -rf "$output"
    exit "$(most_telling ${codes[@]+"${codes[@]}"})"
    ;;
  *) fail "$EXIT_USAGE" "no action $(quoted "$action"): start, status, logs or stop" ;;
esac
