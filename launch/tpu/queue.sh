#!/usr/bin/env bash
# Gets a TPU VM: asks for it as a queued resource and waits until it can be used.
#
#   launch/tpu/queue.sh --name=pod --zone=us-east5-a --accelerator=v5p-128 [options]
#
#   --name, --zone, --project   which; the project is gcloud's default
#   --accelerator=TYPE          v4-32, v5litepod-16, v5p-128, v6e-8, ... (v4 and v5p count cores)
#   --spot, --reserved          cheap and taken away at any time; from the project's reservation
#   --runtime=VERSION           the image, by default that of the generation
#   --valid-until=DURATION      give up waiting in the queue after it, as in 6h
#   --service-account=ACCOUNT, --network=NAME, --subnetwork=NAME, --internal-ips
#   --poll=SECONDS              between two looks (15)
#   --polls=N                   looks before giving up (5760, a day)
#   --dry-run                   print what would be run
#
# There already and ACTIVE: nothing is done. FAILED, SUSPENDED or preempted: it is deleted, which
# frees its quota, and asked for again, if this script made it. Costs money from ACTIVE until launch/tpu/teardown.sh.
# shellcheck source=tpu.sh
. "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

opt_accelerator='' opt_spot=no opt_reserved=no opt_runtime='' opt_valid_until=''
opt_service_account='' opt_network='' opt_subnetwork='' opt_internal_ips=no opt_poll=15
opt_polls=5760
tpu_options "$@"
require accelerator
require_number poll polls
accelerator_facts "$opt_accelerator"
[[ $opt_spot == no || $opt_reserved == no ]] ||
  fail "$EXIT_USAGE" "--spot and --reserved: choose one"

create() {
  local output code=0 argv=(
    gcloud compute tpus queued-resources create "$opt_name" "--node-id=$opt_name"
    "--accelerator-type=$opt_accelerator" "--runtime-version=${opt_runtime:-$runtime}"
    "${where[@]}" --labels=made_by=diffjax
  )
  [[ $opt_spot == no ]] || argv+=(--spot)
  [[ $opt_reserved == no ]] || argv+=(--reserved)
  [[ ! $opt_valid_until ]] || argv+=("--valid-until-duration=$opt_valid_until")
  [[ ! $opt_service_account ]] || argv+=("--service-account=$opt_service_account")
  [[ ! $opt_network ]] || argv+=("--network=$opt_network")
  [[ ! $opt_subnetwork ]] || argv+=("--subnetwork=$opt_subnetwork")
  [[ $opt_internal_ips == no ]] || argv+=(--internal-ips)
  argv+=(--async --quiet)
  say "asking for $opt_accelerator ($chips chips) as $opt_name; it costs money until launch/tpu/teardown.sh"
  if dry; then
    run "${argv[@]}"
    return
  fi
  output=$("${argv[@]}" 2>&1) || code=$?
  ((code)) || return 0
  [[ $output != *ALREADY_EXISTS* ]] || return 0
  [[ $output == *RESOURCE_EXHAUSTED* || $output == *[Qq]uota* || $output == *UNAVAILABLE* ]] ||
    gcloud_trouble "$output"
  complaint=$output # what was deleted a moment ago may still hold the quota
  return 1
}

complaint='' refused=0 remade=0 before='' state='' node='' why=''
for ((looks = 0; looks < opt_polls; looks++)); do
  queue_state state ''
  [[ $state == "$before" ]] || say "$opt_name is ${state:-not there}"
  before=$state
  case $state in
    '')
      if ! create; then
        refused=$((refused + 1))
        ((refused < 4)) || gcloud_trouble "$complaint"
        say "refused, try $((refused + 1)) of 4 follows: $(last_line "$complaint")"
        pause "$refused"
      fi
      ! dry || break
      ;;
    ACTIVE)
      node_state node READY
      case $node in
        READY) break ;;
        PREEMPTED | TERMINATED)
          say "its node is $node: it is deleted and asked for again"
          delete_tpu
          continue
          ;;
        STOPPED)
          fail "$EXIT_USAGE" "its node is STOPPED, by hand; start it with gcloud compute tpus tpu-vm start $opt_name ${where[*]}, or launch/tpu/teardown.sh"
          ;;
        *) say "its node is ${node:-not there}" ;;
      esac
      ;;
    FAILED | SUSPENDED)
      remade=$((remade + 1))
      describe why '' 'value(state.failedData.error.message)' queued-resources
      ((remade <= 3)) ||
        fail "$EXIT_DEVICE" "$opt_name is $state again${why:+: $why}; try another zone, size or --spot"
      say "$opt_name is $state${why:+: $why}; it is deleted and asked for again"
      delete_tpu
      continue
      ;;
  esac
  sleep "$opt_poll"
done
((looks < opt_polls)) || fail "$EXIT_DEVICE" "$opt_name is still $state after $looks looks; it stays in the queue"
if ! dry; then
  find_workers
  say "$opt_name is ready: $workers workers, $chips chips, costing money until launch/tpu/teardown.sh"
fi
