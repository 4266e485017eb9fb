#!/usr/bin/env bash
# A real Ceph on the loopback, of one monitor and one OSD, no manager, no authentication, for tests and benchmarks of the remote
# tier. It lives as long as standard input is open: everything ends, and DIR is removed, when that is closed or this script
# is told to stop; the daemons are also killed by the kernel when this script dies.
#
#   one_node_ceph.sh DIR [bluestore|memstore]       (bluestore: keeps what was written when the OSD is killed)
#
# Says "ready CONF" once pool "kv" takes writes, or "failed WHY" and ends. Then it takes commands, a line each, answers "ok" or
# "failed ...":  kill osd | start osd | pause osd | continue osd | pause mon | continue mon | ceph ARGUMENTS... |
# show logs (on standard error: the end of the daemons' logs, and what the OSD's operations wait for)
# Exit code 77: the programs are missing.
set -uo pipefail
dir=${1:?a folder} store=${2:-bluestore}
for program in ceph-mon ceph-osd ceph monmaptool setpriv python3; do
  command -v "$program" >/dev/null || { echo "failed $program is not installed (scripts/setup.sh ceph)"; exit 77; }
done
mkdir -p "$dir/mon" "$dir/osd0" "$dir/run" && dir=$(cd "$dir" && pwd) || { echo "failed cannot make $dir"; exit 1; }
mon= osd=
# shellcheck disable=SC2329
finish() {
  [ -n "$osd" ] && kill -KILL "$osd" 2>/dev/null
  [ -n "$mon" ] && kill -KILL "$mon" 2>/dev/null
  wait 2>/dev/null
  rm -rf "$dir"
}
trap finish EXIT
trap 'exit 1' TERM INT HUP

deadline=$((SECONDS + 60))
give_up() {
  tail -n 5 "$dir"/*.log "$dir"/*.out >&2
  echo "failed $1"
  exit 1
}
until_true() {  # WHAT COMMAND...
  local what=$1
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || give_up "$what within 60 s"
    sleep 0.1
  done
}
# Now and then `ceph` asks before it has the cluster's id, and is refused (EPERM) what it asks first: which commands there are.
# Then again: the command itself has not been sent.
ceph_() {
  local status try
  for try in 1 2 3 4 5; do
    timeout 10 ceph -c "$dir/ceph.conf" --connect-timeout 5 "$@" 2>"$dir/cli.err"
    status=$?
    cat "$dir/cli.err" >>"$dir/cli.log"
    grep -q 'problem getting command descriptions' "$dir/cli.err" || break
    echo "refused, try $try: ceph $*" >>"$dir/cli.log"
  done
  return "$status"
}
show_logs() {
  tail -n 40 "$dir"/*.log "$dir"/*.out
  echo "==> what the OSD's operations wait for <=="
  timeout 5 ceph daemon "$dir/run/osd.0.$osd.asok" ops </dev/null | grep -o '"flag_point": .*' | sort | uniq -c
}

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
fsid=$(cat /proc/sys/kernel/random/uuid)
cat >"$dir/ceph.conf" <<EOF
[global]
fsid = $fsid
mon host = [v1:127.0.0.1:$port]
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd crush chooseleaf type = 0
osd crush initial weight = 1
run dir = $dir/run
log file = $dir/\$name.log
admin socket = $dir/run/\$name.\$pid.asok
ms bind msgr2 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
mon data = $dir/mon
mon data avail warn = 2
mon data avail crit = 1
osd data = $dir/osd\$id
osd objectstore = $store
bluestore block size = 4294967296
bluestore fsck quick fix on mount = false
memstore device bytes = 8589934592
osd memory target = 939524096
# A PG answers only while it has a read lease; without one it is "laggy" and keeps what arrives until a replica confirms the
# next lease. In Ceph 16 a PG without replicas therefore stays laggy although it renews its lease, until its OSD is marked
# down or starts again (https://tracker.ceph.com/issues/61650); an OSD that is continued falls into that when it looks at a
# waiting operation before its timers. So the lease (this times osd_heartbeat_grace, 20 s) outlasts every pause of a test.
# A killed OSD that starts again does not wait for the old lease: there is no other OSD that could answer by it.
osd pool default read lease ratio = 15
EOF

start_osd() {
  setpriv --pdeathsig KILL ceph-osd -c "$dir/ceph.conf" -i 0 -f >>"$dir/osd.out" 2>&1 </dev/null &
  osd=$!
}
# An OSD may end right after its start: it can ask before it has the cluster's id from the monitor ("wrong fsid"). Then again.
keep_osd() { kill -0 "$osd" 2>/dev/null || start_osd; }
osd_is_up() {
  keep_osd
  ceph_ osd stat </dev/null | grep -q '1 up'
}
mon_answers() {
  kill -0 "$mon" 2>/dev/null || give_up "the monitor ended ($(tail -n 1 "$dir/mon.out"))"
  ceph_ mon stat </dev/null >/dev/null
}
pool_takes_writes() {
  keep_osd
  timeout 5 rados -c "$dir/ceph.conf" -p kv touch ready </dev/null >/dev/null 2>&1
}

{
  monmaptool --create --addv a "[v1:127.0.0.1:$port]" --fsid "$fsid" "$dir/monmap" &&
    ceph-mon -c "$dir/ceph.conf" --mkfs -i a --monmap "$dir/monmap"
} >"$dir/mkfs.log" 2>&1 || give_up "the monitor's folder cannot be made"
setpriv --pdeathsig KILL ceph-mon -c "$dir/ceph.conf" -i a -f >"$dir/mon.out" 2>&1 </dev/null &
mon=$!
until_true 'the monitor does not answer' mon_answers
ceph_ osd create >/dev/null </dev/null || give_up "the OSD cannot be added"
ceph-osd -c "$dir/ceph.conf" -i 0 --mkfs >>"$dir/mkfs.log" 2>&1 </dev/null || give_up "the OSD's folder cannot be made"
start_osd
ceph_ osd pool create kv 8 </dev/null >/dev/null 2>&1 || give_up "the pool cannot be made"
until_true 'the OSD is not up' osd_is_up
until_true 'the pool takes no writes' pool_takes_writes
echo "ready $dir/ceph.conf"

while read -r verb rest; do
  deadline=$((SECONDS + 60))
  case "$verb $rest" in
    'kill osd') kill -KILL "$osd" && wait "$osd" 2>/dev/null ; echo ok ;;
    'start osd') start_osd; until_true 'the pool takes no writes' pool_takes_writes; echo ok ;;
    'pause osd') kill -STOP "$osd" && echo ok ;;
    'continue osd') kill -CONT "$osd" && echo ok ;;
    'pause mon') kill -STOP "$mon" && echo ok ;;
    'continue mon') kill -CONT "$mon" && echo ok ;;
    'show logs') show_logs >&2; echo ok ;;
    ceph\ *)
      # shellcheck disable=SC2086
      if said=$(ceph_ $rest </dev/null); then echo "ok $(tr '\n' ' ' <<<"$said")"; else echo "failed ceph $rest"; fi ;;
    *) echo "failed no such command: $verb $rest" ;;
  esac
done
