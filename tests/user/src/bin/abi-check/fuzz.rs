//! Every system call with wild pointers and lengths. The program must live on, and every answer must be a value or an
//! errno; what is more, the kernel must live on.
//!
//! Runs on Cleave only: on a Linux a wild call of the superuser might change the machine.

use std::{collections::BTreeMap, os::fd::AsRawFd};

use user::{PAGE, mapping::Mapping};

use crate::{Verdict, syscall};

/// Numbers are tried up to here: past the last that Linux 6.1 has.
const LAST: i64 = 470;
const CALLS: u64 = 30_000;

/// Calls that would end or stop this program by doing their job.
const NEVER: &[i64] = &[
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigreturn,
    libc::SYS_pause,
    // Children would go on with all this; an empty pipe is read for ever.
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_pipe,
    libc::SYS_pipe2,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
];

/// Makes numbers: xorshift, the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn pick(&mut self, from: &[u64]) -> u64 {
        from[usize::try_from(self.below(from.len() as u64)).unwrap_or(0)]
    }
}

/// Four pages for calls to read and write: two of zeroes, one read-only, one that nobody may touch. The last stays mapped,
/// so that no other mapping can take its place and be lost in the next round.
struct Scratch {
    pages: Mapping,
}

impl Scratch {
    fn new() -> std::io::Result<Self> {
        let pages = Mapping::anywhere(4 * PAGE)?;
        let scratch = Self { pages };
        scratch.refresh();
        Ok(scratch)
    }

    fn start(&self) -> u64 {
        self.pages.addr() as u64
    }

    fn end(&self) -> u64 {
        self.start() + (4 * PAGE) as u64
    }

    /// Puts the pages back, whatever a call did to them: all of it.
    fn refresh(&self) {
        let rw = (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned().into();
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED)
            .cast_unsigned()
            .into();
        let _ = syscall(
            libc::SYS_mmap,
            [self.start(), (4 * PAGE) as u64, rw, flags, u64::MAX, 0],
        );
        let _ = self.pages.protect(2 * PAGE..3 * PAGE, libc::PROT_READ);
        let _ = self.pages.protect(3 * PAGE..4 * PAGE, libc::PROT_NONE);
    }

    /// Whether a call that changes mappings may have this range: inside the scratch, or nowhere a program may be.
    fn may_change(&self, addr: u64, len: u64) -> bool {
        let end = addr.saturating_add(len.max(1)).saturating_add(PAGE as u64);
        (self.start() <= addr && end <= self.end())
            || addr >= 0x7fff_ffff_f000
            || !addr.is_multiple_of(PAGE as u64)
    }

    fn pointer(&self, random: &mut Random) -> u64 {
        let page = PAGE as u64;
        let start = self.start();
        random.pick(&[
            0,
            1,
            8,
            0xfff,
            start,
            start + 1,
            start + page - 1,
            start + 2 * page,
            start + 3 * page - 1,
            start + 3 * page - 8,
            start + 3 * page,
            0x7fff_ffff_efff,
            0x7fff_ffff_f000,
            0x7fff_ffff_ffff,
            0x8000_0000_0000,
            0xffff_7fff_ffff_ffff,
            0xffff_8880_0000_0000,
            0xffff_ffff_8000_0000,
            u64::MAX - 0xfff,
            u64::MAX - 7,
            u64::MAX,
        ])
    }
}

fn number(random: &mut Random) -> u64 {
    random.pick(&[
        0,
        1,
        2,
        3,
        7,
        8,
        24,
        100,
        4095,
        4096,
        4097,
        65536,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        1 << 32,
        1 << 46,
        1 << 47,
        i64::MAX.cast_unsigned(),
        1 << 63,
        u64::MAX - 4095,
        u64::MAX,
    ])
}

