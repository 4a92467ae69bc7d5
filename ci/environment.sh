# Sourced by ci/test and ci/quickstart: find a Python, make an environment, say clearly what is missing.

# Print one clear message and end.
die() {
    printf '\n%s\n' "$*" >&2
    exit 1
}

# Set PYTHON to the first interpreter that is at least 3.10 and can make environments.
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python python3.13 python3.12 python3.11 python3.10; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            PYTHON=$candidate
            return
        fi
    done
    die "This needs Python 3.10 or newer with venv and pip, and found none.
Install one (on Debian or Ubuntu: apt-get install python3 python3-venv python3-pip), or name it: PYTHON=/path/to/python bash $0"
}

# Make the environment $1 unless a whole one is there: a Ctrl-C half-way leaves no trap behind.
make_environment() {
    local folder=$1
    if ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
        find_python
        echo "Making $folder with $("$PYTHON" --version)"
        "$PYTHON" -m venv --clear "$folder" || die "Could not make the environment $folder. Is there room on the disk, and may you write here?"
    fi
}

# Return whether a switch of pip's is on.
is_on() {
    case "${1,,}" in "" | 0 | n | no | f | false | off) return 1 ;; esac
}

# Say that packages cannot be had ($1), what to do about it ($2), where pip's words are ($3), and what lacks (the rest).
without_index() {
    local why=$1 mend=$2 log=$3
    shift 3
    die "$why, and this still has to be installed:
    ${*}
$mend
    bash $0
again: it goes on where it stopped. Without a network, put the wheels in a folder and name it:
    PIP_NO_INDEX=1 PIP_FIND_LINKS=/that/folder bash $0
(pip's own words are in $log)"
}

# Install into environment $1 the rest of the arguments; pip's own words are shown only where they help.
install_into() {
    local folder=$1 log
    shift
    log=$folder/pip.log
    if "$folder/bin/python" -m pip install --disable-pip-version-check --retries 2 "$@" >"$log" 2>&1; then return; fi
    # pip reports an index that it cannot reach in the middle, and of conflicts or no versions at the end.
    if grep -qE 'NewConnectionError|Connection refused|Name or service|name resolution|Network is unreachable|ProxyError|timed out|Tunnel connection' "$log"; then
        without_index "There is no network, or the package index cannot be reached" "Connect, and run" "$log" "$@"
    fi
    if is_on "${PIP_NO_INDEX:-}" && grep -q 'No matching distribution' "$log"; then
        local why="PIP_NO_INDEX is set, so no package index is asked"
        if [ -n "${PIP_FIND_LINKS:-}" ]; then why+=", and $PIP_FIND_LINKS does not have all"; fi
        without_index "$why" "Unset it, and run" "$log" "$@"
    fi
    grep -v '^WARNING' "$log" | tail -n 15 >&2
    die "pip could not install this (all of its words are in $log):
    ${*}"
}

# Let uv look where pip looks: it reads none of pip's settings.
share_pip_settings() {
    local pip="$1/bin/python -m pip" found
    found=${PIP_FIND_LINKS:-$($pip config get global.find-links 2>/dev/null)} || found=
    if [ -n "$found" ] && [ -z "${UV_FIND_LINKS:-}" ]; then export UV_FIND_LINKS=${found// /,}; fi
    found=${PIP_INDEX_URL:-$($pip config get global.index-url 2>/dev/null)} || found=
    if [ -n "$found" ] && [ -z "${UV_DEFAULT_INDEX:-}" ]; then export UV_DEFAULT_INDEX=$found; fi
    if [ -n "${PIP_NO_INDEX:-}" ]; then export UV_NO_INDEX=1; fi
    if [ -n "${PIP_CERT:-}" ] && [ -z "${SSL_CERT_FILE:-}" ]; then export SSL_CERT_FILE=$PIP_CERT; fi
}

# Print a digest of the given files: what was installed for it need not be installed again.
digest() {
    cat "$@" | cksum | tr ' ' '-'
}
