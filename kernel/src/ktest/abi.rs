//! Trials of the Linux side: archives, the file tree, program files, starting programs.

use alloc::{boxed::Box, format, vec, vec::Vec};

use linux_abi::{errno::Errno, raw::general as abi};
use mm::{PAGE_BYTES, Prot, addr::to_usize};

use super::Trial;
use crate::{
    exec::{
        ExecError,
        elf::{self, ElfError},
        load_file,
        stack::{Facts, InitialStack, StackError},
    },
    platform::mm,
    task::process::{self, Outcome},
    vfs::{
        cpio::{CpioError, Reader},
        initramfs::{Unpacked, unpack},
        tree::{Kind, LastLink, Nobody, Place, Tree},
    },
};

crate::ktest::trials! {
    Trial::new("cpio::archives_follow_one_another", archives_follow_one_another),
    Trial::new("cpio::damage_is_named_and_ends_the_reading", damage_is_named),
    Trial::new("cpio::any_truncation_is_noticed", any_truncation_is_noticed),
    Trial::new("initramfs::a_later_file_replaces_an_earlier_one", later_file_wins),
    Trial::new("initramfs::paths_cannot_leave_the_root", paths_cannot_leave_the_root),
    Trial::new("initramfs::hard_links_share_their_bytes", hard_links_share),
    Trial::new("tree::links_are_followed_but_not_for_ever", links_are_followed),
    Trial::new("tree::walks_fail_as_on_linux", walks_fail_as_on_linux),
    Trial::new("elf::a_good_file_is_taken_apart", good_file),
    Trial::new("elf::what_is_wrong_is_named", wrong_files),
    Trial::new("elf::any_damage_to_the_headers_is_survived", any_damage_is_survived),
    Trial::new("exec::the_stack_is_laid_out_as_linux_does", stack_layout),
    Trial::new("exec::too_long_arguments_are_refused", long_arguments),
    Trial::new("exec::a_program_runs_and_leaves_nothing", program_runs),
    Trial::new("exec::failure_leaves_nothing", failure_leaves_nothing),
    Trial::new("exec::every_failing_allocation_is_survived", failing_allocations),
}

/// A number that fits its field.
fn number(value: usize) -> u32 {
    u32::try_from(value).expect("a small number")
}

/// One entry of a cpio archive, in the "newc" form.
fn entry(name: &str, mode: u32, (ino, nlink): (u32, u32), data: &[u8]) -> Vec<u8> {
    let fields = [
        ino,
        mode,
        0,
        0,
        nlink,
        0,
        number(data.len()),
        0,
        0,
        0,
        0,
        number(name.len()) + 1,
        0,
    ];
    let mut bytes = b"070701".to_vec();
    fields
        .iter()
        .for_each(|field| bytes.extend(format!("{field:08x}").bytes()));
    bytes.extend(name.bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn file(name: &str, data: &str) -> Vec<u8> {
    entry(name, abi::S_IFREG | 0o755, (0, 1), data.as_bytes())
}

fn link(name: &str, target: &str) -> Vec<u8> {
    entry(name, abi::S_IFLNK | 0o777, (0, 1), target.as_bytes())
}

fn trailer() -> Vec<u8> {
    entry("TRAILER!!!", 0, (0, 1), b"")
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), trailer()].concat()
}

/// A tree made from an archive, which stays for ever: trials are few and archives small.
fn tree(archives: Vec<u8>) -> (Tree, Unpacked) {
    let mut tree = Tree::new();
    let unpacked = unpack(&mut tree, archives.leak());
    (tree, unpacked)
}

fn contents(tree: &Tree, path: &str) -> Result<&'static [u8], Errno> {
    let place = tree.walk(Place::ROOT, path.as_bytes(), LastLink::Follow, &Nobody)?;
    match tree.node(place.node).kind() {
        Kind::Regular(bytes) => Ok(bytes),
        _ => Err(Errno::EISDIR),
    }
}

