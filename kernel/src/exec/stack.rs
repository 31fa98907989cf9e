//! The stack a program begins with.
//!
//! ```text
//!   USER_END  8 zero bytes
//!             path of the program, NUL
//!             environment strings, argument strings, each NUL-terminated, in order upwards
//!             "x86_64", NUL
//!             16 random bytes
//!             (alignment)
//!             auxv: pairs of words, AT_NULL last
//!             pointers to the environment strings, 0
//!             pointers to the argument strings, 0
//!   rsp ----> number of arguments                            rsp is a multiple of 16
//! ```
//! Built as bytes, without any memory of the program, and put in place in one go.

use alloc::vec::Vec;
use core::fmt;

use linux_abi::raw::auxvec;
use mm::{PAGE_BYTES, USER_END, VirtAddr, VirtRange};

use super::elf::Image;
use crate::heap::{self, NoMemory};

/// Most bytes of arguments and environment, terminators and pointers included: a quarter of the stack's limit.
const STRINGS_MAX: usize = 2 << 20;
/// Longest single string, its terminator included.
const STRING_MAX: usize = 32 * mm::PAGE_SIZE;
/// Room that is mapped below what is filled.
const ROOM: u64 = 128 << 10;
/// Bytes on it besides strings and the pointers to them, at most: auxiliary vector, counts, terminators, alignment.
const OTHERS: usize = 1024;
/// Largest size that the stack may grow to.
pub const STACK_LIMIT: u64 = 8 << 20;

/// Why there can be no such stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StackError {
    /// Arguments and environment are longer than a stack may begin with.
    TooLong {
        /// Bytes they have.
        bytes: usize,
    },
    /// There is no memory to put it together in.
    NoMemory,
}

impl From<NoMemory> for StackError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl fmt::Display for StackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { bytes } => write!(f, "arguments and environment of {bytes} bytes are too long"),
            Self::NoMemory => f.write_str("not enough memory for arguments and environment"),
        }
    }
}

/// What the program is told about itself and the machine.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The program's file.
    pub image: &'a Image,
    /// Path it was started by.
    pub path: &'a [u8],
    /// Features of the processor: CPUID 1 EDX.
    pub hwcap: u64,
    /// Features that the kernel had to enable.
    pub hwcap2: u64,
    /// Smallest stack on which a signal can be delivered.
    pub min_signal_stack: u64,
    /// Random bytes for the program's own use.
    pub random: [u8; 16],
}

/// The top of a stack, as bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InitialStack {
    bytes: Vec<u8>,
}

impl InitialStack {
    /// Where the stack ends.
    pub const TOP: u64 = USER_END;

    /// Builds it.
    ///
    /// # Errors
    /// See [`StackError`].
    pub fn build(argv: &[&[u8]], env: &[&[u8]], facts: &Facts<'_>) -> Result<Self, StackError> {
        let strings = argv.iter().chain(env);
        let bytes = strings
            .clone()
            .map(|string| string.len() + 1 + size_of::<u64>())
            .sum();
        if bytes > STRINGS_MAX || strings.clone().any(|string| string.len() >= STRING_MAX) {
            return Err(StackError::TooLong { bytes });
        }
        // Pointers were counted with their strings; what comes besides is short.
        let mut top = Downward::new(bytes + facts.path.len() + OTHERS)?;
        top.push(&[0; 8]);
        let path = top.push_string(facts.path);
        let env = top.push_strings(env)?;
        let argv = top.push_strings(argv)?;
        let platform = top.push_string(b"x86_64");
        let random = top.push(&facts.random);

        let mut words: Vec<u64> = heap::try_vec(argv.len() + env.len() + OTHERS / size_of::<u64>())?;
        words.push(argv.len() as u64);
        words.extend(argv);
        words.push(0);
        words.extend(env);
        words.push(0);
        words.extend(
            auxv(facts, path, platform, random)
                .into_iter()
                .flat_map(|(key, value)| [u64::from(key), value]),
        );
        top.align_for(words.len());
        for word in words.iter().rev() {
            top.push(&word.to_le_bytes());
        }
        Ok(Self {
            bytes: top.into_bytes(),
        })
    }

    /// The stack pointer to begin with.
    #[must_use]
    pub fn pointer(&self) -> VirtAddr {
        VirtAddr::new(Self::TOP - self.bytes.len() as u64)
    }

    /// The bytes from the stack pointer up.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The pages to map at first: what is filled, and some room to grow into.
    #[must_use]
    pub fn pages(&self) -> VirtRange {
        let start = VirtAddr::new(self.pointer().as_u64() - ROOM).align_down(PAGE_BYTES);
        VirtRange::new(start, VirtAddr::new(Self::TOP)).unwrap_or_else(|| VirtRange::page(start))
    }
}

/// The auxiliary vector: what musl and glibc read, and what Linux gives besides. No vDSO.
fn auxv(facts: &Facts<'_>, path: u64, platform: u64, random: u64) -> [(u32, u64); 20] {
    let image = facts.image;
    [
        (auxvec::AT_HWCAP, facts.hwcap),
        (auxvec::AT_PAGESZ, PAGE_BYTES),
        (auxvec::AT_CLKTCK, crate::syscall::time::USER_HZ),
        (auxvec::AT_PHDR, image.phdr),
        (auxvec::AT_PHENT, image.phent),
        (auxvec::AT_PHNUM, image.phnum),
        (auxvec::AT_BASE, 0),
        (auxvec::AT_FLAGS, 0),
        (auxvec::AT_ENTRY, image.entry.as_u64()),
        (auxvec::AT_UID, 0),
        (auxvec::AT_EUID, 0),
        (auxvec::AT_GID, 0),
        (auxvec::AT_EGID, 0),
        (auxvec::AT_SECURE, 0),
        (auxvec::AT_RANDOM, random),
        (auxvec::AT_HWCAP2, facts.hwcap2),
        (auxvec::AT_EXECFN, path),
        (auxvec::AT_PLATFORM, platform),
        (auxvec::AT_MINSIGSTKSZ, facts.min_signal_stack),
        (auxvec::AT_NULL, 0),
    ]
}

/// Bytes that are written from the top down; kept in reverse until they are complete.
struct Downward {
    reversed: Vec<u8>,
}

impl Downward {
    /// With room for `bytes`.
    fn new(bytes: usize) -> Result<Self, NoMemory> {
        let reversed = heap::try_vec(bytes)?;
        Ok(Self { reversed })
    }

    /// Puts `bytes` below what is there, and returns their address.
    fn push(&mut self, bytes: &[u8]) -> u64 {
        self.reversed.extend(bytes.iter().rev());
        InitialStack::TOP - self.reversed.len() as u64
    }

    fn push_string(&mut self, string: &[u8]) -> u64 {
        self.push(&[0]);
        self.push(string)
    }

    /// Puts strings so that the first has the lowest address, as programs that rewrite their arguments expect.
    fn push_strings(&mut self, strings: &[&[u8]]) -> Result<Vec<u64>, NoMemory> {
        let mut addresses = heap::try_vec(strings.len())?;
        addresses.extend(strings.iter().rev().map(|string| self.push_string(string)));
        addresses.reverse();
        Ok(addresses)
    }

    /// Leaves a gap so that the address is a multiple of 16 after `words` more words.
    fn align_for(&mut self, words: usize) {
        let filled = self.reversed.len() + words * size_of::<u64>();
        self.reversed
            .resize(self.reversed.len() + filled.next_multiple_of(16) - filled, 0);
    }

    fn into_bytes(mut self) -> Vec<u8> {
        self.reversed.reverse();
        self.reversed
    }
}
