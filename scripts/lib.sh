# lib.sh - sourced by the scripts beside it: messages, Debian packages, and background processes.
#
# The sourcing script sets NAME (prefix of its messages) and, to keep processes, RUN and LOG (directories).
# SITULA_NO_INSTALL=1 makes a missing package an error that names it, instead of installing it.
# shellcheck shell=bash
# shellcheck disable=SC2154

say() { echo "[$NAME] $*" >&2; }
die() { echo "[$NAME] error: $*" >&2; exit 1; }
T0=$(date +%s%N)
step() { printf '[%s] %6d ms  %s\n' "$NAME" $((($(date +%s%N) - T0) / 1000000)) "$*" >&2; }

# --- Debian packages: say what is missing and install it; skip what is there ---------------------------------

# Services that the packages we need bring with them. The demo and the tests start daemons of their own; a machine
# whose owner only wanted to see those must not have a munged or a registry on its network after the next boot.
SERVICES=(munge slurmctld slurmd slurmdbd slurmrestd docker-registry)

# need_packages LOGFILE PACKAGE... : install those that are missing; services that come with them stay disabled.
#
# Maintainer scripts of Debian packages start daemons (a system slurmd that fails, a system munged). A
# policy-rc.d that answers 101 keeps them from it while we install. A policy-rc.d that was there before
# belongs to the machine's owner: it is put aside and back again, byte for byte, with its mode.
need_packages() {
  local log=$1 have p miss=() new=() rc=0 policy=/usr/sbin/policy-rc.d saved=
  shift
  have=$(dpkg-query -W -f='${db:Status-Abbrev} ${Package}\n' "$@" 2>/dev/null | sed -n 's/^ii *//p')
  for p in "$@"; do grep -qx -- "$p" <<<"$have" || miss+=("$p"); done
  [ ${#miss[@]} -eq 0 ] && return 0
  [ "${SITULA_NO_INSTALL:-0}" = 1 ] && die "missing Debian packages: ${miss[*]}"
  [ "$(id -u)" = 0 ] || die "missing Debian packages (install them as root): ${miss[*]}"
  say "installing Debian packages: ${miss[*]}"
  for p in "${SERVICES[@]}"; do [ -e "/etc/init.d/$p" ] || new+=("$p"); done
  if [ -e "$policy" ] || [ -L "$policy" ]; then saved=$policy.situla-saved.$$; mv "$policy" "$saved"; fi
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  (
    # Also on interruption: the machine must never keep our policy.
    trap 'rm -f "$policy"; [ -z "$saved" ] || mv "$saved" "$policy"' EXIT
    trap 'exit 130' INT TERM HUP
    export DEBIAN_FRONTEND=noninteractive
    install_now() { apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${miss[@]}" >>"$log" 2>&1; }
    : >"$log"
    # The lists may be absent (a minimal image) or old (404 on a package): then refresh them once.
    install_now || { apt-get update -qq >>"$log" 2>&1 && install_now; }
  ) || rc=$?
  [ $rc = 0 ] || { tail -5 "$log" >&2; die "apt-get failed, see $log"; }
  # The same for systemd and for the links of /etc/rc?.d; a service that was there before stays as it is.
  for p in "${new[@]}"; do
    [ ! -e "/etc/init.d/$p" ] || update-rc.d "$p" disable >>"$log" 2>&1 || say "note: the service $p will start at the next boot"
  done
}

# copy_image CACHE ARG... : skopeo copy. As root it keeps a cache in /var/lib/containers, which nobody would remove;
# the only way to have it elsewhere is to let it think that it is somebody else.
copy_image() {
  local cache=$1
  shift
  _CONTAINERS_ROOTLESS_UID=65534 XDG_DATA_HOME=$cache skopeo --insecure-policy copy -q "$@"
}

# mmdebstrap's own apt does not read this machine's apt configuration. What the administrator set about
# reaching a mirror (which one, a proxy, a frozen snapshot whose Release files are past their date) must hold there too.
# mirror_options SUITE : sets the arrays MIRROR_OPTIONS and MIRRORS, lines of sources.list for SUITE; without any (apt
# has no lists yet, or names its releases otherwise) mmdebstrap takes Debian's own. Signatures are checked in every case.
mirror_options() {
  local suite=$1 codename key value
  codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
  # The same archive has the other suites.
  # shellcheck disable=SC2016,SC2034
  mapfile -t MIRRORS < <(
    apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 'Component: main' 'Origin: Debian' 2>/dev/null |
      awk -v suite="$suite" -v codename="$codename" '
        $1 !~ /^(https?|file|copy):/ { next }
        suite == codename && $2 ~ "^" suite "(-updates|-security)?$" { print "deb", $1, $2, "main" }
        suite != codename && $2 == codename { print "deb", $1, suite, "main" }' | sort -u
  )
  MIRROR_OPTIONS=()
  for key in Acquire::Check-Valid-Until Acquire::Check-Date Acquire::http::Proxy Acquire::https::Proxy; do
    value=
    eval "$(apt-config shell value "$key")"
    [ -z "$value" ] || MIRROR_OPTIONS+=("--aptopt=$key \"$value\"")
  done
}

# --- processes: only those we recorded, recognised by pid *and* start time -------------------------------
# Field 22 of /proc/PID/stat; empty when there is no such process or when it is a zombie whose parent never
# reaps it (PID 1 of a container often does not).
birth() {
  local s
  s=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  s=${s##*) }
  # shellcheck disable=SC2086
  set -- $s
  [ "$1" = Z ] || [ "$1" = X ] || echo "${20}"
}
alive() { # alive NAME
  local p b
  [ -s "$RUN/$1.pid" ] && read -r p b <"$RUN/$1.pid" && [ -n "$b" ] && [ "$(birth "$p")" = "$b" ]
}
start() { # start NAME CMD... : in the background, in a session of its own
  local name=$1 p
  shift
  alive "$name" && return 0
  # fd 9 is our lock: a daemon that kept it would hold it for ever.
  (cd / && exec setsid "$@" </dev/null >>"$LOG/$name.out" 2>&1 9>&-) &
  p=$!
  disown $p
  echo "$p $(birth $p)" >"$RUN/$name.pid"
}
stop() { # stop NAME [SECONDS]
  local p b
  if alive "$1"; then
    read -r p b <"$RUN/$1.pid"
    kill "$p" 2>/dev/null
    wait_for "${2:-10}" "" gone "$p" "$b" || {
      say "$1 ($p) did not stop, killing it"
      kill -9 "$p" 2>/dev/null
      wait_for 5 "$1 to die" gone "$p" "$b"
    }
  fi
  rm -f "$RUN/$1.pid"
}
gone() { [ "$(birth "$1")" != "$2" ]; }
wait_for() { # wait_for SECONDS WHAT CMD... : poll with a deadline; WHAT empty: say nothing
  local end=$(($(date +%s) + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$(date +%s)" -lt "$end" ] || { [ -z "$what" ] || say "timeout waiting for $what"; return 1; }
    sleep 0.05
  done
}