fn archives_follow_one_another() {
    let first = archive(&[file("a", "one")]);
    let second = archive(&[file("b", "two"), file("c", "")]);
    let both = [first, vec![0; 300], second, vec![0; 12]].concat();
    let entries: Vec<_> = Reader::new(&both)
        .map(|entry| entry.expect("a good archive"))
        .collect();
    let names: Vec<_> = entries
        .iter()
        .map(|entry| (entry.archive, entry.name, entry.data))
        .collect();
    assert_eq!(
        names,
        [(0, &b"a"[..], &b"one"[..]), (1, b"b", b"two"), (1, b"c", b"")]
    );
    assert_eq!(Reader::new(b"").count(), 0);
}

/// The error that ends the reading of `bytes`, and the entries before it.
fn read(bytes: &[u8]) -> (usize, Option<CpioError>) {
    let mut reader = Reader::new(bytes);
    let mut good = 0;
    let error = reader.by_ref().find_map(|entry| {
        good += usize::from(entry.is_ok());
        entry.err()
    });
    assert!(reader.next().is_none(), "an error ends the reading");
    (good, error)
}

fn damage_is_named() {
    let first = file("a", "one");
    let at = first.len();
    let damaged = |change: fn(&mut Vec<u8>)| {
        let mut second = file("b", "two");
        change(&mut second);
        read(&[first.clone(), second, trailer()].concat())
    };
    assert_eq!(damaged(|_| ()), (2, None));
    assert_eq!(
        damaged(|entry| entry[0] = b'x'),
        (1, Some(CpioError::BadMagic(at)))
    );
    assert_eq!(
        damaged(|entry| entry[20] = b'+'),
        (1, Some(CpioError::BadNumber(at)))
    );
    assert_eq!(
        damaged(|entry| entry[54] = b'f'),
        (1, Some(CpioError::Truncated(at)))
    );
    assert_eq!(
        damaged(|entry| entry[94..102].copy_from_slice(b"00000001")),
        (1, Some(CpioError::BadName(at)))
    );
    assert_eq!(
        damaged(|entry| entry[94..102].copy_from_slice(b"ffffffff")),
        (1, Some(CpioError::BadName(at)))
    );
    assert_eq!(read(&first), (1, Some(CpioError::NoTrailer(at))));
}

fn any_truncation_is_noticed() {
    let whole = archive(&[file("a", "one"), file("bin/b", "some more bytes")]);
    assert_eq!(read(&whole), (2, None));
    // Only the padding behind the trailer may be missing.
    let needed = whole.len() - whole.iter().rev().take_while(|byte| **byte == 0).count() + 1;
    for len in 1..needed {
        let (good, error) = read(&whole[..len]);
        assert!(error.is_some(), "cut at {len}: {good} entries and no error");
    }
}

fn later_file_wins() {
    let first = archive(&[file("bin/x", "old"), file("bin/y", "stays")]);
    let second = archive(&[file("/bin//./x", "new")]);
    let (tree, unpacked) = tree([first, second].concat());
    assert_eq!(unpacked, Unpacked { taken: 3, refused: 0 });
    assert_eq!(contents(&tree, "/bin/x"), Ok(&b"new"[..]));
    assert_eq!(contents(&tree, "/bin/y"), Ok(&b"stays"[..]));
}

fn paths_cannot_leave_the_root() {
    let entries = [
        file("../outside", "x"),
        file("bin/../../x", "x"),
        file("ok", "fine"),
        link("up", "../../.."),
        file("ok/x", "x"),
    ];
    let (tree, unpacked) = tree(archive(&entries));
    assert_eq!(unpacked, Unpacked { taken: 2, refused: 3 });
    assert_eq!(contents(&tree, "ok"), Ok(&b"fine"[..]));
    // A link may point above the root; there is nothing above it.
    assert_eq!(contents(&tree, "/up/ok"), Ok(&b"fine"[..]));
}

fn hard_links_share() {
    let mode = abi::S_IFREG | 0o644;
    // Of the names of one file only the last carries the bytes.
    let entries = [
        entry("one", mode, (9, 2), b""),
        entry("two", mode, (9, 2), b"shared"),
    ];
    let other = archive(&[entry("three", mode, (9, 2), b"not the same archive")]);
    let (tree, _) = tree([archive(&entries), other].concat());
    assert_eq!(contents(&tree, "one"), Ok(&b"shared"[..]));
    assert_eq!(contents(&tree, "two"), Ok(&b"shared"[..]));
    assert_eq!(contents(&tree, "three"), Ok(&b"not the same archive"[..]));
    let place = tree
        .walk(Place::ROOT, b"one", LastLink::Follow, &Nobody)
        .expect("it is there");
    assert_eq!(tree.node(place.node).nlink(), 2);
}

