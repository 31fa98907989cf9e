//! Checks a program file and says where its parts go. Touches no memory but the file's.
//!
//! Only what the program needs to run is looked at, as Linux does: section headers and symbols may be missing or
//! damaged. Whatever is looked at is checked, so that [`Image`] can be used without further thought.

use alloc::vec::Vec;
use core::fmt;

use ::elf::{
    abi::{
        ELFCLASS64, ELFDATA2LSB, ELFMAGIC, EM_X86_64, ET_DYN, ET_EXEC, EV_CURRENT, PF_R, PF_W, PF_X,
        PT_GNU_STACK, PT_INTERP, PT_LOAD,
    },
    endian::LittleEndian,
    file::{Class, FileHeader},
    parse::ParsingTable,
    segment::ProgramHeader,
};
use mm::{PAGE_BYTES, Prot, USER_END, VirtAddr, VirtRange};

use crate::heap::{self, NoMemory};

/// Bytes of `e_ident`.
const IDENT: usize = 16;
/// Bytes of the file header of a 64-bit file.
const HEADER: usize = 64;
/// Bytes of a program header of a 64-bit file.
const PROGRAM_HEADER: usize = 56;
/// Most program headers: what fits in a page-sized table 16 times over; Linux stops at 64 KiB too.
const MAX_HEADERS: usize = 65536 / PROGRAM_HEADER;
/// Where a static-PIE file goes.
const PIE_BASE: u64 = 0x5555_5555_4000;

/// Why a file is no program for this kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ElfError {
    /// It does not begin with the ELF magic.
    NotElf,
    /// It begins with `#!`.
    Script,
    /// It ends before something it names.
    Truncated(&'static str),
    /// It is not 64-bit little-endian.
    NotElf64,
    /// It is for another machine.
    OtherMachine(u16),
    /// It is an object file or a core dump, not a program.
    NotProgram(u16),
    /// It needs a dynamic loader.
    Dynamic,
    /// A field makes no sense.
    Corrupt(&'static str),
    /// Its segments need more memory than the machine has.
    TooLarge {
        /// Bytes they need.
        bytes: u64,
    },
    /// There is no memory for the list of its segments.
    NoMemory,
}

impl From<NoMemory> for ElfError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf => f.write_str("not an ELF file"),
            Self::Script => f.write_str("a script; only ELF programs can be started"),
            Self::Truncated(what) => write!(f, "truncated ELF file: it ends inside its {what}"),
            Self::NotElf64 => f.write_str("not a 64-bit little-endian ELF file"),
            Self::OtherMachine(machine) => write!(f, "an ELF file for another machine (e_machine {machine})"),
            Self::NotProgram(kind) => write!(f, "an ELF file that is not a program (e_type {kind})"),
            Self::Dynamic => {
                f.write_str("a dynamic program; link it statically (there is no dynamic loader)")
            }
            Self::Corrupt(what) => write!(f, "corrupt ELF file: {what}"),
            Self::TooLarge { bytes } => {
                write!(f, "its segments need {} MiB, more than there is", bytes >> 20)
            }
            Self::NoMemory => f.write_str("not enough memory for the list of its segments"),
        }
    }
}

/// One piece of the file in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Pages that it touches.
    pub pages: VirtRange,
    /// What the program may do with them.
    pub prot: Prot,
    /// First byte of the file that is copied; goes to the start of the first page.
    pub file_start: usize,
    /// First byte of the file that is not copied. What follows on the last page it reaches is zero if the segment is
    /// larger in memory, else the file's next bytes, as on Linux.
    pub file_end: usize,
}

/// A program file that was checked. Its segments are in order, do not overlap, lie in user space and in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// The pieces.
    pub segments: Vec<Segment>,
    /// First instruction.
    pub entry: VirtAddr,
    /// Where the program headers are in memory; 0 if no segment holds them.
    pub phdr: u64,
    /// Number of program headers.
    pub phnum: u64,
    /// Size of a program header.
    pub phent: u64,
    /// Where the heap begins.
    pub brk: VirtAddr,
    /// What may be done with the stack.
    pub stack_prot: Prot,
}

