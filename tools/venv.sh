# Sourced by ./posthouse, ./run-tests and .ci/run: one virtual environment in the checkout, filled from a lock file.

# prepare_venv CHECKOUT LOCKFILE [DIRECTORY PYTHON]: installs what the lock file names, and Posthouse from src/, into DIRECTORY
# (CHECKOUT/.venv), which PYTHON (python3) makes. Costs nothing when done before.
prepare_venv() {
    venv=${3:-$1/.venv} interpreter=${4:-python3}
    stamp=$venv/.installed-from-$2
    if [ ! -x "$venv/bin/python" ]; then
        "$interpreter" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "posthouse: needs Python 3.11 or newer as python3; this is $("$interpreter" --version 2>&1)" >&2
            return 2
        }
        "$interpreter" -m venv "$venv" || {
            rm -rf "$venv"
            echo "posthouse: python3 cannot make a virtual environment here; on Debian and Ubuntu: apt-get install python3-venv" >&2
            return 2
        }
    fi
    cat "$1/$2" "$1/pyproject.toml" | cmp -s - "$stamp" && return 0
    echo "posthouse: installing what $2 names into $venv, once" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --requirement "$1/$2"
    # The build back end came from the lock file too, so nothing is downloaded here.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable "$1"
    cat "$1/$2" "$1/pyproject.toml" >"$stamp"
}