fn links_are_followed() {
    let (tree, _) = tree(archive(&[
        file("usr/bin/x", "found"),
        link("bin", "usr/bin"),
        link("absolute", "/bin/x"),
        link("usr/relative", "../bin/x"),
        link("ring", "gnir"),
        link("gnir", "ring"),
        file("bin/y", "through a link"),
    ]));
    for path in ["/bin/x", "absolute", "usr/relative", "/bin/../bin/./x"] {
        assert_eq!(contents(&tree, path), Ok(&b"found"[..]), "{path}");
    }
    assert_eq!(contents(&tree, "/usr/bin/y"), Ok(&b"through a link"[..]));
    assert_eq!(contents(&tree, "ring"), Err(Errno::ELOOP));
    let kept = tree
        .walk(Place::ROOT, b"ring", LastLink::Keep, &Nobody)
        .expect("the link itself");
    assert!(matches!(tree.node(kept.node).kind(), Kind::Symlink(_)));
}

fn walks_fail_as_on_linux() {
    let (tree, _) = tree(archive(&[file("dir/file", "x")]));
    let walk = |path: &str| {
        tree.walk(Place::ROOT, path.as_bytes(), LastLink::Follow, &Nobody)
            .map(drop)
    };
    assert_eq!(walk(""), Err(Errno::ENOENT));
    assert_eq!(walk("none"), Err(Errno::ENOENT));
    assert_eq!(walk("dir/none/x"), Err(Errno::ENOENT));
    assert_eq!(walk("dir/file/x"), Err(Errno::ENOTDIR));
    assert_eq!(walk("dir/file/"), Err(Errno::ENOTDIR));
    assert_eq!(walk("dir/file/.."), Err(Errno::ENOTDIR));
    assert_eq!(walk(&"x".repeat(256)), Err(Errno::ENAMETOOLONG));
    assert_eq!(walk("/../../dir/./file"), Ok(()));
}

const HEADERS: u64 = 64 + 56;
pub(super) const BASE: u64 = 0x40_0000;
/// `mov edi, 7; mov eax, 60; syscall`: exit(7).
pub(super) const EXIT_7: &[u8] = &[0xbf, 7, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];

/// A program of one segment: the headers, then `code`, then zeroes up to `memory` bytes.
pub(super) fn program(code: &[u8], memory: u64) -> Vec<u8> {
    let length = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    [BASE + HEADERS, 64, 0]
        .iter()
        .for_each(|word| elf.extend(word.to_le_bytes()));
    elf.extend([0; 4]);
    [64_u16, 56, 1, 64, 0, 0]
        .iter()
        .for_each(|half| elf.extend(half.to_le_bytes()));
    elf.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    [0, BASE, BASE, length, memory.max(length), PAGE_BYTES]
        .iter()
        .for_each(|word| elf.extend(word.to_le_bytes()));
    elf.extend(code);
    elf
}

const GIB: u64 = 1 << 30;

fn good_file() {
    let image = elf::parse(&program(EXIT_7, 0x3000), GIB).expect("a good file");
    assert_eq!(image.entry.as_u64(), BASE + HEADERS);
    assert_eq!((image.phdr, image.phnum, image.phent), (BASE + 64, 1, 56));
    assert_eq!(image.brk.as_u64(), BASE + 0x3000);
    assert_eq!(image.stack_prot, Prot::READ | Prot::WRITE);
    let [segment] = image.segments[..] else {
        panic!("one segment")
    };
    assert_eq!(
        (segment.file_start, segment.file_end),
        (0, to_usize(HEADERS) + EXIT_7.len())
    );
    assert_eq!(segment.prot, Prot::READ | Prot::WRITE | Prot::EXEC);
}

/// Writes a number into a file.
fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = program(EXIT_7, 0);
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

