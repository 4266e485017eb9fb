#!/usr/bin/env bash
# Installs the Debian 12 packages that Perigee builds with, those that are missing, as root or through sudo. Says what it does; does
# nothing, quietly, when all are there. With the word "bench" also what only some benchmark rows stand beside: fio, and
# redis-server, whose Debian package starts a server on 127.0.0.1:6379, so nothing else asks for it. With the word "ceph" also the daemons that the
# remote tier's tests start (52 MB to fetch, 194 MB installed; the packages start nothing by themselves). etcd-server's package
# starts a server on 127.0.0.1:2379, now and at each boot; where this script installs it, it does neither: the tests start their own. With
# the word "openai" also Node.js and npm for the test with the official openai client (23 MB to fetch, 137 MB installed, 355 packages,
# most of them npm's).
set -euo pipefail

packages=(
  # Tools
  g++ cmake ninja-build ccache pkg-config make git ca-certificates python3
  protobuf-compiler protobuf-compiler-grpc
  # Transport, control plane, storage
  libucx-dev ucx-utils libgrpc++-dev libprotobuf-dev libabsl-dev librocksdb-dev liburing-dev libradospp-dev
  # Arithmetic
  libdnnl-dev libhwy-dev libisal-dev
  # Everything else a library does better
  libssl-dev libzstd-dev libxxhash-dev libcli11-dev libspdlog-dev nlohmann-json3-dev libtomlplusplus-dev
  libsentencepiece-dev libpcre2-dev libicu-dev prometheus-cpp-dev libcpp-httplib-dev
  # Tests and benchmarks; networks to fail on (tests/fault); etcd to stop and restart (tests/cluster)
  libgtest-dev libgmock-dev libbenchmark-dev python3-yaml iproute2 nftables etcd-server openssl
  # The demo's prose: the King James Bible, public domain
  bible-kjv bible-kjv-text
)
case "${1:-}" in
  '') ;;
  bench) packages+=(redis-server fio) ;;
  ceph) packages+=(ceph-mon ceph-osd ceph-common) ;;
  openai) packages+=(nodejs npm) ;;
  *) echo "usage: setup.sh [bench|ceph|openai]" >&2 && exit 2 ;;
esac

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
  echo "setup: this script knows Debian 12's packages; please install the equivalents of: ${missing[*]}" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "setup: ${#missing[@]} packages are missing; run as root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "setup: installing ${#missing[@]} Debian packages: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() {
  if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "$@" >"$log" 2>&1; then
    echo "setup: '$*' failed:" >&2
    tail -n 20 "$log" >&2
    exit 1
  fi
}
run apt-get update
# Debian's way to install a server without starting it: a policy that says no. Where the machine has a policy it decides.
policy=/usr/sbin/policy-rc.d
new_etcd=
case " ${missing[*]} " in *' etcd-server '*) new_etcd=yes ;; esac
if [ -n "$new_etcd" ] && [ ! -e "$policy" ]; then
  trap 'rm -f "$log"; "${as_root[@]}" rm -f "$policy"' EXIT
  printf '#!/bin/sh\ncase "$1" in etcd|etcd.service) exit 101 ;; esac\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
fi
run apt-get install -y --no-install-recommends "${missing[@]}"
[ -z "$new_etcd" ] || run update-rc.d etcd disable
echo "setup: done"
