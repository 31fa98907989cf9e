//! Model-specific registers.

use core::arch::asm;

/// Number of a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Msr(u32);

impl Msr {
    /// Local APIC address and enable bits.
    pub const APIC_BASE: Self = Self(0x1b);
    /// Timer deadline in time stamp counter steps.
    pub const TSC_DEADLINE: Self = Self(0x6e0);
    /// First x2APIC register; one per 16 bytes of the memory-mapped page.
    pub const X2APIC_FIRST: Self = Self(0x800);
    /// Extended features.
    pub const EFER: Self = Self(0xc000_0080);
    /// Segment selectors of SYSCALL and SYSRET.
    pub const STAR: Self = Self(0xc000_0081);
    /// Where SYSCALL goes.
    pub const LSTAR: Self = Self(0xc000_0082);
    /// Flags that SYSCALL clears.
    pub const SFMASK: Self = Self(0xc000_0084);
    /// Base of FS: a program's thread pointer.
    pub const FS_BASE: Self = Self(0xc000_0100);
    /// Base of GS.
    pub const GS_BASE: Self = Self(0xc000_0101);
    /// What SWAPGS exchanges with the base of GS.
    pub const KERNEL_GS_BASE: Self = Self(0xc000_0102);

    /// Returns the x2APIC register at `offset` of the memory-mapped page.
    #[must_use]
    pub const fn x2apic(offset: u32) -> Self {
        Self(Self::X2APIC_FIRST.0 + (offset >> 4))
    }

    /// Reads the register.
    ///
    /// # Safety
    /// This CPU must have it.
    #[must_use]
    pub unsafe fn read(self) -> u64 {
        let (high, low): (u32, u32);
        // SAFETY: the caller vouches that it exists.
        unsafe {
            asm!("rdmsr", in("ecx") self.0, out("edx") high, out("eax") low, options(nomem, nostack, preserves_flags));
        };
        u64::from(high) << 32 | u64::from(low)
    }

    /// Writes the register.
    ///
    /// # Safety
    /// This CPU must have it, and `value` must keep every promise that depends on it.
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    pub unsafe fn write(self, value: u64) {
        // SAFETY: the caller vouches for register and value.
        unsafe {
            asm!(
                "wrmsr",
                in("ecx") self.0,
                in("edx") (value >> 32) as u32,
                in("eax") value as u32,
                options(nostack, preserves_flags)
            );
        };
    }
}
