//! The smallest programs there are: a static ELF file around a few bytes of machine code.

/// Where the file is mapped.
const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// A static x86_64 program that begins with `code`, mapped readable and executable as one segment.
pub(super) fn program(code: &[u8]) -> Vec<u8> {
    let length = HEADERS + code.len() as u64;
    let mut elf = Vec::new();
    // e_ident: 64 bit, little-endian, version 1.
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // e_type EXEC, e_machine x86_64, e_version.
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    // e_entry, e_phoff, e_shoff.
    for word in [BASE + HEADERS, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    // e_flags, then e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx.
    elf.extend([0; 4]);
    for half in [64_u16, 56, 1, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    // p_type LOAD, p_flags R+X, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align.
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, BASE, BASE, length, length, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

/// Writes through a null pointer: `xor eax, eax; mov [rax], eax`.
pub(super) const NULL_WRITE: &[u8] = &[0x31, 0xc0, 0x89, 0x00];
/// Jumps to address 0: `xor eax, eax; jmp rax`.
pub(super) const NULL_JUMP: &[u8] = &[0x31, 0xc0, 0xff, 0xe0];
/// Reads the kernel's half: `mov rax, 0xffff800000000000; mov eax, [rax]`.
pub(super) const KERNEL_READ: &[u8] = &[0x48, 0xb8, 0, 0, 0, 0, 0, 0x80, 0xff, 0xff, 0x8b, 0x00];
/// Divides by zero: `xor ecx, ecx; div ecx`.
pub(super) const DIVIDE_BY_ZERO: &[u8] = &[0x31, 0xc9, 0xf7, 0xf1];
/// An undefined instruction: `ud2`.
pub(super) const UNDEFINED: &[u8] = &[0x0f, 0x0b];
/// A privileged instruction: `cli`.
pub(super) const PRIVILEGED: &[u8] = &[0xfa];
/// A breakpoint without a debugger: `int3`.
pub(super) const BREAKPOINT: &[u8] = &[0xcc];
/// Never ends: `jmp .`.
pub(super) const ENDLESS: &[u8] = &[0xeb, 0xfe];
