# Set-up steps shared by scripts/run and scripts/test. Sourced, not run.
#
# Everything that is there already is left alone: no package manager and no network is touched then.

say() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
}

die() {
    say "$@"
    exit 1
}

# setup_toolchain: the pinned toolchain of rust-toolchain.toml with every component and target.
#
# Where rustup's automatic installation is switched off, cargo is silent about a missing component or target and
# fails much later. Naming everything works with every version of rustup, and adds only what is missing.
setup_toolchain() {
    if ! command -v rustup >/dev/null 2>&1; then
        # An installation whose PATH line the shell has not read yet.
        if [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/rustup" ]; then
            PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
            export PATH
        else
            die "rustup is not installed: see https://rustup.rs, then run this again"
        fi
    fi
    toolchain_is_complete && return 0
    say "installing the Rust toolchain named in rust-toolchain.toml (about 1 GB, once)"
    # shellcheck disable=SC2046 # lists of words
    rustup toolchain install "$channel" --no-self-update --profile minimal \
        $(wanted components | tr -s ' ' '\n' | sed 's/^/--component /') \
        $(wanted targets | tr -s ' ' '\n' | sed 's/^/--target /') ||
        die "rustup could not install the toolchain: its message stands above"
}

toolchain_is_complete() {
    channel=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)
    rustup toolchain list 2>/dev/null | grep -q "^$channel-" || return 1
    components=$(rustup component list --toolchain "$channel" --installed 2>/dev/null) || return 1
    for component in $(wanted components); do
        printf '%s\n' "$components" | grep -q "^$component" || return 1
    done
    # Targets are components named rust-std-TARGET.
    for target in $(wanted targets); do
        printf '%s\n' "$components" | grep -q "^rust-std-$target\$" || return 1
    done
}

# wanted KEY: the strings of the list KEY of rust-toolchain.toml.
wanted() {
    sed -n "s/^$1 *= *\[\(.*\)\]/\1/p" rust-toolchain.toml | tr -d '",'
}

# missing PACKAGE...: those that stand for a file that is not there.
missing() {
    for package in "$@"; do
        case $package in
            qemu-system-x86) command -v qemu-system-x86_64 >/dev/null 2>&1 || echo "$package" ;;
            ovmf) has_ovmf || echo "$package" ;;
            busybox-static) is_static /bin/busybox || echo "$package" ;;
            gcc) command -v cc >/dev/null 2>&1 || echo "$package" ;;
            *) echo "$package" ;;
        esac
    done
}

has_ovmf() {
    for file in /usr/share/OVMF/OVMF_CODE*.fd /usr/share/edk2/*/OVMF_CODE*.fd /usr/share/edk2-ovmf/*/OVMF_CODE*.fd \
        /usr/share/qemu/ovmf-x86_64-code.bin; do
        [ -f "$file" ] && return 0
    done
    return 1
}

# is_static FILE: an ELF file without an interpreter.
is_static() {
    # The interpreter's name stands near the beginning of a dynamic program.
    [ -f "$1" ] && ! head -c 4096 "$1" | LC_ALL=C grep -aq '/ld-\(linux\|musl\)'
}

# install PACKAGE...: through apt, as root or with sudo that asks nothing. On failure the reason is in $obstacle.
install() {
    obstacle="install ${*} with your package manager"
    command -v apt-get >/dev/null 2>&1 || return 1
    # The lists of a fresh system are empty, so they are fetched first.
    command="apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $*"
    if [ "$(id -u)" -eq 0 ]; then
        as_root=
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        obstacle="type: sudo sh -c '$command'"
        return 1
    fi
    say "installing $* (apt-get)"
    obstacle="apt-get could not install ${*}: its message stands above"
    # shellcheck disable=SC2086 # $as_root is words, or none
    $as_root sh -c "$command" >&2
}

# require PACKAGE...: installs what is missing, or ends with the one thing left to do.
require() {
    lacking=$(missing "$@")
    [ -z "$lacking" ] && return 0
    # shellcheck disable=SC2086 # one word for each package
    install $lacking || die "something is missing: $obstacle"
}

# wish PACKAGE...: installs what is missing, or says what the tests will leave out.
wish() {
    lacking=$(missing "$@")
    [ -z "$lacking" ] && return 0
    # shellcheck disable=SC2086 # one word for each package
    install $lacking || say "warning: tests that need$(printf ' %s' $lacking) will report themselves as ignored: $obstacle"
}
