# packages.sh - sourced by the scripts beside it: bring in Debian packages, saying so, skipping what is there.
#
# Sets nothing of its own; needs `say` and `die`. Honours SITULA_NO_INSTALL=1 (then a missing package is
# an error that names it).
# shellcheck shell=bash

# need_packages LOGFILE PACKAGE... : install those that are missing.
#
# Maintainer scripts of Debian packages start daemons (a system slurmd that fails, a system munged). A
# policy-rc.d that answers 101 keeps them from it while we install. A policy-rc.d that was there before
# belongs to the machine's owner: it is put aside and back again, byte for byte, with its mode.
need_packages() {
  local log=$1 have p miss=() rc=0 policy=/usr/sbin/policy-rc.d saved=
  shift
  have=$(dpkg-query -W -f='${db:Status-Abbrev} ${Package}\n' "$@" 2>/dev/null | sed -n 's/^ii *//p')
  for p in "$@"; do grep -qx -- "$p" <<<"$have" || miss+=("$p"); done
  [ ${#miss[@]} -eq 0 ] && return 0
  [ "${SITULA_NO_INSTALL:-0}" = 1 ] && die "missing Debian packages: ${miss[*]}"
  [ "$(id -u)" = 0 ] || die "missing Debian packages (install them as root): ${miss[*]}"
  say "installing Debian packages: ${miss[*]}"
  if [ -e "$policy" ] || [ -L "$policy" ]; then saved=$policy.situla-saved.$$; mv "$policy" "$saved"; fi
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  (
    # Also on interruption: the machine must never keep our policy.
    trap 'rm -f "$policy"; [ -z "$saved" ] || mv "$saved" "$policy"' EXIT
    trap 'exit 130' INT TERM HUP
    export DEBIAN_FRONTEND=noninteractive
    install_now() { apt-get install -y -qq --no-install-recommends "${miss[@]}" >>"$log" 2>&1; }
    : >"$log"
    # The lists may be absent (a minimal image) or old (404 on a package): then refresh them once.
    install_now || { apt-get update -qq >>"$log" 2>&1 && install_now; }
  ) || rc=$?
  [ $rc = 0 ] || { tail -5 "$log" >&2; die "apt-get failed, see $log"; }
}