/// Checks `file` and says where its parts go; `memory` is how many bytes the machine has.
///
/// # Errors
/// See [`ElfError`].
pub fn parse(file: &[u8], memory: u64) -> Result<Image, ElfError> {
    let header = file_header(file)?;
    let headers = program_headers(file, &header)?;
    let bias = if header.e_type == ET_DYN {
        pie_base(&headers)
    } else {
        0
    };

    let nr_loads = headers.iter().filter(|header| header.p_type == PT_LOAD).count();
    let mut image = Image {
        segments: heap::try_vec(nr_loads)?,
        entry: user_address(header.e_entry, bias)
            .ok_or(ElfError::Corrupt("its entry point is outside user space"))?,
        phdr: 0,
        phnum: u64::from(header.e_phnum),
        phent: PROGRAM_HEADER as u64,
        brk: VirtAddr::zero(),
        stack_prot: Prot::READ | Prot::WRITE,
    };
    let mut end_of_last = 0;
    let mut bytes = 0_u64;
    for header_of_part in headers.iter() {
        match header_of_part.p_type {
            PT_INTERP => return Err(ElfError::Dynamic),
            PT_GNU_STACK if header_of_part.p_flags & PF_X != 0 => image.stack_prot |= Prot::EXEC,
            PT_LOAD if header_of_part.p_memsz > 0 => {
                let (segment, end) = segment(file, &header_of_part, bias, end_of_last)?;
                bytes = bytes.saturating_add(segment.pages.bytes());
                end_of_last = end;
                image.note_headers(&header, &header_of_part, bias);
                image.segments.push(segment);
            }
            _ => {}
        }
    }
    let Some(last) = image.segments.last() else {
        return Err(ElfError::Corrupt("it has nothing to load"));
    };
    image.brk = last.pages.end();
    if bytes > memory {
        Err(ElfError::TooLarge { bytes })
    } else {
        Ok(image)
    }
}

impl Image {
    /// Takes the address of the program headers from the segment that holds them.
    fn note_headers(&mut self, header: &FileHeader<LittleEndian>, part: &ProgramHeader, bias: u64) {
        if let Some(offset) = header.e_phoff.checked_sub(part.p_offset)
            && offset < part.p_filesz
        {
            self.phdr = part.p_vaddr + bias + offset;
        }
    }
}

fn file_header(file: &[u8]) -> Result<FileHeader<LittleEndian>, ElfError> {
    if file.starts_with(b"#!") {
        return Err(ElfError::Script);
    }
    if !file.starts_with(&ELFMAGIC) {
        return Err(ElfError::NotElf);
    }
    let ident = file.get(..IDENT).ok_or(ElfError::Truncated("header"))?;
    if ident[4] != ELFCLASS64 || ident[5] != ELFDATA2LSB {
        return Err(ElfError::NotElf64);
    }
    let tail = file.get(IDENT..HEADER).ok_or(ElfError::Truncated("header"))?;
    let header = FileHeader::parse_tail((LittleEndian, Class::ELF64, ident[7], ident[8]), tail)
        .map_err(|_| ElfError::Corrupt("its header cannot be read"))?;
    if header.e_machine != EM_X86_64 {
        return Err(ElfError::OtherMachine(header.e_machine));
    }
    if header.e_type != ET_EXEC && header.e_type != ET_DYN {
        return Err(ElfError::NotProgram(header.e_type));
    }
    if u32::from(ident[6]) != u32::from(EV_CURRENT) || header.version != u32::from(EV_CURRENT) {
        return Err(ElfError::Corrupt("it has an unknown version"));
    }
    Ok(header)
}

