#!/usr/bin/env bash
# Deletes a TPU that launch/tpu/queue.sh made, so that it costs nothing any more.
#
#   launch/tpu/teardown.sh --name=pod --zone=us-east5-a [--yes]
#
#   --name, --zone, --project   which TPU
#   --yes        do not ask
#   --poll=SECONDS   between two looks (15)
#   --dry-run    print what would be run
#
# Workdirs are not touched. A TPU that something else made is refused.
# shellcheck source=tpu.sh
. "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

opt_yes=no opt_poll=15
tpu_options "$@"
require_number poll
state='' type=''
queue_state state ACTIVE
[[ $state ]] || fail 0 "$opt_name is not there in $opt_zone; nothing to delete"
made_here
describe type '' 'value(tpu.nodeSpec[0].node.acceleratorType)' queued-resources
say "will be deleted: queued resource $opt_name ($state), its node $opt_name${type:+, $type}, with the disks of its workers"
if [[ $opt_yes == no ]] && ! dry; then
  read -rp "delete $opt_name? [y/N] " reply || reply=''
  [[ $reply == [yY]* ]] || fail "$EXIT_USAGE" "nothing was deleted; it goes on costing money"
fi
delete_tpu
dry || say "$opt_name is gone"
