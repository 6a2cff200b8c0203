#!/usr/bin/env bash
# A run on TPUs of a GKE cluster (the way for TPU7x and later), as a JobSet.
#
#   launch/gke/jobset.sh apply --name=xxl --generation=tpu7x --topology=4x4x4 \
#     --image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/diffjax:COMMIT --claim=runs -- \
#     diffjax train --config=configs/instruct_flan2022.py:xxl --workdir=/runs/flan2022_xxl
#   launch/gke/jobset.sh status|logs|delete --name=xxl
#
#   apply    render (options: launch/gke/render.py --help) and start; a JobSet of the name that has
#            ended is replaced, one that runs is left alone
#   status   the JobSet, its pods and their exit codes
#   logs     follow process 0; what all pods say: kubectl logs --selector=...
#   delete   SIGTERM, time to save, and gone: the run stops, its nodes can shrink away
#   --context=NAME, --namespace=NAME   of kubectl
#   --dry-run   print what would be run, and the rendered file
# shellcheck source=../common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

action=${1---help}
(($# == 0)) || shift
[[ $action != --help && $action != -h ]] || { usage && exit; }
opt_dry_run=no name='' rest=() kubectl=(kubectl)
while (($#)); do
  case $1 in
    --dry-run) opt_dry_run=yes ;;
    --context=* | --namespace=*) kubectl+=("$1") ;;
    --help) usage && exit ;;
    --)
      rest+=("$@")
      break
      ;;
    --name=*)
      name=${1#--name=}
      rest+=("$1")
      ;;
    *) rest+=("$1") ;;
  esac
  shift
done
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  fail "$EXIT_USAGE" "--name=$(quoted "$name"): at most 40 small letters, digits and hyphens, a letter first"
selector=jobset.sigs.k8s.io/jobset-name=$name

case $action in
  apply)
    manifest=$(python3 "$LAUNCH/gke/render.py" "${rest[@]}")
    state=''
    ask state '' "${kubectl[@]}" get jobset "$name" --ignore-not-found \
      --output 'jsonpath={.metadata.name} {.status.terminalState}'
    case $state in
      '' | ' ') ;;
      "$name "?*)
        say "$name has ended (${state#* }): it is replaced"
        run "${kubectl[@]}" delete jobset "$name" --wait=true
        ;;
      *) fail 0 "$name runs already; launch/gke/jobset.sh delete --name=$name stops it" ;;
    esac
    run "${kubectl[@]}" apply --filename=- <<<"$manifest"
    if dry; then printf '%s\n' "$manifest"; fi
    ;;
  status)
    run "${kubectl[@]}" get jobset "$name"
    run "${kubectl[@]}" get pods --selector="$selector" --output \
      'custom-columns=POD:.metadata.name,PHASE:.status.phase,EXIT:.status.containerStatuses[0].state.terminated.exitCode,NODE:.spec.nodeName'
    ;;
  logs)
    run "${kubectl[@]}" logs --follow --container=diffjax --tail=100 \
      --selector="$selector,batch.kubernetes.io/job-completion-index=0,jobset.sigs.k8s.io/job-index=0"
    ;;
  delete) run "${kubectl[@]}" delete jobset "$name" --ignore-not-found --cascade=foreground --wait=true ;;
  *) fail "$EXIT_USAGE" "no action $(quoted "$action"): apply, status, logs or delete" ;;
esac