fn program_headers<'file>(
    file: &'file [u8],
    header: &FileHeader<LittleEndian>,
) -> Result<ParsingTable<'file, LittleEndian, ProgramHeader>, ElfError> {
    if usize::from(header.e_phentsize) != PROGRAM_HEADER {
        return Err(ElfError::Corrupt("its program headers have an unknown size"));
    }
    let count = usize::from(header.e_phnum);
    if count == 0 || count > MAX_HEADERS {
        return Err(ElfError::Corrupt("it has no or too many program headers"));
    }
    let truncated = ElfError::Truncated("program headers");
    let start = usize::try_from(header.e_phoff).map_err(|_| truncated)?;
    let end = start.checked_add(count * PROGRAM_HEADER).ok_or(truncated)?;
    let table = file.get(start..end).ok_or(truncated)?;
    Ok(ParsingTable::new(LittleEndian, Class::ELF64, table))
}

/// Checks one segment against the file and against the end of the one before; returns it with its own end.
fn segment(
    file: &[u8],
    header: &ProgramHeader,
    bias: u64,
    end_of_last: u64,
) -> Result<(Segment, u64), ElfError> {
    if header.p_filesz > header.p_memsz {
        return Err(ElfError::Corrupt(
            "a segment is larger in the file than in memory",
        ));
    }
    if header.p_align > 1 && !header.p_align.is_power_of_two() {
        return Err(ElfError::Corrupt("a segment's alignment is no power of two"));
    }
    if header.p_vaddr % PAGE_BYTES != header.p_offset % PAGE_BYTES {
        return Err(ElfError::Corrupt(
            "a segment's address and file offset do not fit one page grid",
        ));
    }
    let outside = ElfError::Corrupt("a segment reaches outside user space");
    let start = header.p_vaddr.checked_add(bias).ok_or(outside)?;
    let end = start
        .checked_add(header.p_memsz)
        .filter(|&end| end <= USER_END)
        .ok_or(outside)?;
    if start < end_of_last {
        return Err(ElfError::Corrupt("its segments overlap or are not in order"));
    }
    let lead = start % PAGE_BYTES;
    let pages = VirtRange::user(start - lead, end - start + lead).ok_or(outside)?;
    if header.p_filesz == 0 {
        return Ok((
            Segment {
                pages,
                prot: prot(header.p_flags),
                file_start: 0,
                file_end: 0,
            },
            end,
        ));
    }
    let truncated = ElfError::Truncated("segments");
    let file_end = header.p_offset.checked_add(header.p_filesz).ok_or(truncated)?;
    let file_end = usize::try_from(file_end)
        .ok()
        .filter(|&end| end <= file.len())
        .ok_or(truncated)?;
    // The bytes before the segment on its first page are the file's, as if the file were mapped.
    let file_start = usize::try_from(header.p_offset - lead).map_err(|_| truncated)?;
    let segment = Segment {
        pages,
        prot: prot(header.p_flags),
        file_start,
        file_end,
    };
    if header.p_filesz < header.p_memsz {
        return Ok((segment, end));
    }
    // Without a part that must be zero, the last page shows the file's next bytes.
    let whole_pages = file_end.next_multiple_of(mm::PAGE_SIZE).min(file.len());
    Ok((
        Segment {
            file_end: whole_pages,
            ..segment
        },
        end,
    ))
}

/// Where a file goes that does not mind: aligned as its most demanding segment wishes, up to 1 GiB.
fn pie_base(headers: &ParsingTable<'_, LittleEndian, ProgramHeader>) -> u64 {
    let wishes = headers
        .iter()
        .filter(|header| header.p_type == PT_LOAD)
        .map(|header| header.p_align);
    let align = wishes
        .filter(|align| align.is_power_of_two())
        .max()
        .unwrap_or(PAGE_BYTES);
    PIE_BASE.next_multiple_of(align.min(1 << 30))
}

fn prot(flags: u32) -> Prot {
    let mut prot = Prot::empty();
    prot.set(Prot::READ, flags & PF_R != 0);
    prot.set(Prot::WRITE, flags & PF_W != 0);
    prot.set(Prot::EXEC, flags & PF_X != 0);
    prot
}

fn user_address(addr: u64, bias: u64) -> Option<VirtAddr> {
    addr.checked_add(bias)
        .filter(|&addr| addr < USER_END)
        .map(VirtAddr::new)
}