fn wrong_files() {
    let refused = |file: &[u8]| elf::parse(file, GIB).map(drop).expect_err("a bad file");
    let corrupt = |file: &[u8]| matches!(refused(file), ElfError::Corrupt(_));
    assert_eq!(refused(b""), ElfError::NotElf);
    assert_eq!(refused(b"text"), ElfError::NotElf);
    assert_eq!(refused(b"#!/bin/sh\n"), ElfError::Script);
    assert_eq!(refused(&program(EXIT_7, 0)[..40]), ElfError::Truncated("header"));
    assert_eq!(
        refused(&program(EXIT_7, 0)[..100]),
        ElfError::Truncated("program headers")
    );
    assert_eq!(
        refused(&program(EXIT_7, 0)[..125]),
        ElfError::Truncated("segments")
    );
    assert_eq!(refused(&patched(4, &[1])), ElfError::NotElf64);
    assert_eq!(refused(&patched(5, &[2])), ElfError::NotElf64);
    assert_eq!(refused(&patched(16, &[1])), ElfError::NotProgram(1));
    assert_eq!(refused(&patched(18, &[183])), ElfError::OtherMachine(183));
    assert_eq!(refused(&patched(64, &[3])), ElfError::Dynamic);
    assert_eq!(
        refused(&patched(32, &u64::MAX.to_le_bytes())),
        ElfError::Truncated("program headers")
    );
    assert_eq!(
        refused(&program(EXIT_7, 2 * GIB)),
        ElfError::TooLarge { bytes: 2 * GIB }
    );
    assert!(corrupt(&patched(20, &[9])), "version");
    assert!(corrupt(&patched(24, &u64::MAX.to_le_bytes())), "entry point");
    assert!(corrupt(&patched(54, &[55])), "size of a program header");
    assert!(corrupt(&patched(56, &[0])), "no program headers");
    assert!(corrupt(&patched(64, &[0])), "nothing to load");
    assert!(
        corrupt(&patched(72, &[1])),
        "file offset off the address's page grid"
    );
    assert!(
        corrupt(&patched(80, &(1_u64 << 47).to_le_bytes())),
        "address outside user space"
    );
    assert!(
        corrupt(&patched(96, &GIB.to_le_bytes())),
        "larger in the file than in memory"
    );
    assert!(corrupt(&patched(104, &u64::MAX.to_le_bytes())), "size that wraps");
    assert!(corrupt(&patched(112, &3_u64.to_le_bytes())), "alignment");
}

fn any_damage_is_survived() {
    let good = program(EXIT_7, 0x5000);
    for at in 0..to_usize(HEADERS) {
        for value in 0..=u8::MAX {
            let mut file = good.clone();
            file[at] = value;
            if let Ok(image) = elf::parse(&file, GIB) {
                for segment in image.segments {
                    assert!(segment.file_start <= segment.file_end && segment.file_end <= file.len());
                    assert!(segment.pages.end().as_u64() <= mm::USER_END);
                }
            }
        }
    }
}

fn word(stack: &InitialStack, index: u64) -> u64 {
    let at = to_usize(index) * 8;
    let bytes = stack.bytes()[at..at + 8].try_into().expect("eight bytes");
    u64::from_le_bytes(bytes)
}

