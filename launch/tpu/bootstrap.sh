#!/usr/bin/env bash
# Puts this commit on every worker of a TPU, installs it, and tests each worker.
#
#   launch/tpu/bootstrap.sh --name=pod --zone=us-east5-a --accelerator=v5p-128 \
#     --workdir=/mnt/runs/xxl [options]
#
#   --name, --zone, --project, --internal-ip   which TPU, and how ssh reaches it
#   --accelerator=TYPE   tells how many devices there must be
#   --devices=N          instead of what --accelerator says
#   --workdir=PATH       where the run will live: one folder that every worker sees
#   --extras=LIST        of setup.py (tpu)
#   --env=NAME=VALUE     for the self-test, as run.sh gets it; may be repeated
#   --port=N             of the coordinator (8476)
#   --allow-dirty        with uncommitted changes of tracked files; without it they are refused
#   --dry-run            print what would be run
#
# Code goes there as a git archive of the commit. The self-test: the package imports, every process
# finds the others, versions are the same, devices as many as expected, clocks within 5 s, the
# workdir's folder is shared and can be written, 10 GiB of disk are free. Ends with 69 otherwise.
# shellcheck source=tpu.sh
. "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

opt_accelerator='' opt_devices='' opt_workdir='' opt_extras=tpu opt_env=() opt_port=8476
opt_allow_dirty=no
tpu_options "$@"
require workdir
[[ $opt_accelerator || $opt_devices ]] || fail "$EXIT_USAGE" "give --accelerator or --devices"
if [[ ! $opt_devices ]]; then
  accelerator_facts "$opt_accelerator"
  opt_devices=$devices
fi
require_number devices port
workdir=$(workdir_of "--workdir=$opt_workdir")
[[ $workdir == /* ]] || fail "$EXIT_USAGE" "--workdir=$(quoted "$opt_workdir"): give the whole path, from /"
checkout=$(dirname "$LAUNCH")
extras=${opt_extras:+[$opt_extras]}

sha=COMMIT tree=COMMIT
if ! dry; then
  tree=HEAD
  if [[ $(git -C "$checkout" status --porcelain --untracked-files=no) ]]; then
    [[ $opt_allow_dirty == yes ]] ||
      fail "$EXIT_USAGE" "uncommitted changes in $checkout; commit them, or give --allow-dirty"
    tree=$(git -C "$checkout" stash create) # a commit beside the history; nothing is touched
    say "with uncommitted changes, as $tree; untracked files stay here"
  fi
  sha=$(git -C "$checkout" rev-parse "$tree")
  sha=${sha:0:12}
fi

find_workers
stage=STAGE
if ! dry; then
  stage=$(mktemp -d)
  trap 'rm -rf "$stage"' EXIT
  mkdir "$stage/diffjax-$sha"
fi
archive=$stage/diffjax-$sha/source.tgz
run git -C "$checkout" archive --format=tar.gz --output="$archive" "$tree"
run cp -R "$LAUNCH" "$stage/diffjax-$sha/launch"

say "copying $sha to the workers of $opt_name"
copy_to_all() {
  run gcloud compute tpus tpu-vm scp "$stage/diffjax-$sha" "$opt_name:" "${where[@]}" \
    ${reach[@]+"${reach[@]}"} --recurse --worker=all --compress --quiet
}
retry 5 copy_to_all ||
  fail "$EXIT_DEVICE" "the code cannot be copied to the workers of $opt_name; gcloud said above why"

say "installing on the workers of $opt_name, some minutes"
worker_root=diffjax-$sha # becomes diffjax-current once it is installed
code=0
on_workers all install "$sha" "$extras" || code=$?
if ((code)); then
  printf '%s' "$answers" >&2
  fail "$code" "not installed everywhere"
fi
worker_root=diffjax-current

say "testing the workers of $opt_name"
token=$(date +%s)-$$
! dry || token=TOKEN
code=0
on_workers all check "$workdir" "$token" "$workers" "$first_address:$opt_port" \
  ${opt_env[@]+"${opt_env[@]}"} || code=$?
facts=$answers
on_workers 0 sweep "$workdir" "$token"
probes=$(answer_of 0 | sed -n 's/^probes //p')
answers=$facts
! dry || exit 0
if ((code)); then
  printf '%s' "$answers" >&2
  fail "$code" "the self-test could not run on every worker"
fi

fact() { # NAME FACTS
  local word
  for word in $2; do [[ $word != "$1="* ]] || printf '%s' "${word#*=}"; done
}

wrong=0
complain() { # WORKER TEXT
  wrong=$((wrong + 1))
  faults+=("worker $1: $2")
}
faults=() sha0='' jax0='' clock0=0
printf '%-7s %-13s %-9s %-9s %8s %5s %6s %8s %s\n' \
  worker code jax platform devices here clock disk workdir
for ((number = 0; number < workers; number++)); do
  line=$(answer_of "$number" | sed -n 's/^facts //p')
  here_sha=$(fact sha "$line") jax=$(fact jax "$line") seen=$(fact devices "$line")
  clock=$(fact clock "$line") free=$(fact free "$line") shared=$(fact workdir "$line")
  clock=${clock%%.*}
  if ((number == 0)); then sha0=$here_sha jax0=$jax clock0=$clock; fi
  drift=0
  ((clock == 0 || clock0 == 0)) || drift=$((clock - clock0))
  printf '%-7s %-13s %-9s %-9s %8s %5s %5ss %5sGiB %s\n' "$number" "$here_sha" "$jax" \
    "$(fact platform "$line")" "$seen" "$(fact here "$line")" "$drift" "$free" "$shared"
  if [[ $seen == 0 ]]; then
    complain "$number" "the package does not start: $(answer_of "$number" | grep -v '^facts ' | tail -n 1)"
    continue
  fi
  [[ $here_sha == "$sha0" && $jax == "$jax0" ]] ||
    complain "$number" "code $here_sha and jax $jax, worker 0 has $sha0 and $jax0; run bootstrap again"
  [[ $seen == "$opt_devices" ]] ||
    complain "$number" "sees $seen devices, not $opt_devices; check --accelerator, or tear down and queue again"
  [[ $(fact process "$line") == "$number" ]] ||
    complain "$number" "jax calls it process $(fact process "$line"); tear down and queue again"
  ((drift > -5 && drift < 5)) || complain "$number" "its clock is $drift s off that of worker 0; fix the time service"
  ((free >= 10)) || complain "$number" "$free GiB of disk are free, 10 are needed; make room"
  [[ $shared == ok ]] || complain "$number" "$(dirname "$workdir") cannot be written; mount it there"
done
if [[ $probes != "$workers" ]]; then
  complain 0 "$(dirname "$workdir") shows the files of $probes of $workers workers; it must be one shared folder"
fi
for fault in ${faults[@]+"${faults[@]}"}; do say "$fault"; done
((wrong == 0)) || fail "$EXIT_DEVICE" "$wrong faults: $opt_name is not ready"
say "$opt_name is ready: $workers workers, $opt_devices devices, code $sha"
