#!/usr/bin/env bash
# Keeps a run going to its end: gets the TPU, gets it back when it is taken away, restarts the
# command where a restart helps, and stops where it does not.
#
#   launch/tpu/supervise.sh --name=pod --zone=us-east5-a --accelerator=v5p-128 --spot -- \
#     diffjax train --config=configs/instruct_flan2022.py:xxl --workdir=/mnt/runs/flan2022_xxl
#
#   the options of queue.sh, bootstrap.sh and run.sh, and
#   --poll=SECONDS    between two looks at the run (30)
#   --grace=SECONDS   the other workers get when one has ended (120)
#   --dry-run         print what would be run
#
# Restarts after the codes 69, 75, 124, 134, 137, 139 and 143, and after a preemption; 5 in a row
# without a new committed step end it. A run that goes on already is watched, not started again, so
# this may be interrupted and started again. Ends with the run's exit code. Leaves the TPU there,
# which costs money: launch/tpu/teardown.sh.
# shellcheck disable=SC2034,SC2329  # options by name; functions that supervise() calls
# shellcheck source=tpu.sh
. "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

opt_accelerator='' opt_spot=no opt_reserved=no opt_runtime='' opt_valid_until=''
opt_service_account='' opt_network='' opt_subnetwork='' opt_internal_ips=no
opt_devices='' opt_extras=tpu opt_allow_dirty=no opt_env=() opt_port=8476
opt_poll=30 opt_grace=120
tpu_options "$@"
require accelerator
require_command
require_number poll grace
workdir=$(workdir_of "${words[@]}")
[[ $workdir ]] || fail "$EXIT_USAGE" "give the command a --workdir; restarts go on from what is there"

tpu=("--name=$opt_name" "${where[@]}")
! dry || tpu+=(--dry-run)
ssh=("${tpu[@]}")
[[ $opt_internal_ip == no ]] || ssh+=(--internal-ip)
settings=()
for setting in ${opt_env[@]+"${opt_env[@]}"}; do settings+=("--env=$setting"); done
queue=("${tpu[@]}" "--accelerator=$opt_accelerator" "--poll=$opt_poll")
for name in spot reserved internal_ips; do
  variable=opt_$name
  [[ ${!variable} == no ]] || queue+=("--${name//_/-}")
done
for name in runtime valid_until service_account network subnetwork; do
  variable=opt_$name
  [[ ! ${!variable} ]] || queue+=("--${name//_/-}=${!variable}")
done
bootstrap=("${ssh[@]}" "--accelerator=$opt_accelerator" "--workdir=$workdir" "--port=$opt_port"
  "--extras=$opt_extras")
[[ ! $opt_devices ]] || bootstrap+=("--devices=$opt_devices")
[[ $opt_allow_dirty == no ]] || bootstrap+=(--allow-dirty)
bootstrap+=(${settings[@]+"${settings[@]}"})
start=("${ssh[@]}" "--port=$opt_port" ${settings[@]+"${settings[@]}"})

if dry; then
  bash "$LAUNCH/tpu/queue.sh" "${queue[@]}"
  bash "$LAUNCH/tpu/bootstrap.sh" "${bootstrap[@]}"
  bash "$LAUNCH/tpu/run.sh" "${start[@]}" -- "${words[@]}"
  node_state state READY
  on_workers 0 poll "$workdir"
  on_workers all poll
  exit
fi

ready='' seen=0 failures=0 # the node that was bootstrapped; the newest committed step; 69s in a row

look() { # LIST: polls, notes the committed step
  local step
  on_workers "$1" poll "$workdir" || return $?
  step=$(sed -n 's/^\[w[0-9]*\] committed //p' <<<"$answers" | sort -n | tail -n 1)
  [[ ! $step ]] || ((step <= seen)) || seen=$step
}

hear() { # LIST: looks until there is an answer; 143 where the TPU was taken away
  local node='' since=$SECONDS
  while :; do
    if node_state node READY; then
      if [[ $node != READY ]]; then
        say "$opt_name was taken away (its node is ${node:-gone})"
        return 143
      fi
      ! look "$1" || return 0
    fi
    # This machine's network, or Google's, is away: the run goes on without.
    ((SECONDS - since < 21600)) ||
      fail "$EXIT_DEVICE" "nothing heard of $opt_name for 6 hours; what runs there goes on, and costs money"
    sleep "$opt_poll"
  done
}

prepare() { # has the TPU ready, and the run started on it
  local node='' here
  if ((failures >= 2)); then
    say "the devices failed $failures times running: $opt_name is deleted and asked for again"
    delete_tpu || return $?
    failures=0
  fi
  bash "$LAUNCH/tpu/queue.sh" "${queue[@]}" || return $?
  find_workers || return $?
  describe node '' 'value(id)' tpu-vm || return $?
  if [[ $node != "$ready" ]]; then
    worker_tries=2
    here=$(look all 2>/dev/null && printf '%s' "$answers") || here=''
    worker_tries=5
    if [[ $here != *' running '* ]]; then # it is new, or not as this commit wants it
      bash "$LAUNCH/tpu/bootstrap.sh" "${bootstrap[@]}" || return $?
    fi
    ready=$node
  fi
  hear all || return $?
  if [[ $answers == *' running '* ]]; then
    say "a run goes on here already: watching it"
  else
    bash "$LAUNCH/tpu/run.sh" "${start[@]}" -- "${words[@]}" || return $?
  fi
}

attempt() {
  local was which=0 nap=$opt_poll ended=0
  code=0
  prepare || code=$?
  while ((code == 0)); do
    sleep "$nap"
    hear "$which" || code=$?
    if [[ $which == 0 ]]; then
      [[ $answers == *' running '* ]] || which=all nap=$((nap < 5 ? nap : 5)) ended=$SECONDS
    elif [[ $answers != *' running '* ]] || ((SECONDS - ended > opt_grace)); then
      break
    fi
  done
  ((code == 0)) || return 0
  run_codes
  if [[ $answers == *' running '* ]]; then
    say "some workers still run: they are stopped"
    was=$stopped
    on_workers all stop 30 || true
    run_codes
    stopped=$was
  fi
  # Only what a worker itself says counts against the devices; silence may be the network's.
  if ((code == EXIT_DEVICE)) && [[ $answers == *" exit $EXIT_DEVICE"* ]]; then
    failures=$((failures + 1))
  else
    failures=0
  fi
}

committed() {
  worker_tries=1
  look 0 2>/dev/null || true
  worker_tries=5
  step=$seen
}

code=0
supervise attempt committed || code=$?
((code)) || say "done; $opt_name costs money until launch/tpu/teardown.sh"
exit "$code"