/// The string at an address on the stack.
fn string_at(stack: &InitialStack, addr: u64) -> &[u8] {
    let at = to_usize(addr - stack.pointer().as_u64());
    stack.bytes()[at..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default()
}

fn stack_layout() {
    let image = elf::parse(&program(EXIT_7, 0), GIB).expect("a good file");
    let facts = Facts {
        image: &image,
        path: b"/bin/x",
        hwcap: 1,
        hwcap2: 2,
        min_signal_stack: 2048,
        random: [7; 16],
    };
    for count in 0..4 {
        let argv: Vec<&[u8]> = [&b"x"[..], b"", b"long argument"]
            .into_iter()
            .take(count)
            .collect();
        let stack = InitialStack::build(&argv, &[b"A=1"], &facts).expect("short enough");
        assert_eq!(stack.pointer().as_u64() % 16, 0, "{count} arguments");
        assert_eq!(
            stack.pointer().as_u64() + stack.bytes().len() as u64,
            mm::USER_END
        );
        let count = count as u64;
        assert_eq!(word(&stack, 0), count);
        for (index, arg) in (1..).zip(&argv) {
            assert_eq!(string_at(&stack, word(&stack, index)), *arg);
        }
        assert_eq!(word(&stack, count + 1), 0);
        assert_eq!(string_at(&stack, word(&stack, count + 2)), b"A=1");
        assert_eq!(word(&stack, count + 3), 0);
        let auxv: Vec<(u64, u64)> = (0..)
            .map(|pair| {
                (
                    word(&stack, count + 4 + 2 * pair),
                    word(&stack, count + 5 + 2 * pair),
                )
            })
            .take_while(|(key, _)| *key != 0)
            .collect();
        let value = |key: u32| {
            auxv.iter()
                .find(|(known, _)| *known == u64::from(key))
                .map(|(_, value)| *value)
        };
        assert_eq!(value(linux_abi::raw::auxvec::AT_ENTRY), Some(BASE + HEADERS));
        assert_eq!(value(linux_abi::raw::auxvec::AT_PHDR), Some(BASE + 64));
        let path = value(linux_abi::raw::auxvec::AT_EXECFN).expect("the path");
        assert_eq!(string_at(&stack, path), b"/bin/x");
        assert_eq!(auxv.len(), 19, "{auxv:x?}");
    }
}

fn long_arguments() {
    let free = mm().nr_free_pages();
    let file = program(EXIT_7, 0);
    let long = vec![b'a'; 200 << 10];
    let result = load_file(&file, b"/x", &[&long], &[]).map(drop);
    assert!(
        matches!(result, Err(ExecError::Stack(StackError::TooLong { .. }))),
        "{result:?}"
    );
    let many: Vec<&[u8]> = vec![b"argument"; 150_000];
    assert_eq!(
        load_file(&file, b"/x", &many, &[])
            .map(drop)
            .map_err(ExecError::errno),
        Err(Errno::E2BIG)
    );
    drop((long, many));
    // The heap may have grown; programs have not.
    assert!(mm().nr_free_pages() <= free);
}

fn program_runs() {
    let file = program(EXIT_7, 1 << 20);
    let run = || {
        let program = load_file(&file, b"/bin/seven", &[b"seven"], &[]).expect("memory is there");
        let process = process::start(program).expect("memory is there");
        assert_eq!(process.wait(), Outcome::Exited(7));
        assert!(process::find(process.pid()).is_none());
    };
    // The first run may let the heap grow.
    run();
    let free = mm().nr_free_pages();
    (0..20).for_each(|_| run());
    assert_eq!(mm().nr_free_pages(), free);
}

fn failure_leaves_nothing() {
    let free = mm().nr_free_pages();
    let files: [Box<[u8]>; 4] = [
        program(EXIT_7, 1 << 46).into(),
        patched(64, &[3]).into(),
        patched(18, &[183]).into(),
        program(EXIT_7, 0)[..125].into(),
    ];
    for file in &files {
        let error = load_file(file, b"/x", &[b"x"], &[])
            .map(drop)
            .expect_err("a bad file");
        assert!(matches!(error.errno(), Errno::ENOEXEC | Errno::ENOMEM), "{error}");
    }
    assert_eq!(mm().nr_free_pages(), free);
}

fn failing_allocations() {
    let file = program(EXIT_7, 1 << 20);
    let attempt = || load_file(&file, b"/x", &[b"x"], &[]).map(drop);
    attempt().expect("memory is there");
    let free = mm().nr_free_pages();
    let mut failures = 1;
    loop {
        mm().inject_alloc_failure(Some(failures));
        let result = attempt();
        let struck = !mm().alloc_failure_pending();
        mm().inject_alloc_failure(None);
        assert_eq!(mm().nr_free_pages(), free, "allocation {failures} failed");
        if !struck {
            assert_eq!(result, Ok(()));
            break;
        }
        assert_eq!(result, Err(ExecError::NoMemory), "allocation {failures}");
        failures += 1;
    }
    assert!(failures > 5, "only {failures} allocations were tried");
}
