//! What a program finds on its stack.

use std::ffi::CStr;

use crate::Verdict;

/// Prints arguments and environment, and checks the auxiliary vector.
pub(crate) fn check(words: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    words
        .iter()
        .enumerate()
        .for_each(|(index, word)| println!("arg {index} {word:?}"));
    let mut environment: Vec<(String, String)> = std::env::vars().collect();
    environment.sort();
    environment
        .iter()
        .for_each(|(name, value)| println!("env {name}={value}"));

    verdict.equal("AT_PAGESZ", auxv(libc::AT_PAGESZ), 4096);
    verdict.equal("AT_CLKTCK", auxv(libc::AT_CLKTCK), 100);
    verdict.equal("AT_SECURE", auxv(libc::AT_SECURE), 0);
    verdict.equal("AT_BASE: no interpreter", auxv(libc::AT_BASE), 0);
    verdict.equal("AT_PHENT", auxv(libc::AT_PHENT), 56);
    verdict.holds("AT_PHNUM", auxv(libc::AT_PHNUM) > 2);
    verdict.holds("AT_ENTRY is ours", is_near(auxv(libc::AT_ENTRY)));
    verdict.holds("AT_PHDR is ours", is_near(auxv(libc::AT_PHDR)));
    verdict.holds(
        "AT_MINSIGSTKSZ holds the vector registers",
        auxv(libc::AT_MINSIGSTKSZ) >= 1024,
    );
    verdict.holds("AT_HWCAP tells of SSE2", auxv(libc::AT_HWCAP) >> 26 & 1 == 1);
    verdict.equal(
        "AT_PLATFORM",
        string(auxv(libc::AT_PLATFORM)).as_deref(),
        Some("x86_64"),
    );
    let path = string(auxv(libc::AT_EXECFN));
    verdict.holds(
        "AT_EXECFN names the program",
        path.is_some_and(|path| path.ends_with("abi-check")),
    );
    verdict.holds(
        "AT_RANDOM is not zero",
        random().is_some_and(|bytes| bytes != [0; 16]),
    );
    let exe = std::fs::read_link("/proc/self/exe");
    verdict.holds(
        "/proc/self/exe names the program",
        exe.is_ok_and(|path| path.ends_with("abi-check")),
    );
    let local = 0_u8;
    let stack = (&raw const local).addr() as u64;
    verdict.holds("the stack is at the top of user space", stack >> 40 == 0x7f);
    verdict
}

fn auxv(key: u64) -> u64 {
    // SAFETY: only reads the vector.
    unsafe { libc::getauxval(key) }
}

/// Whether an address may be of this program: not far from one of its functions.
fn is_near(address: u64) -> bool {
    let here = (check as *const ()).addr() as u64;
    address.abs_diff(here) < 64 << 20
}

fn string(address: u64) -> Option<String> {
    let pointer = std::ptr::with_exposed_provenance::<libc::c_char>(usize::try_from(address).ok()?);
    if pointer.is_null() {
        return None;
    }
    // SAFETY: the vector says that a string is there; it lies on the stack for the program's life.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().ok().map(str::to_owned)
}

fn random() -> Option<[u8; 16]> {
    let pointer = std::ptr::with_exposed_provenance::<[u8; 16]>(usize::try_from(auxv(libc::AT_RANDOM)).ok()?);
    // SAFETY: the vector says that sixteen bytes are there, or holds null.
    unsafe { pointer.as_ref() }.copied()
}