/// Whether these arguments would make the program lose what it needs, or wait for ever, by doing what was asked.
fn is_harmful(number: i64, args: &[u64; 6], scratch: &Scratch) -> bool {
    let fd = |index: usize| args[index] & 0xffff_ffff;
    match number {
        libc::SYS_munmap | libc::SYS_mprotect | libc::SYS_madvise | libc::SYS_pkey_mprotect => {
            !scratch.may_change(args[0], args[1])
        }
        libc::SYS_mmap | libc::SYS_mremap | libc::SYS_remap_file_pages | libc::SYS_shmat | libc::SYS_brk => {
            true
        }
        // Descriptors 0 to 2 are needed for the result.
        libc::SYS_close => fd(0) < 3,
        libc::SYS_dup2 | libc::SYS_dup3 => fd(1) < 3,
        libc::SYS_close_range => true,
        libc::SYS_write | libc::SYS_writev | libc::SYS_sendfile => (1..3).contains(&fd(0)),
        // The base of FS leads to everything a thread has.
        libc::SYS_arch_prctl => [0x1001, 0x1002].contains(&fd(0)),
        // Waiting is what these do if nothing is wrong with the arguments.
        libc::SYS_poll | libc::SYS_ppoll | libc::SYS_select | libc::SYS_pselect6 => true,
        libc::SYS_futex => args[1] & 0x7f == 0 || args[1] & 0x7f == 9,
        // Limits on descriptors and memory would be felt afterwards.
        libc::SYS_setrlimit | libc::SYS_prlimit64 => true,
        _ => false,
    }
}

/// Makes descriptor 0 stand for `/dev/null`.
fn put_stdin_away() -> Result<u64, i32> {
    let null = std::fs::File::open("/dev/null").map_err(|error| error.raw_os_error().unwrap_or(0))?;
    syscall(
        libc::SYS_dup2,
        [null.as_raw_fd().cast_unsigned().into(), 0, 0, 0, 0, 0],
    )
}

/// Runs it; the same seed makes the same calls.
pub(crate) fn check(words: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    let word = |index: usize| words.get(index).and_then(|word| word.parse().ok());
    let seed = word(0).unwrap_or(1_u64).max(1);
    let calls = word(1).unwrap_or(CALLS);
    let is_cleave = std::fs::read_to_string("/proc/version").is_ok_and(|version| version.contains("cleave"));
    if !is_cleave {
        verdict.holds(
            "this is Cleave (elsewhere such calls might change the machine)",
            false,
        );
        return verdict;
    }
    // What is read from stdin is somebody else's.
    verdict.holds("stdin can be put away", put_stdin_away().is_ok());
    let Ok(scratch) = Scratch::new() else {
        verdict.holds("four pages can be mapped", false);
        return verdict;
    };
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut answers: BTreeMap<i32, u64> = BTreeMap::new();
    let mut made = 0_u64;
    for _ in 0..calls {
        // Bound is small, so it fits.
        let call = i64::try_from(random.below(LAST.cast_unsigned())).unwrap_or(0);
        let args = std::array::from_fn(|_| {
            if random.below(2) == 0 {
                scratch.pointer(&mut random)
            } else {
                number(&mut random)
            }
        });
        let is_left_out = NEVER.contains(&call) || is_harmful(call, &args, &scratch);
        if is_left_out {
            continue;
        }
        let answer = syscall(call, args).err().unwrap_or(0);
        *answers.entry(answer).or_default() += 1;
        made += 1;
        scratch.refresh();
    }
    verdict.holds(&format!("seed {seed}: {made} calls were answered"), made > 0);
    for (errno, count) in answers {
        let name = if errno == 0 {
            "success".into()
        } else {
            std::io::Error::from_raw_os_error(errno).to_string()
        };
        println!("       {count:>7} {name}");
    }
    let page = Mapping::anywhere(PAGE);
    verdict.holds("memory can still be had", page.is_ok());
    verdict.holds(
        "/proc can still be read",
        std::fs::read("/proc/self/maps").is_ok(),
    );
    verdict
}
